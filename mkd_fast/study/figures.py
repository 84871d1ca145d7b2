"""The figures of a study's report, as matplotlib draws them into SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from mkd_fast.evaluate.drawing import colour, house_style, legend_below, marker, new_figure
from mkd_fast.study.questions import DEPTH
from mkd_fast.study.results import SEEN, STARTS, UNSEEN, Arm, StudyResults
from mkd_fast.study.summaries import NAMES, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_TEACHER = "#8C8C8C"
_LEAST_WIDTH_INCHES = 7.2  # which the longest title takes
_DARK_ABOVE = 0.55  # of a heat map's range: where its numbers are written in white


def heat_map(results: StudyResults, fraction: float) -> Figure:
    """Start by objective: a panel for each group of languages and number of layers."""
    starts, objectives = results.present("start"), results.present("objective")
    depths = results.present("num_layers")
    groups = [group for group in (SEEN, UNSEEN) if results.languages(group)]
    with house_style():
        panel_inches = max(2.2, 0.85 * len(objectives))
        height = 1.6 + len(groups) * (0.8 + 0.45 * len(starts))
        width = 2.6 + panel_inches * len(depths)
        figure = new_figure(max(width, _LEAST_WIDTH_INCHES), height)
        axes_of = figure.subplots(len(groups), len(depths), squeeze=False, sharex=True, sharey=True)
        for line, group in enumerate(groups):
            scores = [
                np.array(
                    [
                        [
                            _score(results, Arm(start, DEPTH, objective, fraction, n), group)
                            for objective in objectives
                        ]
                        for start in starts
                    ]
                )
                for n in depths
            ]
            found = np.concatenate([of_depth.ravel() for of_depth in scores])
            low, high = float(np.nanmin(found)), float(np.nanmax(found))
            for axes, values, n in zip(axes_of[line], scores, depths, strict=True):
                axes.imshow(values, cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
                axes.set_title(f"{group} languages, {n} layers")
                axes.set_xticks(
                    range(len(objectives)),
                    [NAMES[name] for name in objectives],
                    rotation=30,
                    ha="right",
                )
                axes.set_yticks(range(len(starts)), [NAMES[name] for name in starts])
                axes.grid(visible=False)
                _write_values(axes, values, low, high)
        figure.suptitle(
            f"{title(results.metric)}, %, with {fraction:.0%} of the text",
            x=0.02,
            ha="left",
            weight="bold",
        )
    return figure


def learning_curves(results: StudyResults, objective: str, num_layers: int) -> Figure:
    """Development score by optimizer step: a panel for each share of the text, a line a seed."""
    fractions = results.present("fraction")
    title = f"How fast each start learns ({NAMES[objective]}, {num_layers} layers, a line a seed)"
    what = f"{NAMES[results.metric]}, %,\non development text"
    with _panels(title, [f"{fraction:.0%} of the text" for fraction in fractions], what) as (
        figure,
        panels,
    ):
        for axes, fraction in zip(panels, fractions, strict=True):
            _draw_teacher(axes, results.teacher.dev)
            for start in results.present("start"):
                arm = Arm(start, DEPTH, objective, fraction, num_layers)
                for number, cell in enumerate(results.by_arm.get(arm, {}).values()):
                    steps = [point.step for point in cell.curve]
                    scores = [100 * point.dev for point in cell.curve]
                    look = {**_look(start), "markersize": 4, "alpha": 0.8}
                    axes.plot(steps, scores, **(look if number == 0 else look | {"label": None}))
            axes.set_xscale("symlog", linthresh=1)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("optimizer step")
    return figure


def data_curves(results: StudyResults, objective: str, num_layers: int) -> Figure:
    """Test score by share of the text, a line a start, seen and unseen languages apart."""
    fractions = sorted(results.present("fraction"))
    shares = [100 * fraction for fraction in fractions]
    title = f"What little text leaves ({NAMES[objective]}, {num_layers} layers)"
    with _panels_of_groups(title, results) as (figure, panels):
        for group, axes in panels.items():
            _draw_teacher(axes, results.teacher.score(results.languages(group)))
            for start in results.present("start"):
                arms = [Arm(start, DEPTH, objective, share, num_layers) for share in fractions]
                axes.plot(shares, [_score(results, arm, group) for arm in arms], **_look(start))
            axes.set_xscale("log")
            axes.set_xticks(shares, [f"{fraction:.0%}" for fraction in fractions])
            axes.minorticks_off()
            axes.set_xlabel("share of the training text")
    return figure


def size_and_quality(results: StudyResults, objective: str, fraction: float) -> Figure:
    """Parameters against the mean score, seen and unseen languages apart."""
    depths = results.present("num_layers")
    shown = {round(results.teacher.parameters / 1e6)}
    title = f"Size against quality ({NAMES[objective]}, {fraction:.0%} of the text)"
    with _panels_of_groups(title, results) as (figure, panels):
        for group, axes in panels.items():
            size, score = (
                results.teacher.parameters,
                results.teacher.score(results.languages(group)),
            )
            star = {"color": _OF_TEACHER, "marker": "*", "markersize": 12, "linestyle": "none"}
            axes.plot(size / 1e6, 100 * score, label="teacher", **star)
            for start in results.present("start"):
                arms = [Arm(start, DEPTH, objective, fraction, depth) for depth in depths]
                found = [arm for arm in arms if arm in results.by_arm]
                sizes = [next(iter(results.by_arm[arm].values())).parameters / 1e6 for arm in found]
                axes.plot(sizes, [_score(results, arm, group) for arm in found], **_look(start))
                shown |= {round(size) for size in sizes}
            axes.set_xscale("log")
            ticks = sorted(shown)
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()
            axes.set_xlabel("parameters, millions")
    return figure


def _score(results: StudyResults, arm: Arm, group: str) -> float:
    """Mean over languages and seeds, per cent; NaN where there is no cell."""
    cells = results.by_arm.get(arm, {}).values()
    languages = results.languages(group)
    return 100 * fmean(cell.score(languages) for cell in cells) if cells else float("nan")


def _write_values(axes: Axes, values: np.ndarray, low: float, high: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            is_dark = value > low + _DARK_ABOVE * (high - low)
            axes.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                color="white" if is_dark else "black",
                fontsize=10,
            )


@contextmanager
def _panels(title: str, titles: Sequence[str], what: str) -> Iterator[tuple[Figure, list[Any]]]:
    """Panels side by side over the same scale of ``what``, with one legend below them."""
    with house_style():
        figure = new_figure(max(1.0 + 3.6 * len(titles), _LEAST_WIDTH_INCHES), 4.0)
        panels = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
        for axes, of_panel in zip(panels, titles, strict=True):
            axes.set_title(of_panel)
        panels[0].set_ylabel(what)
        figure.suptitle(title, x=0.02, ha="left", weight="bold")
        yield figure, panels
        legend_below(figure)


@contextmanager
def _panels_of_groups(title: str, results: StudyResults) -> Iterator[tuple[Figure, dict[str, Any]]]:
    """A panel for each group of languages that there are."""
    groups = [group for group in (SEEN, UNSEEN) if results.languages(group)]
    titles = [f"{group} languages" for group in groups]
    with _panels(title, titles, f"{NAMES[results.metric]}, %") as (figure, panels):
        yield figure, dict(zip(groups, panels, strict=True))


def _draw_teacher(axes: Axes, score: float) -> None:
    axes.axhline(100 * score, color=_OF_TEACHER, linestyle="--", label="teacher, all text")


def _look(start: str) -> dict[str, Any]:
    """A start has the same colour and marker in every figure."""
    number = 1 + STARTS.index(start)
    return {"color": colour(number), "marker": marker(number), "label": NAMES[start]}
