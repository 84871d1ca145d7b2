"""What the harness promises: no row without a right result, cold inputs, honest memory."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from mkd_fast.benchmarks.case import STREAM, Budget, Case
from mkd_fast.benchmarks.harness import TINY, Effort, Measurement, measure
from mkd_fast.benchmarks.inputs import Inputs, Outputs, Run
from mkd_fast.benchmarks.memory import peak_extra_bytes
from mkd_fast.benchmarks.report import verdicts
from mkd_fast.benchmarks.roofline import StreamingLimit

CPU = torch.device("cpu")


def make_inputs(seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs({"x": torch.randn(1000, generator=generator), "seed": torch.tensor(seed)})


def squared(inputs: Inputs) -> Outputs:
    """A value and its gradient."""
    x = inputs.tensors[0]
    return x.square().sum(), 2 * x


@dataclass
class Recorder:
    """Variants that note who was called with which inputs."""

    calls: list[tuple[str, int]] = field(default_factory=list)

    def variant(self, name: str) -> Run:
        def run(inputs: Inputs) -> Outputs:
            self.calls.append((name, int(inputs.tensors[1])))
            return squared(inputs)

        return run


def case(**variants: Run) -> Case:
    return Case(
        "squares",
        make_inputs,
        exact=lambda inputs: squared(inputs.in_float64()),
        plain=squared,
        variants=variants,
        num_bytes=8000,
    )


@pytest.fixture
def measured(limit: StreamingLimit) -> Callable[[Case], Measurement]:
    return lambda case: measure(case, CPU, limit, TINY)


def value_is_off(inputs: Inputs) -> Outputs:
    value, gradient = squared(inputs)
    return value * 1.0001, gradient


def gradient_is_off(inputs: Inputs) -> Outputs:
    value, gradient = squared(inputs)
    gradient[17] *= 1.001
    return value, gradient


def gradient_is_nan(inputs: Inputs) -> Outputs:
    value, gradient = squared(inputs)
    gradient[17] = torch.nan
    return value, gradient


def gradient_is_missing(inputs: Inputs) -> Outputs:
    return squared(inputs)[:1]


def value_is_another(inputs: Inputs) -> Outputs:
    value, gradient = squared(inputs)
    return value * 1.02, gradient


def gradient_is_another(inputs: Inputs) -> Outputs:
    value, gradient = squared(inputs)
    return value, gradient * 1.02


WRONG = [value_is_off, gradient_is_off, gradient_is_nan]


@pytest.mark.parametrize(
    "wrong", [value_is_another, gradient_is_another, gradient_is_nan, gradient_is_missing]
)
def test_a_rival_that_errs_is_refused_and_not_timed(
    wrong: Run, measured: Callable[[Case], Measurement]
) -> None:
    measurement = measured(case(ours=squared, rival=wrong, other=squared))
    assert [timing.variant for timing in measurement.timings] == ["ours", "other"]
    assert list(measurement.refused) == ["rival"]
    assert measurement.ratio("rival") is None
    assert any("refused: rival" in line for line in verdicts(measurement))


@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_is_timed_where_ours_errs_a_little(
    wrong: Run, measured: Callable[[Case], Measurement]
) -> None:
    measurement = measured(case(ours=wrong, rival=squared))
    assert measurement.is_ours_wrong
    assert measurement.timings == ()


def test_what_a_rival_raises_is_told_and_what_ours_raises_is_raised(
    measured: Callable[[Case], Measurement],
) -> None:
    def broken(inputs: Inputs) -> Outputs:
        raise NotImplementedError("no such dtype\nand a long story")

    measurement = measured(case(ours=squared, rival=broken))
    assert measurement.refused == {"rival": "NotImplementedError: no such dtype"}
    with pytest.raises(NotImplementedError):
        measured(case(ours=broken, rival=squared))


@pytest.mark.parametrize("rough", [value_is_off, gradient_is_off])
def test_a_rival_may_err_a_little_and_its_error_is_told(
    rough: Run, measured: Callable[[Case], Measurement]
) -> None:
    timed = measured(case(ours=squared, rival=rough)).timings
    assert [timing.variant for timing in timed] == ["ours", "rival"]
    assert timed[1].error_of_budget > 1.0


def test_a_rival_may_be_as_wrong_as_its_dtype_but_we_may_not(
    measured: Callable[[Case], Measurement],
) -> None:
    def in_bfloat16(inputs: Inputs) -> Outputs:
        x = inputs.tensors[0].bfloat16()
        return x.square().sum().float(), (2 * x).float()

    rough = replace(case(ours=squared, rival=in_bfloat16), rough=in_bfloat16)
    timed = measured(rough).timings
    assert [timing.variant for timing in timed] == ["ours", "rival"]
    assert timed[1].error_of_budget > 1.0  # and says so
    assert measured(replace(rough, variants={"ours": in_bfloat16})).is_ours_wrong


def test_a_yardstick_is_timed_and_not_judged(measured: Callable[[Case], Measurement]) -> None:
    with_limit = replace(case(ours=squared), yardsticks={"bound": value_is_off}, limit="bound")
    ours, bound = measured(with_limit).timings
    assert bound.variant == "bound"
    assert bound.share_of_limit == 1.0
    assert ours.share_of_limit > 0.0


def test_what_is_judged_may_be_smaller(measured: Callable[[Case], Measurement]) -> None:
    recorder = Recorder()
    judged = replace(case(ours=recorder.variant("ours")), judged_inputs=lambda: make_inputs(99))
    measured(judged)
    seeds = [seed for _, seed in recorder.calls]
    assert seeds[0] == 99
    assert 99 not in seeds[1:]


def test_rounds_run_every_variant_once_in_turned_order(
    measured: Callable[[Case], Measurement],
) -> None:
    recorder = Recorder()
    measured(case(a=recorder.variant("a"), b=recorder.variant("b")))
    before, timed = recorder.calls[:6], recorder.calls[6:]
    assert [name for name, _ in before] == ["a", "b", "a", "a", "b", "b"]  # judged, warm, weighed
    # rounds a b stream, b stream a, stream a b
    assert [name for name, _ in timed] == ["a", "b", "b", "a", "a", "b"]


def test_no_call_gets_the_inputs_of_the_call_before(
    measured: Callable[[Case], Measurement],
) -> None:
    recorder = Recorder()
    measured(case(a=recorder.variant("a"), b=recorder.variant("b")))
    seeds = [seed for _, seed in recorder.calls[6:]]
    assert seeds == [0, 1, 2, 3, 4, 5]  # as many sets as calls, where they are small


def test_rounds_end_after_their_minimum_and_the_time(limit: StreamingLimit) -> None:
    effort = Effort(warmup_s=0.0, measure_s=0.0, min_rounds=4, max_rounds=9)
    measurement = measure(case(ours=squared), CPU, limit, effort)
    assert measurement.timings[0].num_rounds == 4
    long = replace(effort, measure_s=60.0)
    assert measure(case(ours=squared), CPU, limit, long).timings[0].num_rounds == 9


def test_ours_has_the_ratio_one_and_quantiles_are_in_order(
    measured: Callable[[Case], Measurement],
) -> None:
    ours, rival = measured(case(ours=squared, rival=squared)).timings
    assert ours.ratio_p20 == ours.ratio == ours.ratio_p80 == 1.0
    for timing in (ours, rival):
        assert 0.0 < timing.p20_ms <= timing.p50_ms <= timing.p80_ms
        assert 0.0 < timing.ratio_p20 <= timing.ratio <= timing.ratio_p80
        assert timing.share_of_limit > 0.0
        assert timing.requested_bytes == 8000
        assert 0.0 <= timing.error_of_budget <= 1.0


def test_peak_memory_counts_what_is_held_at_once() -> None:
    x = torch.ones(64 << 18)

    def run() -> Tensor:
        doubled = x * 2.0
        result = doubled + 1.0  # two of them at once
        del doubled
        return result - 1.0  # and two again

    run()
    extra_bytes = statistics.median(peak_extra_bytes(run, CPU) for _ in range(3))
    assert round(extra_bytes / x.nbytes) == 2


def test_peak_memory_sees_what_torch_does_not_allocate() -> None:
    extra_bytes = peak_extra_bytes(lambda: len(bytearray(64 << 20)), CPU)
    assert round(extra_bytes / (64 << 20)) == 1


def test_a_budget_is_told_with_its_verdict(measured: Callable[[Case], Measurement]) -> None:
    measurement = measured(case(ours=squared, rival=squared))
    budgets = (Budget("rival", 0.0), Budget(STREAM, 1e9), Budget("absent", 1.0))
    judged = replace(measurement, case=replace(measurement.case, budgets=budgets))
    held, broken, unknown = verdicts(judged)
    assert held.startswith("budget: >= 0x rival: ")
    assert held.endswith("x, holds")
    assert broken.endswith("%, DOES NOT HOLD")
    assert unknown == "budget: >= 1x absent: not measured"
