"""What ``python benchmarks/gpu.py`` does; each step ends in time for those after it.

environment.csv   device, versions, and the bandwidth of a device copy
correctness.csv   every kernel against float64
<device>/OP.csv   timings beside eager, torch.compile, Liger and orda, as mkd-fast bench has them
tuning.csv        launch configurations, fastest first, for the table in kernels/launch.py
skipped.csv       what was not timed, and why
ncu.csv           hardware counters of a call of dense_kd and sparse_kd, with --ncu
"""

import itertools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from mkd_fast.benchmarks import correctness, machine, results, tune
from mkd_fast.benchmarks.case import Case
from mkd_fast.benchmarks.harness import TINY, Effort, Measurement, measure, time_ms
from mkd_fast.benchmarks.roofline import StreamingLimit, peak_of
from mkd_fast.benchmarks.run import OPS
from mkd_fast.checks import benchmarks as checks

_EFFORT = Effort(warmup_s=0.1, measure_s=1.5, min_rounds=5, max_rounds=100)
_CASE_S = 30.0  # most of it torch.compile's search
_TUNING_S = 90.0
_COUNTERS = (
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


@dataclass(frozen=True)
class Clock:
    """The time that is left."""

    limit_s: float
    started: float = field(default_factory=time.monotonic)

    def has(self, seconds: float) -> bool:
        """Whether so much of it is left."""
        return self.started + self.limit_s - time.monotonic() >= seconds


def run(out: Path, *, limit_s: float, has_counters: bool, is_tiny: bool) -> None:
    """Fill ``out`` with CSV files.

    Raises:
        RuntimeError: there is no GPU.
        OSError: they cannot be written.
    """
    if not (is_tiny or torch.cuda.is_available()):
        raise checks.no_gpu()
    clock = Clock(limit_s)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit = StreamingLimit.on(device, is_tiny=is_tiny)
    write_environment(out, device, limit)
    write_correctness(out, device, clock)
    skipped = write_timings(out, device, limit, clock, is_tiny=is_tiny)
    write_tuning(out, device, clock, is_tiny=is_tiny)
    if has_counters:
        skipped += write_counters(out)
    results.write_rows(out / "skipped.csv", ("op", "case", "variant", "reason"), skipped)
    print(f"written: {out}")


def write_environment(out: Path, device: torch.device, limit: StreamingLimit) -> None:
    """Device, versions, and the copy bandwidth with the one that the maker states."""
    facts: dict[str, object] = dict(machine.provenance(device))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["memory_bytes"] = properties.total_memory
        facts["l2_bytes"] = properties.L2_cache_size
        facts["multiprocessors"] = properties.multi_processor_count
        facts["cuda"], facts["hip"] = torch.version.cuda, torch.version.hip
    for package in ("liger_kernel", "orda_kernel"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    times_ms = [time_ms(limit.run, device) for _ in range(20)]
    facts["copy_gb_per_s"] = limit.num_bytes / statistics.median(times_ms) / 1e6
    peak = peak_of(str(facts["device"]))
    if peak:
        facts["stated_gb_per_s"], facts["source"] = peak.bytes_per_s / 1e9, peak.source
    rows = [{"fact": name, "value": value} for name, value in facts.items()]
    results.write_rows(out / "environment.csv", ("fact", "value"), rows)
    print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n")


def write_correctness(out: Path, device: torch.device, clock: Clock) -> None:
    """A row for each check, at the latest when a third of the time is over."""
    rows = []
    enough = clock.limit_s * 2 / 3
    checks = correctness.CHECKS
    for row in correctness.check(device, checks, is_time_left=lambda: clock.has(enough)):
        rows.append(row)
        print(f"{row['verdict']}: {row['check']}")
    print(f"{len(rows)} of {len(checks)} checks made")
    results.write_rows(out / "correctness.csv", ("check", "error_of_budget", "verdict"), rows)


def write_timings(
    out: Path, device: torch.device, limit: StreamingLimit, clock: Clock, *, is_tiny: bool
) -> list[dict[str, object]]:
    """Time the cases of every op in turns, and return what was skipped; files grow as it goes."""
    measured: dict[str, list[Measurement]] = {op: [] for op in OPS}
    skipped: list[dict[str, object]] = []
    for op, case in in_turns(device, is_tiny=is_tiny):
        row: dict[str, object] = {"op": op, "case": case.name}
        if not is_tiny and not clock.has(_CASE_S + _TUNING_S):
            skipped.append({**row, "variant": "all", "reason": "no time was left"})
            continue
        torch.compiler.reset()  # each case compiles for its own shape
        try:
            measurement = measure(case, device, limit, TINY if is_tiny else _EFFORT)
        except Exception as error:  # the other cases go on
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            skipped.append({**row, "variant": "all", "reason": reason})
            continue
        refused = measurement.refused.items()
        skipped += [{**row, "variant": variant, "reason": why} for variant, why in refused]
        measured[op].append(measurement)
        _print(op, measurement)
        results.write_measurements(op, measured[op], device, out)
    for row in skipped:
        print("skipped:", *row.values())
    return skipped


def in_turns(device: torch.device, *, is_tiny: bool) -> list[tuple[str, Case]]:
    """The first case of every op, then the second of every op, and so on."""
    columns = [[(op, case) for case in OPS[op](device, is_tiny=is_tiny)] for op in OPS]
    rounds = itertools.zip_longest(*columns)
    return [each for turn in rounds for each in turn if each is not None]


def _print(op: str, measurement: Measurement) -> None:
    for timing in measurement.timings:
        print(
            f"{op}, {measurement.case.name}, {timing.variant}: {timing.p50_ms:.3g} ms, "
            f"{timing.ratio:.2f}x ours, {timing.share_of_limit:.0%} of the limit, "
            f"{timing.extra_mb:,.0f} MB"
        )


def write_tuning(out: Path, device: torch.device, clock: Clock, *, is_tiny: bool) -> None:
    """Launch configurations of the kernels, as far as the time goes."""
    rows = []
    for row in tune.search(device, is_tiny=is_tiny, is_time_left=lambda: clock.has(5.0)):
        rows.append(row)
        results.write_rows(out / "tuning.csv", tune.COLUMNS, rows)
    for line in tune.table_rows(rows):
        print(line)


def write_counters(out: Path) -> list[dict[str, object]]:
    """Counters of ncu for one call of each op; without ncu, or its permission, why not."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return [{"op": "ncu", "case": "all", "variant": "fused", "reason": "ncu is not on PATH"}]
    command: Sequence[str] = (ncu, "--csv", "--metrics", ",".join(_COUNTERS))
    script = Path(__file__).with_name("gpu.py")
    listings = []
    for op in ("dense_kd", "sparse_kd"):
        call = (*command, sys.executable, str(script), "--out", str(out), "--only", op)
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
        listings.append(done.stdout + done.stderr)
    (out / "ncu.csv").write_text("\n".join(listings), encoding="utf-8")
    return []


def call_once(op: str) -> None:
    """One call of an op's first case, for a profiler to look at."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = OPS[op](device, is_tiny=device.type == "cpu")[0]
    ours = next(iter(case.variants.values()))
    ours(case.make_inputs(0))
