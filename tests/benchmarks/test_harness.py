"""What the harness promises: no row without a right result, cold inputs, honest memory."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from mkd_fast.benchmarks.harness import (
    STREAM,
    TINY,
    Budget,
    Case,
    Effort,
    Measurement,
    Run,
    measure,
    peak_extra_bytes,
)
from mkd_fast.benchmarks.results import verdicts
from mkd_fast.benchmarks.roofline import StreamingLimit

CPU = torch.device("cpu")
LIMIT = StreamingLimit.on(CPU, is_tiny=True)


@dataclass(frozen=True, eq=False)
class Inputs:
    x: Tensor
    seed: int

    @property
    def num_bytes(self) -> int:
        return self.x.nbytes


def make_inputs(seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs(torch.randn(1000, generator=generator), seed)


def squared(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """A value and its gradient."""
    return inputs.x.square().sum(), 2 * inputs.x


@dataclass
class Recorder:
    """Variants that note who was called with which inputs."""

    calls: list[tuple[str, int]] = field(default_factory=list)

    def variant(self, name: str) -> Run:
        def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
            self.calls.append((name, inputs.seed))
            return squared(inputs)

        return run


def case(**variants: Run) -> Case:
    return Case(
        "squares",
        make_inputs,
        exact=lambda inputs: squared(Inputs(inputs.x.double(), inputs.seed)),
        plain=squared,
        variants=variants,
        num_bytes=8000,
    )


def measured(**variants: Run) -> Measurement:
    return measure(case(**variants), CPU, LIMIT, TINY)


def value_is_off(inputs: Inputs) -> tuple[Tensor, Tensor]:
    value, gradient = squared(inputs)
    return value * 1.0001, gradient


def gradient_is_off(inputs: Inputs) -> tuple[Tensor, Tensor]:
    value, gradient = squared(inputs)
    gradient[17] *= 1.001
    return value, gradient


def gradient_is_nan(inputs: Inputs) -> tuple[Tensor, Tensor]:
    value, gradient = squared(inputs)
    gradient[17] = torch.nan
    return value, gradient


WRONG = [value_is_off, gradient_is_off, gradient_is_nan]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_rival_that_errs_is_refused_and_not_timed(wrong: Run) -> None:
    measurement = measured(ours=squared, rival=wrong, other=squared)
    assert [timing.variant for timing in measurement.timings] == ["ours", "other"]
    assert list(measurement.refused) == ["rival"]
    assert measurement.ratio("rival") is None
    assert any("refused: rival" in line for line in verdicts(measurement))


@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_is_timed_where_ours_errs(wrong: Run) -> None:
    measurement = measured(ours=wrong, rival=squared)
    assert measurement.is_ours_wrong
    assert measurement.timings == ()


def test_an_output_with_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        measured(ours=lambda inputs: squared(inputs)[:1])


def test_rounds_run_every_variant_once_in_turned_order() -> None:
    recorder = Recorder()
    measured(a=recorder.variant("a"), b=recorder.variant("b"))
    judged_and_profiled, timed = recorder.calls[:4], recorder.calls[4:]
    assert [name for name, _ in judged_and_profiled] == ["a", "b", "a", "b"]
    # rounds a b stream, b stream a, stream a b
    assert [name for name, _ in timed] == ["a", "b", "b", "a", "a", "b"]


def test_no_call_gets_the_inputs_of_the_call_before() -> None:
    recorder = Recorder()
    measured(a=recorder.variant("a"), b=recorder.variant("b"))
    seeds = [seed for _, seed in recorder.calls[4:]]
    assert seeds == [0, 1, 2, 3, 4, 5]  # as many sets as calls, where they are small


def test_rounds_end_after_their_minimum_and_the_time() -> None:
    effort = Effort(warmup_s=0.0, measure_s=0.0, min_rounds=4, max_rounds=9)
    measurement = measure(case(ours=squared), CPU, LIMIT, effort)
    assert measurement.timings[0].num_rounds == 4
    long = replace(effort, measure_s=60.0)
    assert measure(case(ours=squared), CPU, LIMIT, long).timings[0].num_rounds == 9


def test_ours_has_the_ratio_one_and_quantiles_are_in_order() -> None:
    ours, rival = measured(ours=squared, rival=squared).timings
    assert ours.ratio == 1.0
    for timing in (ours, rival):
        assert 0.0 < timing.p20_ms <= timing.p50_ms <= timing.p80_ms
        assert timing.ratio > 0.0
        assert timing.share_of_limit > 0.0
        assert 0.0 <= timing.error_of_budget <= 1.0


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def run(inputs: Inputs) -> tuple[Tensor]:
        doubled = inputs.x * 2.0
        result = doubled + 1.0  # two of them at once
        del doubled
        return (result - 1.0,)  # and two again

    inputs = make_inputs(0)
    run(inputs)
    scalars = 64  # torch makes tensors of numbers
    assert 0 <= peak_extra_bytes(run, inputs, CPU) - 2 * inputs.num_bytes <= scalars


def test_a_budget_is_told_with_its_verdict() -> None:
    measurement = measured(ours=squared, rival=squared)
    budgets = (Budget("rival", 0.0), Budget(STREAM, 1e9), Budget("absent", 1.0))
    judged = replace(measurement, case=replace(measurement.case, budgets=budgets))
    held, broken, unknown = verdicts(judged)
    assert held.startswith("budget: >= 0x rival: ")
    assert held.endswith("x, holds")
    assert broken.endswith("%, DOES NOT HOLD")
    assert unknown == "budget: >= 1x absent: not measured"
