"""Times variants of one computation beside each other, and only those that compute it right.

Each round runs every variant once, and the streaming limit with them; the order turns by one from
round to round. Ratios are taken within a round and their quantiles are reported, so that what
slows the whole machine down cancels out. A call never gets the inputs of the call before it:
input sets rotate, and together they are larger than the last cache. Before anything is timed,
values and gradients of each variant are judged against float64 (judge.py).
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mkd_fast.benchmarks.case import STREAM, Case
from mkd_fast.benchmarks.inputs import Inputs, Run
from mkd_fast.benchmarks.judge import Verdict, judge
from mkd_fast.benchmarks.memory import peak_extra_bytes
from mkd_fast.benchmarks.roofline import StreamingLimit, last_cache_bytes

_SPIN_CYCLES = 2_000_000  # of a GPU: about a millisecond


@dataclass(frozen=True)
class Effort:
    """How long a case is measured; rounds go on until both the time and their minimum are over."""

    warmup_s: float = 0.3  # each variant, at least one call
    measure_s: float = 6.0
    min_rounds: int = 3
    max_rounds: int = 200


TINY = Effort(warmup_s=0.0, measure_s=0.0, min_rounds=3, max_rounds=3)


@dataclass(frozen=True)
class Timing:
    """What was measured of one variant.

    Attributes:
        p20_ms, p50_ms, p80_ms: quantiles of one call, forward and gradient.
        ratio, ratio_p20, ratio_p80: its time over ours, median and quantiles over the rounds.
        requested_bytes: what the op has to move, ``Case.num_bytes``.
        limit_gb_per_s: the streaming limit, measured in the same rounds.
        share_of_limit: the limit's time over the variant's; streaming ``requested_bytes``, or the
            case's own limit.
        extra_mb: most memory held beyond the inputs, 10^6 bytes; what is returned counts.
        error_of_budget: largest error of value and gradients, as a share of what float32 sums may
            err; NaN for a yardstick.
    """

    variant: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    num_rounds: int
    ratio: float
    ratio_p20: float
    ratio_p80: float
    requested_bytes: int
    limit_gb_per_s: float
    share_of_limit: float
    extra_mb: float
    error_of_budget: float


@dataclass(frozen=True, eq=False)
class Measurement:
    """A case with what came out: nothing is timed where ours is refused."""

    case: Case
    timings: tuple[Timing, ...]
    refused: dict[str, str]  # variant to why

    @property
    def is_ours_wrong(self) -> bool:
        """Whether our own variant was refused."""
        return next(iter(self.case.variants)) in self.refused

    def ratio(self, rival: str) -> float | None:
        """The rival's time over ours; None where it was not timed."""
        if rival == STREAM and self.timings:
            return self.timings[0].share_of_limit
        return next((row.ratio for row in self.timings if row.variant == rival), None)


def measure(case: Case, device: torch.device, limit: StreamingLimit, effort: Effort) -> Measurement:
    """Judge, then time every variant of a case."""
    inputs = case.make_inputs(0)
    verdicts = judge(case, case.judged_inputs() if case.judged_inputs else inputs)
    refused = {name: verdict.refused for name, verdict in verdicts.items() if verdict.refused}
    ours = next(iter(case.variants))
    if ours in refused:
        return Measurement(case, (), refused)
    runs = {name: run for name, run in case.variants.items() if name not in refused}
    runs.update(case.yardsticks)
    extra_bytes = {}
    for name, run in runs.items():
        call = partial(run, inputs)
        try:
            _warm_up(call, device, effort.warmup_s)
            extra_bytes[name] = peak_extra_bytes(call, device)
        except torch.OutOfMemoryError:
            refused[name] = "out of memory"
    runs = {name: run for name, run in runs.items() if name in extra_bytes}
    if ours in refused:
        return Measurement(case, (), refused)
    num_calls = effort.max_rounds * len(runs)
    num_sets = min(num_calls, 2 + 2 * last_cache_bytes(device) // inputs.num_bytes)
    input_sets = itertools.cycle([inputs, *map(case.make_inputs, range(1, num_sets))])
    calls = {name: _rotating(run, input_sets) for name, run in runs.items()}
    limit.run()  # from now on its pages are there
    times_ms = _times_ms({**calls, STREAM: limit.run}, device, effort)
    streaming_ms = [ms * case.num_bytes / limit.num_bytes for ms in times_ms.pop(STREAM)]
    timings = _timings(case, times_ms, streaming_ms, extra_bytes, verdicts)
    return Measurement(case, timings, refused)


def _timings(
    case: Case,
    times_ms: Mapping[str, Sequence[float]],
    streaming_ms: Sequence[float],
    extra_bytes: Mapping[str, float],
    verdicts: Mapping[str, Verdict],
) -> tuple[Timing, ...]:
    ours_ms = next(iter(times_ms.values()))
    limit_ms = times_ms.get(case.limit, streaming_ms)
    rows = []
    for name, variant_ms in times_ms.items():
        ratio_p20, ratio, ratio_p80 = _quantiles(_quotients(variant_ms, ours_ms))
        p20_ms, p50_ms, p80_ms = _quantiles(variant_ms)
        verdict = verdicts.get(name)
        row = Timing(
            variant=name,
            p20_ms=p20_ms,
            p50_ms=p50_ms,
            p80_ms=p80_ms,
            num_rounds=len(variant_ms),
            ratio=ratio,
            ratio_p20=ratio_p20,
            ratio_p80=ratio_p80,
            requested_bytes=case.num_bytes,
            limit_gb_per_s=case.num_bytes / statistics.median(streaming_ms) / 1e6,
            share_of_limit=statistics.median(_quotients(limit_ms, variant_ms)),
            extra_mb=extra_bytes[name] / 1e6,
            error_of_budget=verdict.error_of_budget if verdict else float("nan"),
        )
        rows.append(row)
    return tuple(rows)


def _warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> None:
    """What is done only once, torch.compile's work above all, is done here."""
    end = time.perf_counter() + seconds
    time_ms(call, device)
    while time.perf_counter() < end:
        time_ms(call, device)


def _rotating(run: Run, input_sets: Iterator[Inputs]) -> Callable[[], object]:
    return lambda: run(next(input_sets))


def _quotients(times: Sequence[float], of: Sequence[float]) -> list[float]:
    return [time / base for time, base in zip(times, of, strict=True)]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def _times_ms(
    calls: Mapping[str, Callable[[], object]], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round."""
    names = list(calls)
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + effort.measure_s
    for number in range(effort.max_rounds):
        if number >= effort.min_rounds and time.perf_counter() >= end:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times_ms[name].append(time_ms(calls[name], device))
    return times_ms


def time_ms(call: Callable[[], object], device: torch.device) -> float:
    """One call; what it returns is freed after the clock has stopped.

    A GPU is kept busy while the host prepares the call, so that what it does is timed rather than
    how fast Python hands it over.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SPIN_CYCLES)
        start.record()
        _kept = call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
    started = time.perf_counter()
    _kept = call()
    return 1e3 * (time.perf_counter() - started)
