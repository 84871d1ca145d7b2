import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mkd_fast.evaluate.plots import (
    loss_curves,
    parameters_and_size,
    score_by_language,
    write_plots,
)
from mkd_fast.evaluate.report import ModelResult

MakeResult = Callable[..., ModelResult]


def row(model: str, step: int, **parts: float | None) -> dict[str, Any]:
    return {"model": model, "step": step, **parts}


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def raw_curve(axes: Axes, model: str) -> tuple[list[float], list[float]]:
    """The faint curve drawn just before the model's smoothed one."""
    labels = [line.get_label() for line in axes.lines]
    line = axes.lines[labels.index(model) - 1]
    return list(line.get_xdata()), list(line.get_ydata())


# --- files ---


def test_files_are_images_of_the_expected_size(
    four_results: list[ModelResult], tmp_path: Path
) -> None:
    metrics = [row("scratch", step, loss=1 / step) for step in range(1, 50)]
    write_plots(four_results, metrics, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "loss_curves.png",
        "accuracy.png",
        "size.png",
    }
    widths_inches = {"loss_curves": 4.6, "accuracy": 7.6, "size": 9.2}
    for stem, inches in widths_inches.items():
        pixels = matplotlib.image.imread(tmp_path / f"{stem}.png")
        assert pixels.shape[1] == round(160 * inches)
        assert pixels[..., :3].min() == 0.0, "some ink"
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 1.0).all(), "nothing is cut at the edge"


def test_the_users_matplotlib_settings_stay(four_results: list[ModelResult]) -> None:
    before = dict(matplotlib.rcParams)
    parameters_and_size(four_results)
    assert dict(matplotlib.rcParams) == before


# --- loss curves ---


def test_only_trained_parts_get_a_panel() -> None:
    metrics = [
        row("trained", step, loss=2.0, kd=1.5, ce=0.5, hidden=0.0) for step in range(1, 4)
    ] + [row("teacher", 1, loss=9.0)]
    figure = loss_curves(metrics, ["teacher", "trained"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "total loss (weighted sum)",
        "distillation term",
        "cross-entropy term",
    ]
    assert [len(axes.lines) for axes in figure.axes] == [4, 2, 2]
    assert legend_texts(figure) == ["teacher", "trained"]


def test_a_step_that_was_repeated_counts_once_and_gaps_are_left_out() -> None:
    metrics = [
        row("trained", 1, loss=5.0),
        row("trained", 2, loss=4.0),
        row("trained", 2, loss=3.0),  # resumed from the checkpoint of step 1
        row("trained", 4, loss=math.nan),
        row("trained", 3, loss=2.0),
        row("trained", 5, loss=None),
        row("another", 1, loss=1.0),
    ]
    figure = loss_curves(metrics, ["trained"])
    assert raw_curve(figure.axes[0], "trained") == ([1, 2, 3], [5.0, 3.0, 2.0])


def test_smoothing_is_a_centred_mean_cut_at_the_ends() -> None:
    losses = [float(step % 7) + 1 for step in range(100)]
    metrics = [row("trained", step, loss=loss) for step, loss in enumerate(losses)]
    axes = loss_curves(metrics, ["trained"]).axes[0]
    smooth = axes.lines[1].get_ydata()
    expected = [np.mean(losses[max(0, step - 2) : step + 3]) for step in range(100)]
    np.testing.assert_allclose(smooth, expected, rtol=16 * np.finfo(float).eps)


def test_no_metrics_is_an_empty_figure() -> None:
    figure = loss_curves([], ["trained"])
    assert figure.axes == []
    assert figure.legends == []


# --- accuracy ---


def test_each_model_and_language_has_its_dot(four_results: list[ModelResult]) -> None:
    figure = score_by_language(four_results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Languages seen in training",
        "Unseen languages",
    ]
    for axes, num_languages in zip(figure.axes, (5, 9), strict=True):
        dots = [container.lines[0] for container in axes.containers]
        assert [len(line.get_xdata()) for line in dots] == [num_languages] * 4
        assert len(axes.get_yticklabels()) == num_languages + 1
    assert [text.get_text() for text in figure.axes[1].texts] == ["65.5", "0.0", "49.0", "14.0"]
    assert legend_texts(figure) == [result.scores.model for result in four_results]


def test_dots_stand_in_the_row_of_their_language(make_result: MakeResult) -> None:
    best, worst = make_result("a", 0.9, seen=("th",)), make_result("a", 0.2, seen=("en",))
    languages = worst.scores.seen + best.scores.seen
    scores = [
        type(best.scores)(model, seen=languages, unseen=()) for model in ("teacher", "student")
    ]
    results = [ModelResult(score, best.parameters, 1, None) for score in scores]
    (axes,) = score_by_language(results).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["th", "en", "mean"]
    for container in axes.containers:
        accuracies, rows = container.lines[0].get_data()
        assert [round(height) for height in rows] == [1, 0]
        assert accuracies == pytest.approx([20, 90])


def test_a_model_keeps_its_colour_across_plots(four_results: list[ModelResult]) -> None:
    names = [result.scores.model for result in four_results]
    curves = loss_curves([row("scratch", 1, loss=1.0)], names).axes[0].lines
    dots = score_by_language(four_results).axes[0].containers[names.index("scratch")]
    assert to_hex(curves[1].get_color()) == to_hex(dots.lines[0].get_color())


def test_another_task_shows_its_own_measure(tagged_result: ModelResult, tmp_path: Path) -> None:
    figure = score_by_language([tagged_result])
    (axes,) = figure.axes
    assert figure.get_suptitle() == "Test span F1 by language (bars: 95 % interval)"
    assert axes.get_xlabel() == "span F1, %"
    ((percent, _),) = axes.containers[0].lines[0].get_xydata()
    assert percent == pytest.approx(70)
    write_plots([tagged_result], [], tmp_path)
    assert (tmp_path / "span_f1.png").exists()


# --- size ---


def test_bars_add_up_to_the_parameters(four_results: list[ModelResult]) -> None:
    left, right = parameters_and_size(four_results).axes
    parts = [[bar.get_width() for bar in container] for container in left.containers]
    assert np.shape(parts) == (3, 4)
    assert np.sum(parts, axis=0) == pytest.approx([17.64] * 4)
    assert [text.get_text() for text in left.texts] == ["17.6"] * 4
    assert [bar.get_width() for bar in right.containers[0]] == pytest.approx([72.34] * 4)
    assert [label.get_text() for label in left.get_yticklabels()] == [
        result.scores.model for result in four_results
    ]
