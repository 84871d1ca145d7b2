"""Every case of the loss ops under every instruction set of this machine, against float64.

A process chooses its instruction set once, so this module runs itself as a script, which writes
what the fused path returns for all cases.
"""

import functools
import sys
from pathlib import Path

import dense_kd_cases
import pytest
import sparse_kd_cases
import torch
from dense_kd_input import F32
from instruction_sets import available_capabilities, results_of, run_with
from kd_evaluation import GRADIENT, Case, assert_all_within_budget, evaluate, exact_and_plain

from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)

CASES: dict[str, Case] = {
    f"{op}: {name}": arguments
    for op, cases in (("dense_kd", dense_kd_cases.CASES), ("sparse_kd", sparse_kd_cases.CASES))
    for name, arguments in cases.items()
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each instruction set returns for every case."""
    return results_of(__file__, tmp_path_factory.mktemp("results"))


@functools.cache
def judges(name):
    return exact_and_plain(CASES[name])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("capability", available_capabilities())
def test_within_the_error_budget(results, capability, name):
    assert_all_within_budget(results(capability)[name], *judges(name))


@pytest.mark.parametrize("capability", available_capabilities())
@pytest.mark.parametrize("divergence", dense_kd_cases.DIVERGENCES)
def test_gradient_rows_sum_to_zero(results, capability, divergence):
    name = f"dense_kd: {divergence} over several blocks"
    grad, plain = results(capability)[name][GRADIENT].double(), judges(name)[1][GRADIENT].double()
    rounding = torch.finfo(F32).eps * grad.abs().sum(-1).max()
    assert grad.sum(-1).abs().max() <= 2 * plain.sum(-1).abs().max() + rounding


def test_unknown_capability_is_refused():
    finished = run_with("avx9000", __file__)
    assert finished.returncode != 0
    assert "MKD_FAST_CPU_CAPABILITY must be one that this machine has" in finished.stderr
    assert "got avx9000. Unset it for the best one." in finished.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    fused = {name: evaluate(arguments, "fused") for name, arguments in CASES.items()}
    torch.save(fused, Path(sys.argv[1]))
