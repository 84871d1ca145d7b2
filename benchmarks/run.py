"""``mkd-fast bench``: run some benchmarks, show them, and write what was measured.

``OPS`` are kernels timed beside their rivals (harness.py), ``PARTS`` whole parts of the package of
which single numbers are reported (findings.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mkd_fast.benchmarks import (
    dense_kd,
    findings,
    hidden,
    linear_kd,
    report,
    results,
    sparse_kd,
)
from mkd_fast.benchmarks.case import Case
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.benchmarks.harness import TINY, Effort, Measurement, measure
from mkd_fast.benchmarks.roofline import StreamingLimit
from mkd_fast.checks import benchmarks as checks
from mkd_fast.checks.wording import one_of
from mkd_fast.environment import device_name

OPS = {
    "dense_kd": dense_kd.cases,
    "sparse_kd": sparse_kd.cases,
    "hidden": hidden.cases,
    "linear_kd": linear_kd.cases,
}


def _cache(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    from mkd_fast.benchmarks import cache  # needs transformers, which a GPU's benchmark does not

    return cache.measure(device, is_tiny=is_tiny)


def _train(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    from mkd_fast.benchmarks import train

    return train.measure(device, is_tiny=is_tiny)


def _switches(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    from mkd_fast.benchmarks import switches

    return switches.measure(device, is_tiny=is_tiny)


def _plan(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    from mkd_fast.benchmarks import plan

    return plan.measure(device, is_tiny=is_tiny)


PARTS = {"cache": _cache, "train": _train, "switches": _switches, "plan": _plan}


def bench(
    ops: Sequence[str],
    out: Path,
    *,
    is_tiny: bool,
    plots: bool,
    rivals_left_out: Sequence[str] = (),
) -> None:
    """Run the benchmarks on the GPU where there is one, else on the CPU.

    Args:
        ops: of ``OPS`` and ``PARTS``; none of them means all.
        out: results go to ``<out>/<device>/<op>.csv``, and ``.svg`` with ``plots``.
        is_tiny: a few rows and rounds of every case: shows that it runs, not how fast.
        plots: whether to draw the ratios.
        rivals_left_out: names of variants that are not run.

    Raises:
        ValueError: no such op or rival.
        RuntimeError: there is no fused kernel here, or one that computes something else; the
            cases that were right are written.
    """
    import rich

    for op in ops:
        one_of("bench", "op", op, (*OPS, *PARTS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ops = ops or (*OPS, *PARTS)
    chosen = {op: OPS[op](device, is_tiny=is_tiny) for op in ops if op in OPS}
    rivals = {rival: None for cases in chosen.values() for case in cases for rival in case.rivals}
    for name in rivals_left_out:
        one_of("bench", "without", name, tuple(rivals))
    limit = StreamingLimit.on(device, is_tiny=is_tiny)
    effort = TINY if is_tiny else Effort()
    for op, cases in chosen.items():
        rich.print(f"{op} on {device_name(device)}: forward and gradient")
        kept = [case.without(rivals_left_out) for case in cases]
        measurements = [_measured(case, device, limit, effort) for case in kept]
        path = results.write_measurements(op, measurements, device, out)
        rich.print(f"written: {path}")
        if plots:
            report.save_plot(results.read_rows(path), path.with_suffix(".svg"))
        wrong = [each.case.name for each in measurements if each.is_ours_wrong]
        if wrong:
            raise checks.ours_is_wrong(op, wrong)
    for part in ops:
        if part in PARTS:
            rich.print(f"{part} on {device_name(device)}")
            found = list(_shown(PARTS[part](device, is_tiny=is_tiny)))
            rich.print(f"written: {findings.write(part, found, device, out)}")


def _shown(found: Iterator[Finding]) -> Iterator[Finding]:
    import rich

    for finding in found:
        rich.print(f"  {finding.line()}")
        yield finding


def _measured(
    case: Case, device: torch.device, limit: StreamingLimit, effort: Effort
) -> Measurement:
    import rich

    torch.compiler.reset()  # each case compiles for its own shape
    measurement = measure(case, device, limit, effort)
    rich.print(report.table(measurement, device).to_rich())
    for line in report.verdicts(measurement):
        rich.print(f"  {line}")
    return measurement
