"""Measurements for people: a table for the terminal and one for the README, budgets, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mkd_fast.benchmarks.case import STREAM, Budget
from mkd_fast.benchmarks.harness import Measurement
from mkd_fast.benchmarks.results import Row, by_case
from mkd_fast.benchmarks.roofline import peak_of
from mkd_fast.environment import device_name
from mkd_fast.evaluate.tables import Table, TableRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN = {"eager": "#E69F00", "torch.compile": "#0072B2"}  # Okabe and Ito's colours
_LIMIT = "#009E73"
_INK = "#7a7a7a"  # reads on white and on black


def table(measurement: Measurement, device: torch.device) -> Table:
    """What was measured of one case; ratios above 1 are slower than ours."""
    rows = [
        TableRow(
            (
                timing.variant,
                *(f"{ms:.3g}" for ms in (timing.p20_ms, timing.p50_ms, timing.p80_ms)),
                f"{timing.ratio:.2f} ({timing.ratio_p20:.2f}-{timing.ratio_p80:.2f})",
                f"{timing.share_of_limit:.0%}",
                f"{timing.extra_mb:.1f}",
            ),
            strong=number == 0,
        )
        for number, timing in enumerate(measurement.timings)
    ]
    header = ("variant", "p20 ms", "p50 ms", "p80 ms", "x ours", "of limit", "extra MB")
    return Table(_caption(measurement, device), header, (tuple(rows),))


def _caption(measurement: Measurement, device: torch.device) -> str:
    case = measurement.case
    if not measurement.timings:
        return case.name
    limit = f"streaming limit {measurement.timings[0].limit_gb_per_s:,.3g} GB/s"
    peak = peak_of(device_name(device))
    stated = f" of {peak.bytes_per_s / 1e9:,.0f} stated" if peak else ""
    return f"{case.name}: " + (
        f"{limit}{stated}" if case.limit == STREAM else f"limit {case.limit}"
    )


def verdicts(measurement: Measurement) -> list[str]:
    """A line for each variant that was refused, and for each budget whether it holds."""
    lines = [f"refused: {variant}, {why}" for variant, why in measurement.refused.items()]
    return lines + [_verdict(budget, measurement) for budget in measurement.case.budgets]


def _verdict(budget: Budget, measurement: Measurement) -> str:
    ratio = measurement.ratio(budget.rival)
    if budget.rival == STREAM:
        wanted = f">= {budget.at_least:.0%} of the streaming limit"
        measured = "not measured" if ratio is None else f"{ratio:.0%}"
    else:
        wanted = f">= {budget.at_least:.2g}x {budget.rival}"
        measured = "not measured" if ratio is None else f"{ratio:.2f}x"
    holds = "" if ratio is None else ", holds" if ratio >= budget.at_least else ", DOES NOT HOLD"
    return f"budget: {wanted}: {measured}{holds}"


def summary(rows: Sequence[Row]) -> str:
    """One op's rows in Markdown: our time and memory, and the others' in multiples of them."""
    cases = by_case(rows)
    variants = dict.fromkeys(row["variant"] for row in rows)
    rivals = list(variants)[1:]
    lines = []
    for case, timed in cases.items():
        ours = next(iter(timed.values()))
        slower = [_spread(timed[name]) if name in timed else "" for name in rivals]
        share = f"{float(ours['share_of_limit']):.0%}"
        memory = f"{float(ours['extra_mb']):,.0f}"
        most = max((float(row["extra_mb"]) for row in timed.values()), default=0.0)
        cells = (case, f"{float(ours['p50_ms']):.3g}", *slower, share, memory, f"{most:,.0f}")
        lines.append(TableRow(cells))
    header = (rows[0]["op"], "ours, ms", *rivals, "of limit", "ours, MB", "most, MB")
    return Table("", header, (tuple(lines),)).to_markdown().strip()


def _spread(row: Row) -> str:
    """A rival's time over ours, and where the middle three fifths of the rounds lie."""
    ratio = f"{float(row['ratio']):.1f}x"
    if not row["ratio_p20"]:
        return ratio
    return f"{ratio} ({float(row['ratio_p20']):.1f}-{float(row['ratio_p80']):.1f})"


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Write ``plot`` as SVG that is the same for the same rows."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "mkd_fast", "svg.fonttype": "none"}):
        plot(rows).savefig(path, transparent=True, metadata={"Date": None})


def plot(rows: Sequence[Row]) -> Figure:
    """Bars of the rivals' times over ours, a group for each case; diamonds are the limit's."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cases = by_case(rows)
    inked: Any = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    )
    with mpl.rc_context(inked | {"font.size": 9}):
        figure = Figure(figsize=(8.4, 1.5 + 0.5 * len(cases)), layout="constrained")
        axes = figure.add_subplot(xscale="log")
        _draw_bars(axes, list(cases.values()))
        axes.axvline(1.0, color=_INK, linewidth=1.2)
        axes.set_yticks(range(len(cases)), list(cases))
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.margins(x=0.12)  # for the last number
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel("time of one forward and gradient; fused = 1x, the line")
        axes.set_title(f"{rows[0]['op']}, {rows[0]['device']}", loc="left", weight="bold")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_bars(axes: Any, cases: Sequence[dict[str, Row]]) -> None:
    drawn = [name for name in _DRAWN if any(name in variants for variants in cases)]
    thickness = 0.8 / max(len(drawn), 1)
    for lane, rival in enumerate(drawn):
        ratios = [float(v[rival]["ratio"]) if rival in v else float("nan") for v in cases]
        places = [row + thickness * (lane - (len(drawn) - 1) / 2) for row in range(len(cases))]
        bars = axes.barh(
            places,
            [ratio - 1.0 for ratio in ratios],
            0.92 * thickness,
            left=1.0,
            color=_DRAWN[rival],
            label=rival,
        )
        axes.bar_label(bars, labels=[f"{ratio:.1f}" for ratio in ratios], padding=3, fontsize=8)
    shares = [float(next(iter(variants.values()))["share_of_limit"]) for variants in cases]
    axes.plot(shares, range(len(cases)), "D", color=_LIMIT, label="the machine's limit")
    for row, share in enumerate(shares):
        axes.annotate(
            f"{share:.0%}", (share, row), (-6, 0), textcoords="offset points",
            ha="right", va="center", fontsize=8,
        )  # fmt: skip
