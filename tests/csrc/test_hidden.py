"""The hidden-state term of the loss ops on the CPU: what is refused, and what needs no logits.

Its values and gradients are cases of test_dense_kd.py.
"""

import pytest
import torch
from dense_kd_input import BF16, F32
from op_arguments import op_arguments

from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)

BYTES = torch.zeros(4, 3, 8, dtype=torch.int8)
FLOATS = torch.zeros(4, 3, 8)
SCALE = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("student", "teacher", "scales", "message"),
    [
        (
            FLOATS,
            BYTES,
            [],
            r"teacher_hidden\[0\] must be int8 where teacher_scale is given, and only",
        ),
        (FLOATS, FLOATS, [SCALE], r"teacher_hidden\[0\] must be int8 where teacher_scale is given"),
        (FLOATS, BYTES, [SCALE, SCALE], "must match layer by layer"),
        (FLOATS, BYTES, [SCALE[:3]], r"teacher_scale\[0\] must be float32 \[N, P\]"),
        (FLOATS, BYTES, [SCALE[:, :2]], r"teacher_scale\[0\] must be float32 \[N, P\]"),
        (FLOATS, BYTES, [SCALE[:, 0]], r"teacher_scale\[0\] must be float32 \[N, P\]"),
        (FLOATS, BYTES, [SCALE.double()], r"teacher_scale\[0\] must be float32 \[N, P\]"),
        (BYTES, BYTES, [SCALE], "student_hidden must be float32, bfloat16 or float16"),
    ],
)
def test_int8_states_and_scales_go_together(student, teacher, scales, message):
    positional, keywords = op_arguments()
    changed = (*positional[:5], [student], [teacher], scales, positional[8])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.dense_kd(*changed, **keywords)


@pytest.mark.parametrize("position", [0, 1])
def test_logits_are_never_int8(position):
    positional, keywords = op_arguments()
    logits = torch.zeros(4, 60, dtype=torch.int8)
    changed = (*positional[:position], logits, *positional[position + 1 :])
    with pytest.raises(RuntimeError, match="must be float32, bfloat16 or float16"):
        torch.ops.mkd_fast.dense_kd(*changed, **keywords)


def test_unknown_distance_is_refused():
    positional, keywords = op_arguments(hidden_distance="l1")
    with pytest.raises(RuntimeError, match="hidden_distance must be mse or cosine, got l1"):
        torch.ops.mkd_fast.dense_kd(*positional, **keywords)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_logits_leave_the_hidden_term_alone(reduction, dtype):
    positional, keywords = op_arguments(reduction=reduction)
    with_logits = torch.ops.mkd_fast.dense_kd(*positional[:2], None, *positional[3:], **keywords)
    nothing = torch.empty(4, 0, dtype=dtype)
    alone = torch.ops.mkd_fast.dense_kd(
        nothing, nothing, None, *positional[3:], **keywords | {"vocab_size": 0}
    )
    loss, kd, ce, hidden, grad_student, grad_hidden = alone
    assert torch.equal(hidden, with_logits[3])
    assert torch.equal(grad_hidden[0], with_logits[5][0])
    assert not kd.any()
    assert not ce.any()
    torch.testing.assert_close(loss, 0.1 * hidden)
    assert grad_student.shape == (4, 0)
