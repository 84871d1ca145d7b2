"""Where measurements go: a CSV for each device and op, a table, and a plot of the ratios."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mkd_fast.benchmarks.harness import STREAM, Budget, Measurement, Timing
from mkd_fast.benchmarks.machine import device_name, provenance, slug
from mkd_fast.benchmarks.roofline import peak_of
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.files import make_folder, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROVENANCE = ("device", "threads", "commit", "mkd_fast", "python", "torch", "triton")
COLUMNS = ("op", "case", *(field.name for field in fields(Timing)), *_PROVENANCE)
_DRAWN = {"eager": "#E69F00", "torch.compile": "#0072B2"}  # Okabe and Ito's colours


def write_csv(
    op: str, measurements: Sequence[Measurement], device: torch.device, folder: Path
) -> Path:
    """Write ``<folder>/<device>/<op>.csv``, a row for each variant that was timed.

    Raises:
        OSError: the folder or file cannot be written.
    """
    known = provenance(device)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for measurement in measurements:
        for timing in measurement.timings:
            measured = {name: _rounded(value) for name, value in asdict(timing).items()}
            writer.writerow({"op": op, "case": measurement.case.name, **measured, **known})
    path = folder / slug(known["device"]) / f"{op}.csv"
    make_folder(path.parent)
    write_atomically(path, [text.getvalue().encode()])
    return path


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(measurement: Measurement, device: torch.device) -> Table:
    """What was measured of one case; ratios above 1 are slower than ours."""
    rows = [
        TableRow(
            (
                timing.variant,
                *(f"{ms:.3g}" for ms in (timing.p20_ms, timing.p50_ms, timing.p80_ms)),
                f"{timing.ratio:.2f}",
                f"{timing.share_of_limit:.0%}",
                f"{timing.extra_bytes / 2**20:.1f}",
            ),
            strong=number == 0,
        )
        for number, timing in enumerate(measurement.timings)
    ]
    header = ("variant", "p20 ms", "p50 ms", "p80 ms", "x ours", "of limit", "extra MiB")
    return Table(_caption(measurement, device), header, (tuple(rows),))


def _caption(measurement: Measurement, device: torch.device) -> str:
    if not measurement.timings:
        return measurement.case.name
    limit = f"streaming limit {measurement.timings[0].limit_gb_per_s:,.3g} GB/s"
    peak = peak_of(device_name(device))
    stated = f" of {peak.bytes_per_s / 1e9:,.0f} stated" if peak else ""
    return f"{measurement.case.name}: {limit}{stated}"


def verdicts(measurement: Measurement) -> list[str]:
    """A line for each variant that was refused, and for each budget whether it holds."""
    lines = [
        f"refused: {variant}, off by {error:.3g} times what float32 may err"
        for variant, error in measurement.refused.items()
    ]
    return lines + [_verdict(budget, measurement) for budget in measurement.case.budgets]


def _verdict(budget: Budget, measurement: Measurement) -> str:
    ratio = measurement.ratio(budget.rival)
    if budget.rival == STREAM:
        wanted = f">= {budget.at_least:.0%} of the streaming limit"
        measured = "not measured" if ratio is None else f"{ratio:.0%}"
    else:
        wanted = f">= {budget.at_least:g}x {budget.rival}"
        measured = "not measured" if ratio is None else f"{ratio:.2f}x"
    holds = "" if ratio is None else ", holds" if ratio >= budget.at_least else ", DOES NOT HOLD"
    return f"budget: {wanted}: {measured}{holds}"


def plot_ratios(title: str, measurements: Sequence[Measurement]) -> Figure:
    """Bars of the rivals' times over ours, a group for each case; the line is ours."""
    from matplotlib.figure import Figure

    cases = [measurement for measurement in measurements if measurement.timings]
    rivals = [name for name in _DRAWN if any(case.ratio(name) for case in cases)]
    thickness = 0.8 / max(len(rivals), 1)
    figure = Figure(figsize=(8.0, 1.6 + 0.85 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    for lane, rival in enumerate(rivals):
        ratios = [case.ratio(rival) or float("nan") for case in cases]
        places = [row + thickness * (lane - (len(rivals) - 1) / 2) for row in range(len(cases))]
        bars = axes.barh(places, ratios, 0.92 * thickness, color=_DRAWN[rival], label=rival)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1.2)
    axes.set_yticks(range(len(cases)), [case.case.name for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.margins(x=0.1)  # for the last number
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("time of one forward and gradient, fused = 1 (the line)")
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    figure.legend(loc="outside lower center", ncols=len(rivals), frameon=False)
    return figure
