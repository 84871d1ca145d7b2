"""Rows that would leave threads idle are split between them, and mean the same."""

import pytest
import torch
from dense_kd_input import BF16, F32, case
from kd_evaluation import assert_all_within_budget, evaluate, exact_and_plain

from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)


def rising(num_rows, num_columns, **fields):
    """Each part's largest logit is larger than that of the part before."""
    arguments = case(num_rows, num_columns, **fields)
    arguments["student_logits"] += torch.linspace(0, 60, num_columns)
    return arguments


def empty_part(num_rows, num_columns):
    """A part of the row without any probability, on either side."""
    arguments = case(num_rows, num_columns, has_labels=False)
    for side in ("student_logits", "teacher"):
        arguments[side][:, : num_columns // 2] = -torch.inf
    return arguments


CASES = {
    "one row": case(1, 40_003, temperature=2.0),
    "one row more than threads": case(4, 30_000),
    "fewer rows than threads": case(2, 50_001, dtypes=(BF16, F32), temperature=3.0),
    "a row that does not count": case(2, 30_000, mask=torch.tensor([False, True])),
    "the label in the last part": case(1, 40_000, labels=torch.tensor([39_999])),
    "padded vocabulary": case(2, 40_000, vocab_size=36_001),
    **{
        f"the maximum rises from part to part, temperature {t}": rising(1, 40_000, temperature=t)
        for t in (0.7, 1.0, 2.0)
    },
    "a part of no probability": empty_part(1, 40_000),
    "no kd weight": case(1, 40_000, kd_weight=0.0),
    "fewer columns than two parts": case(1, 10_000),
    "reverse_kl, whose value takes one sweep": case(1, 40_000, divergence="reverse_kl"),
    "jsd, whose value takes two": case(1, 40_003, divergence="jsd", temperature=2.0),
    "logit_mse": case(1, 40_000, divergence="logit_mse"),
    "jsd without kd weight": case(2, 30_000, divergence="jsd", kd_weight=0.0),
    "softcap": case(1, 40_000, softcap=5.0),
    "jsd, padded vocabulary, past the caches": case(
        1, 1_200_000, size=1.0, divergence="jsd", vocab_size=1_150_001
    ),
    "past the caches": case(1, 1_200_000, size=1.0),
}


@pytest.fixture(params=[2, 3], ids=["2 threads", "3 threads"], autouse=True)
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_split_rows_are_within_the_error_budget(name):
    arguments = CASES[name]
    assert_all_within_budget(evaluate(arguments, "fused"), *exact_and_plain(arguments))


@pytest.mark.parametrize("_threads", [3], indirect=True)
def test_as_many_rows_as_parts_stay_whole():
    arguments = case(2, 20_000)  # two parts: two rows in turn take no less than both at once
    many = evaluate(arguments, "fused")
    torch.set_num_threads(1)
    for what, value in evaluate(arguments, "fused").items():
        assert torch.equal(value, many[what]), what
