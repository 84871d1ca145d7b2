"""The hidden-state term of the Triton kernels against float64: on a GPU, else interpreted."""

from typing import Any

import pytest
import torch
from dense_kd_input import BF16, F16, F32, normal
from hidden_cases import CASES, int8
from kd_evaluation import assert_all_within_budget, evaluate, exact_and_plain
from torch import Tensor

from mkd_fast import Int8Hidden, hidden_loss, kd_loss
from mkd_fast.kernels.arguments import Inputs


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_within_budget_of_float64(name: str, device: str) -> None:
    actual = evaluate(CASES[name], "fused", device)
    assert_all_within_budget(actual, *exact_and_plain(CASES[name], device))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_needs_no_logits(dtype: torch.dtype, reduction: Any, distance: Any, device: str) -> None:
    student = normal(5, 3, 40, seed=0, dtype=dtype).to(device).requires_grad_()
    teacher = normal(5, 3, 40, seed=1, dtype=dtype).to(device)
    alone = hidden_loss(student, teacher, distance=distance, reduction=reduction, impl="fused")
    logits = normal(5, 3, 7, seed=2).to(device)
    beside = kd_loss(
        logits, logits, student_hidden=student, teacher_hidden=teacher, kd_weight=0.0,
        hidden_weight=1.0, hidden_distance=distance, reduction=reduction, impl="fused",
    ).loss  # fmt: skip
    assert torch.equal(alone, beside)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (alone, beside)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_positions_that_do_not_count_may_hold_anything(distance: Any, device: str) -> None:
    student, teacher = normal(2, 3, 40, seed=0), normal(2, 3, 40, seed=1)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for states in (student, teacher):
        states[~mask] = torch.nan
    student = student.to(device).requires_grad_()
    loss = hidden_loss(
        student, teacher.to(device), distance=distance, hidden_mask=mask.to(device), impl="fused"
    )
    assert loss.isfinite()
    (grad,) = torch.autograd.grad(loss, student)
    assert not grad[~mask].any()
    assert grad[mask].isfinite().all()


def test_alignment_is_that_of_the_narrower_side() -> None:
    def alignments(student: Tensor, teacher: Any) -> tuple[int, ...]:
        values = teacher.values if isinstance(teacher, Int8Hidden) else teacher
        nothing = student.new_empty(len(student), 0)
        inputs = Inputs(nothing, None, None, None, [student], [values], [], None)
        return inputs.hidden_alignments

    wide = normal(4, 3, 48, seed=0)
    assert alignments(wide, wide) == (4,)
    assert alignments(wide.bfloat16(), wide) == (8,)
    assert alignments(wide.bfloat16(), int8(4, 3, 48, seed=0)) == (16,)
    assert alignments(wide[:, :, :40], int8(4, 3, 40, seed=0)) == (8,)
    assert alignments(wide[:, :, :33], wide[:, :, :33]) == (1,)
