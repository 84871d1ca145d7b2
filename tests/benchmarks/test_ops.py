"""Tiny shapes of every case of every op, so that no benchmark can rot."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mkd_fast.benchmarks import dense_kd, hidden, sparse_kd
from mkd_fast.benchmarks.case import Case
from mkd_fast.benchmarks.harness import TINY, measure
from mkd_fast.benchmarks.judge import judge
from mkd_fast.benchmarks.memory import peak_extra_bytes
from mkd_fast.benchmarks.roofline import StreamingLimit
from mkd_fast.benchmarks.run import OPS

CPU = torch.device("cpu")
CASES = [(op, case) for op in OPS for case in OPS[op](CPU, is_tiny=True)]
by_case = pytest.mark.parametrize(
    "case", [case for _, case in CASES], ids=[f"{op}, {case.name}" for op, case in CASES]
)
one_of_each_op = pytest.mark.parametrize("cases_of", OPS.values(), ids=OPS)


@by_case
def test_every_variant_is_right_and_timed(case: Case, limit: StreamingLimit) -> None:
    kept = case.without(["torch.compile"])
    measurement = measure(kept, CPU, limit, TINY)
    assert measurement.refused == {}
    timed = [timing.variant for timing in measurement.timings]
    assert timed == [*kept.variants, *kept.yardsticks]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # imported by torch.compile
def test_torch_compile_is_right_and_timed(limit: StreamingLimit) -> None:
    measurement = measure(dense_kd.cases(CPU, is_tiny=True)[0], CPU, limit, TINY)
    assert measurement.refused == {}
    assert measurement.ratio("torch.compile") is not None


@by_case
def test_speed(case: Case, benchmark: BenchmarkFixture) -> None:
    """For pytest-benchmark; the suite runs it once."""
    ours = next(iter(case.variants))
    inputs = case.make_inputs(0)
    loss, *gradients = benchmark(case.variants[ours], inputs)
    assert loss.isfinite()
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in inputs.leaves]
    assert judge(case.without(case.rivals), inputs)[ours].refused is None


@one_of_each_op
def test_cases_have_names_of_their_own(cases_of: object) -> None:
    for is_tiny in (True, False):
        names = [case.name for case in cases_of(CPU, is_tiny=is_tiny)]
        assert len(set(names)) == len(names)


def test_the_fused_op_holds_its_gradient_and_no_more() -> None:
    case = dense_kd.make_case(dense_kd.Shape(torch.float32, 256, 32_000), CPU)
    inputs = case.make_inputs(0)
    gradient_bytes = 256 * 32_000 * 4
    extra_bytes = peak_extra_bytes(lambda: case.variants["fused"](inputs), CPU)
    assert gradient_bytes <= extra_bytes <= 1.1 * gradient_bytes


def test_bytes_are_what_dense_kd_moves() -> None:
    few_columns = dense_kd.Shape(torch.float32, 100, 60)
    assert dense_kd.make_case(few_columns, CPU).num_bytes == 100 * 60 * 12
    with_hidden = dense_kd.Shape(torch.float32, 100, 60, num_layers=2, num_positions=5, width=7)
    assert dense_kd.make_case(with_hidden, CPU).num_bytes == 100 * 60 * 12 + 2 * 500 * 7 * 12
    gpu = torch.device("cuda")
    assert dense_kd.num_bytes_moved(few_columns, gpu) == 100 * 60 * 12  # a pair fits on chip
    large = dense_kd.Shape(torch.bfloat16, 100, 128_256)
    assert dense_kd.num_bytes_moved(large, gpu) == 100 * 128_256 * 10  # it is read twice


def test_bytes_are_what_sparse_kd_moves() -> None:
    shape = sparse_kd.Shape(torch.bfloat16, 100, 32_000, 64)
    kept = 100 * (64 * (4 + 2) + 4)
    assert sparse_kd.num_bytes_moved(shape, CPU) == 100 * 32_000 * 4 + kept


def test_bytes_are_what_hidden_loss_moves() -> None:
    shape = hidden.Shape(torch.bfloat16, num_layers=2, num_tokens=10, width=8)
    assert shape.num_bytes == 2 * 10 * 8 * 6
    int8 = hidden.Shape(torch.bfloat16, num_layers=2, num_tokens=10, width=8, is_int8=True)
    assert int8.num_bytes == 2 * 10 * (8 * 5 + 4)
