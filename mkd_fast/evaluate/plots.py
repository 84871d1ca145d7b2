"""The plots of a run, as PNG: loss curves, the task's first measure for each language, and sizes.

Each function returns a matplotlib figure and touches no global state. A model has the same colour
and marker in every plot: its place in the report decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mkd_fast.evaluate.drawing import (
    DOTS_PER_INCH,
    colour,
    house_style,
    legend_below,
    marker,
    new_figure,
)
from mkd_fast.evaluate.report import ModelResult, plots_of
from mkd_fast.evaluate.scores import LanguageScore, MeanScore, Measure, mean_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_PARTS = {
    "loss": "total loss (weighted sum)",
    "kd": "distillation term",
    "ce": "cross-entropy term",
    "hidden": "hidden-state term",
}
_EMBEDDINGS, _LAYERS, _HEAD, _DISK = "#0072B2", "#56B4E9", "#D55E00", "#8C8C8C"
_LANE_INCHES = 0.1  # a language's row has a lane for each model
_MEAN_ROWS = 2.2  # height of the row of means, in rows of a language


def write_plots(
    results: Sequence[ModelResult], metrics: Iterable[Mapping[str, Any]], folder: Path
) -> None:
    """Writes the plots that `plots_of` names into an existing folder.

    Args:
        results: The models of the report, in its order.
        metrics: Rows as `loss_curves` takes them.
        folder: Where the files go.
    """
    figures = (
        score_by_language(results),
        loss_curves(metrics, [result.scores.model for result in results]),
        parameters_and_size(results),
    )
    for stem, figure in zip(plots_of(results[0].scores.measures), figures, strict=True):
        figure.savefig(folder / f"{stem}.png", dpi=DOTS_PER_INCH)


def loss_curves(metrics: Iterable[Mapping[str, Any]], models: Sequence[str]) -> Figure:
    """One panel for each part of the loss that was trained on: every step faint, and smoothed.

    Smoothed is the mean over a window, centred on the step, of about 1/20 of the curve's steps.

    Args:
        metrics: Rows with `model`, `step` and those of `loss`, `kd`, `ce`, `hidden` that were
            measured (missing or None: not measured). Of a step given twice, as by a run that was
            resumed, the last row counts. A part that is zero throughout is not drawn, nor is a
            value that is not finite.
        models: The report's models, in its order; rows of others are not drawn.
    """
    from matplotlib.ticker import MaxNLocator

    rows = list(metrics)
    curves = {
        part: {model: curve for model in models if (curve := _curve(rows, model, part)) is not None}
        for part in LOSS_PARTS
    }
    parts = [part for part in LOSS_PARTS if curves[part]]
    num_columns = min(2, max(1, len(parts)))
    num_lines = max(1, math.ceil(len(parts) / num_columns))
    with house_style():
        figure = new_figure(4.6 * num_columns, 0.9 + 2.9 * num_lines)
        figure.suptitle("Training losses (faint: as logged)", x=0.02, ha="left", weight="bold")
        for number, part in enumerate(parts, start=1):
            axes = figure.add_subplot(num_lines, num_columns, number)
            for model, (steps, losses) in curves[part].items():
                drawn_in = colour(models.index(model))
                axes.plot(steps, losses, color=drawn_in, alpha=0.2, linewidth=0.8)
                smooth = _smoothed(losses, max(1, len(losses) // 20))
                axes.plot(steps, smooth, color=drawn_in, linewidth=2, label=model)
            axes.set_title(LOSS_PARTS[part])
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
            axes.set_ylim(bottom=0)
            axes.margins(x=0.01)
        legend_below(figure)
    return figure


def score_by_language(results: Sequence[ModelResult]) -> Figure:
    """The task's first measure: a dot with its 95 % interval for each model and language.

    Means have a row of their own, languages seen and unseen a panel each. Languages stand in the
    order of the first model's values, best on top.
    """
    measure = results[0].scores.measures[0]
    groups = (
        ("Languages seen in training", [result.scores.seen for result in results]),
        ("Unseen languages", [result.scores.unseen for result in results]),
    )
    panels = [
        (title, _languages_best_first(scores, measure), scores)
        for title, scores in groups
        if any(scores)
    ]
    row_inches = max(0.3, _LANE_INCHES * len(results))
    heights = [len(languages) + _MEAN_ROWS for _, languages, _ in panels]
    with house_style():
        figure = new_figure(7.6, 1.6 + 0.4 * len(panels) + row_inches * sum(heights))
        figure.suptitle(
            f"Test {measure.title} by language (bars: 95 % interval)",
            x=0.02,
            ha="left",
            weight="bold",
        )
        grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
        for number, (title, languages, scores) in enumerate(panels):
            axes = figure.add_subplot(grid[number])
            _draw_languages(axes, measure, languages, scores)
            means = [mean_score(of_model) for of_model in scores]
            _draw_means(axes, measure, len(languages), means)
            axes.set_title(title)
            axes.set_yticks([*range(len(languages)), _mean_position(len(languages))])
            axes.set_yticklabels([*languages, "mean"])
            axes.set_ylim(len(languages) - 0.5 + _MEAN_ROWS, -0.5)
            if measure.is_share:
                axes.set_xlim(-2, 102)  # whole markers at 0 and 100
            axes.spines.left.set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(measure.title + ", %" * measure.is_share)
        legend_below(figure, [result.scores.model for result in results])
    return figure


def parameters_and_size(results: Sequence[ModelResult]) -> Figure:
    """A stacked bar of each model's parameters by part, and a bar of its size on disk."""
    names = [result.scores.model for result in results]
    counts = [result.parameters for result in results]
    heads = [count.head / 1e6 for count in counts]  # too thin to be seen, so the legend says it
    parts = (
        ("embeddings", _EMBEDDINGS, [count.embeddings / 1e6 for count in counts]),
        ("layers", _LAYERS, [count.layers / 1e6 for count in counts]),
        (f"head (at most {max(heads):.2f})", _HEAD, heads),
    )
    with house_style():
        figure = new_figure(9.2, 1.7 + 0.55 * len(results))
        figure.suptitle("Parameters and size on disk", x=0.02, ha="left", weight="bold")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        start = np.zeros(len(results))
        for part, filled_in, millions in parts:
            left.barh(names, millions, left=start, height=0.6, color=filled_in, label=part)
            start += np.asarray(millions)
        megabytes = [result.size_bytes / 1e6 for result in results]
        right.barh(names, megabytes, height=0.6, color=_DISK)
        _label_bar_ends(left, start)
        _label_bar_ends(right, megabytes)
        left.set_xlabel("parameters, millions")
        right.set_xlabel("megabytes on disk")
        left.invert_yaxis()
        for axes in (left, right):
            axes.grid(visible=False)
            axes.tick_params(axis="y", length=0)
        legend_below(figure)
    return figure


def _curve(
    rows: Iterable[Mapping[str, Any]], model: str, part: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
    loss_of_step = {
        row["step"]: row[part]
        for row in rows
        if row["model"] == model and row.get(part) is not None and math.isfinite(row[part])
    }
    if not any(loss_of_step.values()):
        return None
    steps = sorted(loss_of_step)
    return np.array(steps), np.array([loss_of_step[step] for step in steps], dtype=np.float64)


def _smoothed(values: npt.NDArray[np.float64], num_values: int) -> npt.NDArray[np.float64]:
    """Mean over a centred window of about `num_values` values, cut at the curve's ends."""
    window = np.ones(2 * (num_values // 2) + 1)
    num_inside = np.convolve(np.ones_like(values), window, mode="same")
    smoothed: npt.NDArray[np.float64] = np.convolve(values, window, mode="same") / num_inside
    return smoothed


def _languages_best_first(scores: Sequence[Sequence[LanguageScore]], measure: Measure) -> list[str]:
    """Languages of all models, by the value of the first model that has them."""
    value_of: dict[str, float] = {}
    for of_model in scores:
        for score in of_model:
            value_of.setdefault(score.language, score.values[measure.name])
    return sorted(value_of, key=value_of.__getitem__, reverse=measure.is_share)


def _draw_languages(
    axes: Axes,
    measure: Measure,
    languages: Sequence[str],
    scores: Sequence[Sequence[LanguageScore]],
) -> None:
    for row in range(0, len(languages), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#F6F6F6", zorder=0)
    for number, of_model in enumerate(scores):
        scale = 100 if measure.is_share else 1
        values = scale * np.array([score.values[measure.name] for score in of_model])
        bounds = scale * np.array([score.interval for score in of_model]).reshape(-1, 2).T
        rows = [languages.index(score.language) for score in of_model]
        axes.errorbar(
            values,
            np.array(rows) + 0.6 * _lane(number, len(scores)),
            xerr=np.abs(bounds - values),
            color=colour(number),
            marker=marker(number),
            markersize=5,
            linestyle="none",
            elinewidth=1.2,
        )


def _draw_means(
    axes: Axes, measure: Measure, num_languages: int, means: Sequence[MeanScore | None]
) -> None:
    middle = _mean_position(num_languages)
    axes.axhspan(middle - _MEAN_ROWS / 2, middle + _MEAN_ROWS / 2, color="#E9E9E9", zorder=0)
    for number, mean in enumerate(means):
        if mean is None:
            continue
        value = mean.values[measure.name] * (100 if measure.is_share else 1)
        row = middle + 0.85 * _MEAN_ROWS * _lane(number, len(means))
        axes.plot(value, row, color=colour(number), marker=marker(number), markersize=7)
        towards_left = measure.is_share and value > 90
        axes.annotate(
            f"{value:.1f}" if measure.is_share else f"{value:.3f}",
            (value, row),
            xytext=(-8 if towards_left else 8, 0),
            textcoords="offset points",
            ha="right" if towards_left else "left",
            va="center_baseline",
            fontsize=9.5,
        )


def _mean_position(num_languages: int) -> float:
    return num_languages - 0.5 + _MEAN_ROWS / 2


def _lane(number: int, num_models: int) -> float:
    """Where in its row a model is drawn: -0.5 to 0.5, top to bottom."""
    return (number + 0.5) / num_models - 0.5


def _label_bar_ends(axes: Axes, ends: Iterable[float]) -> None:
    for row, end in enumerate(ends):
        axes.annotate(
            f"{end:.1f}",
            (end, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center_baseline",
        )
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
