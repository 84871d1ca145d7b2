"""mkd_fast::dense_kd and scale_ on the CPU; its accuracy is in test_instruction_sets.py."""

import platform

import pytest
import torch
from dense_kd_cases import CASES, DIVERGENCES
from dense_kd_input import BF16, F16, F32, case, normal
from kd_evaluation import GRADIENT, evaluate
from op_arguments import op_arguments

from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["student_logits", "teacher"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("num_columns", [60, 2500])
def test_a_broken_logit_breaks_its_token_alone(num_columns, divergence, side, value):
    arguments = case(4, num_columns, has_labels=False, **DIVERGENCES[divergence])
    arguments[side][2, num_columns // 2] = value
    out = evaluate(arguments, "fused")
    is_broken = torch.tensor([False, False, True, False])
    assert torch.equal(out["loss"].isnan(), is_broken)
    assert torch.equal(out[GRADIENT].isnan().any(-1), is_broken)


def test_a_term_without_weight_cannot_break_the_loss():
    arguments = case(4, 60, kd_weight=0.0)
    clean = evaluate(arguments, "fused")
    arguments["teacher"][1] = torch.nan
    broken = evaluate(arguments, "fused")
    assert broken["kd"].isnan().tolist() == [False, True, False, False]
    for what in ("loss", GRADIENT):
        assert torch.equal(broken[what], clean[what])


def test_no_weight_at_all():
    arguments = case(4, 60, kd_weight=0.0, ce_weight=0.0, labels=torch.arange(4))
    arguments["student_logits"][1, 7] = torch.nan
    out = evaluate(arguments, "fused")
    assert not out["loss"].any()
    assert not out[GRADIENT].any()
    assert out["kd"].all()


def test_rows_further_apart_than_32_bits_count():
    columns = 60
    storage = torch.empty(2**31 + columns, dtype=F16)  # of which two rows are ever touched
    rows = storage.as_strided((2, columns), (2**31, 1))
    rows.copy_(normal(2, columns, seed=0))
    arguments = {"student_logits": rows, "teacher": normal(2, columns, seed=1)}
    far = evaluate(arguments, "fused")
    near = evaluate(arguments | {"student_logits": rows.contiguous()}, "fused")
    for what, value in near.items():
        assert torch.equal(far[what], value)


def test_the_number_of_threads_changes_nothing():
    before = torch.get_num_threads()
    outputs = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        outputs.append(evaluate(CASES["mean"], "fused"))
    torch.set_num_threads(before)
    for what, value in outputs[0].items():
        assert torch.equal(value, outputs[1][what])


@pytest.mark.parametrize("label", [73, 60, -1])
def test_label_out_of_range(label):
    positional, keywords = op_arguments()  # the op itself: kd_loss finds such labels before it
    positional[2][3] = label
    with pytest.raises(
        RuntimeError,
        match=rf"kd_loss: labels must lie in \[0, 60\) or be ignore_index=-100, got {label} at "
        r"token 3\. Set labels of tokens that do not count to ignore_index\.",
    ):
        torch.ops.mkd_fast.dense_kd(*positional, **keywords)


@pytest.mark.parametrize(
    "changes",
    [{}, {"reduction": "none"}, {"needs_grad_student": False, "needs_grad_hidden": False}],
    ids=["mean", "none", "no gradients"],
)
def test_opcheck_dense_kd(changes):
    positional, keywords = op_arguments(**changes)
    torch.library.opcheck(torch.ops.mkd_fast.dense_kd, positional, keywords)


def test_opcheck_scale():
    torch.library.opcheck(torch.ops.mkd_fast.scale_, (normal(4, 6, seed=0), torch.tensor(2.0)))


def test_unknown_divergence_is_refused():
    positional, keywords = op_arguments(divergence="kl")
    with pytest.raises(
        RuntimeError, match=r"kd_loss: divergence must be one of LossSpec's, got kl"
    ):
        torch.ops.mkd_fast.dense_kd(*positional, **keywords)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, torch.zeros(3, 60), "teacher must be"),
        (1, torch.zeros(4, 59), "teacher must be"),
        (0, torch.zeros(4, 59), r"vocab_size must lie in \[1, 59\], got 60"),
        (1, torch.zeros(4, 60, dtype=torch.float64), "teacher must be float32, bfloat16 or"),
        (2, torch.zeros(3, dtype=torch.int64), "labels must be int64"),
        (2, torch.zeros(4, dtype=torch.int32), "labels must be int64"),
        (3, torch.zeros(5, dtype=torch.bool), "mask bool"),
        (4, torch.tensor(4), "num_tokens must be float32"),
        (5, [], "must match layer by layer"),
        (6, [torch.zeros(4, 3, 9)], "hidden states must be .* alike on both sides; layer 0"),
        (8, torch.zeros(4, 2, dtype=torch.bool), "hidden_mask must be bool"),
    ],
)
def test_the_op_reads_no_foreign_memory(position, value, message):
    positional, keywords = op_arguments()
    changed = (*positional[:position], value, *positional[position + 1 :])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.dense_kd(*changed, **keywords)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("shape", [(5, 1031), (5, 3, 7), (0, 4), (5, 0)])
def test_scale_multiplies_rows(shape, dtype):
    grad = normal(*shape, seed=0, dtype=dtype)
    factors = torch.tensor([1.0, 0.0, -2.5, 1e-3, 3.0])[: shape[0]]
    expected = (grad.float() * factors.view(-1, *[1] * (grad.dim() - 1))).to(dtype)
    torch.ops.mkd_fast.scale_(grad, factors)
    assert torch.equal(grad, expected)


def test_scale_by_one_touches_nothing():
    grad = torch.full((3, 4), torch.nan)
    bits = grad.view(torch.int32).clone()
    torch.ops.mkd_fast.scale_(grad, torch.tensor(1.0))
    assert torch.equal(grad.view(torch.int32), bits)


@pytest.mark.parametrize(
    ("grad", "scale", "message"),
    [
        (torch.ones(3, 4), torch.ones(2), "scale must have one entry or one for each of the 3"),
        (torch.ones(3, 4), torch.ones((), dtype=torch.float64), "scale must be float32"),
        (torch.ones(4, 3).T, torch.ones(()), "grad must be contiguous within a row"),
        (torch.ones(3, 4, dtype=torch.float64), torch.ones(()), "must be float32, bfloat16 or"),
    ],
    ids=["rows", "scale dtype", "strides", "grad dtype"],
)
def test_scale_refuses(grad, scale, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.scale_(grad, scale)


def test_capability_fits_the_machine():
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    assert torch.ops.mkd_fast.cpu_capability() in (
        ("plain", "avx2", "avx512") if is_x86 else ("plain",)
    )
