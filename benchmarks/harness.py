"""Times variants of one computation beside each other, and only those that compute it right.

Each round runs every variant once, and the streaming limit with them; the order turns by one from
round to round. Ratios are taken within a round and their median is reported, so that what slows
the whole machine down cancels out. A call never gets the inputs of the call before it: input sets
rotate, and together they are larger than the last cache. Before anything is timed, values and
gradients of each variant are judged against float64; one that errs is refused, not timed.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mkd_fast.benchmarks.roofline import StreamingLimit, last_cache_bytes

STREAM = "stream"


class InputSet(Protocol):
    """The tensors that one call works on."""

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""


Outputs = Sequence[Tensor]  # the value, then the gradients
Run = Callable[[Any], Outputs]


@dataclass(frozen=True)
class Budget:
    """How far ahead of a rival we have to be: its time over ours; ``STREAM`` is a rival too."""

    rival: str
    at_least: float


@dataclass(frozen=True, eq=False)
class Case:
    """One shape of an op and everyone who computes it.

    Attributes:
        name: unique within the op.
        make_inputs: a set of inputs from a seed.
        exact: the truth, computed in float64.
        plain: the same in plain torch, accumulated in float32; twice its error is allowed.
        variants: who competes; the first is ours.
        num_bytes: what the op has to move through memory in one call.
        budgets: what has to hold.
    """

    name: str
    make_inputs: Callable[[int], InputSet]
    exact: Run
    plain: Run
    variants: Mapping[str, Run]
    num_bytes: int
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Effort:
    """How long a case is measured; rounds go on until both the time and their minimum are over."""

    warmup_s: float = 0.3  # each variant
    measure_s: float = 10.0
    min_rounds: int = 9
    max_rounds: int = 200


TINY = Effort(warmup_s=0.0, measure_s=0.0, min_rounds=3, max_rounds=3)


@dataclass(frozen=True)
class Timing:
    """What was measured of one variant.

    Attributes:
        p20_ms, p50_ms, p80_ms: quantiles of one call, forward and gradient.
        ratio: its time over ours, median over the rounds.
        limit_gb_per_s: the streaming limit, measured in the same rounds.
        share_of_limit: of it that is used, counting ``Case.num_bytes`` and no more.
        extra_bytes: most memory held beyond the inputs; what is returned counts.
        error_of_budget: largest error of value and gradients, as a share of what is allowed.
    """

    variant: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    num_rounds: int
    ratio: float
    limit_gb_per_s: float
    share_of_limit: float
    extra_bytes: int
    error_of_budget: float


@dataclass(frozen=True, eq=False)
class Measurement:
    """A case with what came out: nothing is timed where ours is refused."""

    case: Case
    timings: tuple[Timing, ...]
    refused: dict[str, float]  # variant to error_of_budget, > 1 or NaN

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
    errors = _errors_of_budget(case, inputs)
    refused = {name: error for name, error in errors.items() if not error <= 1.0}
    measurement = Measurement(case, (), refused)
    if measurement.is_ours_wrong:
        return measurement
    variants = {name: run for name, run in case.variants.items() if name not in refused}
    extra_bytes = {name: peak_extra_bytes(run, inputs, device) for name, run in variants.items()}
    num_calls = effort.max_rounds * len(variants)
    num_sets = min(num_calls, 2 + 2 * last_cache_bytes(device) // inputs.num_bytes)
    input_sets = itertools.cycle([inputs, *map(case.make_inputs, range(1, num_sets))])
    calls = {name: _rotating(run, input_sets) for name, run in variants.items()}
    times_ms = _times_ms({**calls, STREAM: limit.run}, device, effort)
    streaming_ms = [ms * case.num_bytes / limit.num_bytes for ms in times_ms.pop(STREAM)]
    ours_ms = next(iter(times_ms.values()))
    timings = tuple(
        Timing(
            name,
            *_quantiles(variant_ms),
            num_rounds=len(variant_ms),
            ratio=_median_ratio(variant_ms, ours_ms),
            limit_gb_per_s=case.num_bytes / statistics.median(streaming_ms) / 1e6,
            share_of_limit=_median_ratio(streaming_ms, variant_ms),
            extra_bytes=extra_bytes[name],
            error_of_budget=errors[name],
        )
        for name, variant_ms in times_ms.items()
    )
    return replace(measurement, timings=timings)


def _rotating(run: Run, input_sets: Iterator[InputSet]) -> Callable[[], object]:
    return lambda: run(next(input_sets))


def _quantiles(times_ms: Sequence[float]) -> tuple[float, float, float]:
    fifths = statistics.quantiles(times_ms, n=5, method="inclusive")
    return fifths[0], statistics.median(times_ms), fifths[3]


def _median_ratio(times: Sequence[float], of: Sequence[float]) -> float:
    return statistics.median(time / base for time, base in zip(times, of, strict=True))


def _times_ms(
    calls: Mapping[str, Callable[[], object]], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round."""
    for call in calls.values():
        end = time.perf_counter() + effort.warmup_s
        while time.perf_counter() < end:
            _time_ms(call, device)
    names = list(calls)
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + effort.measure_s
    for number in range(effort.max_rounds):
        if number >= effort.min_rounds and time.perf_counter() >= end:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times_ms[name].append(_time_ms(calls[name], device))
    return times_ms


def _time_ms(call: Callable[[], object], device: torch.device) -> float:
    """One call; what it returns is freed after the clock has stopped."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        _kept = call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
    started = time.perf_counter()
    _kept = call()
    return 1e3 * (time.perf_counter() - started)


def _errors_of_budget(case: Case, inputs: InputSet) -> dict[str, float]:
    """Each variant's largest error as a share of the budget, NaN if it is not finite.

    The budget of an output is twice the error of plain torch plus one rounding of the largest
    entry, as in the tests.
    """
    exact, plain = case.exact(inputs), case.plain(inputs)
    budgets = [
        2.0 * _largest(ours - truth) + torch.finfo(ours.dtype).eps * _largest(truth)
        for ours, truth in zip(plain, exact, strict=True)
    ]
    errors = {}
    for name, run in case.variants.items():
        shares = [
            _largest(actual - truth) / max(budget, torch.finfo(torch.float64).tiny)
            for actual, truth, budget in zip(run(inputs), exact, budgets, strict=True)
        ]
        errors[name] = float(torch.tensor(shares, dtype=torch.float64).max())  # NaN wins
    return errors


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def peak_extra_bytes(run: Run, inputs: InputSet, device: torch.device) -> int:
    """Most memory that a call holds at once beyond what was held before it.

    On a GPU from the caching allocator's statistics. On a CPU from torch's profiler, which sees
    each block that torch's allocator hands out or takes back; memory that a kernel gets in
    another way is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
        _kept = run(inputs)
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it reports its start and stop at level 5
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        _kept = run(inputs)
    events = profile.profiler.kineto_results.events()
    blocks = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    sizes: list[int] = [block.nbytes() for block in blocks]  # negative where one is given back
    return max(itertools.accumulate(sizes, initial=0))
