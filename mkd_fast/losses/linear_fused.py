"""Autograd of ``linear_kd_loss``: each chunk's logits live until their gradient is used.

Value and gradients are computed together in forward, chunk by chunk, and backward scales the
gradients by the incoming one. A loss a token (reduction "none") has as many incoming gradients,
and those of the weight cannot be scaled after they were summed: then forward computes values
only, and backward goes through the chunks again.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from mkd_fast.losses import ops, vocab_parallel
from mkd_fast.losses.linear_gradients import HeadGradients, scaled
from mkd_fast.losses.rows import Linear, Rows
from mkd_fast.losses.spec import LossSpec
from mkd_fast.losses.targets import TeacherHead

# N tokens of all chunks, c of one; V vocabulary, D width


@dataclass(frozen=True, eq=False)
class Plan:
    """What is the same for every chunk.

    Attributes:
        spec: with reduction "sum" or "none".
        chunks: first and last token of each.
        dtype: of the student's matrix products and logits.
        skip_below: see ``linear_kd_loss``.
        shard: this process's part of the vocabulary, or None for all of it.
    """

    spec: LossSpec
    chunks: list[tuple[int, int]]
    dtype: torch.dtype
    skip_below: float | None
    shard: vocab_parallel.Shard | None


class _LinearKD(torch.autograd.Function):
    """(loss, kd, ce), sums or one a token."""

    @staticmethod
    def forward(
        ctx: Any, rows: Rows, plan: Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        is_per_token = plan.spec.reduction == "none"
        needs = (False,) * 3 if is_per_token else ctx.needs_input_grad[2:]
        outputs, gradients = _sweep(rows, plan, (hidden, weight, bias), needs)
        if is_per_token:
            ctx.rows, ctx.plan = rows, plan
            ctx.save_for_backward(hidden, weight, bias)
        else:
            ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        ctx.is_per_token, ctx.is_spent, ctx.function = is_per_token, False, rows.tokens.function
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        ops.refuse_further_backward(ctx, is_recomputed=ctx.is_per_token)
        if ctx.is_per_token:
            needs = ctx.needs_input_grad[2:]
            _, sums = _sweep(ctx.rows, ctx.plan, ctx.saved_tensors, needs, grad_loss)
            grads, scale = (sums.hidden, sums.weight, sums.bias), None
        else:
            grads, scale = ctx.saved_tensors, grad_loss
        pairs = zip(grads, ctx.dtypes, strict=True)
        return None, None, *(None if g is None else scaled(g, scale, dtype) for g, dtype in pairs)


def _sweep(
    rows: Rows,
    plan: Plan,
    head: tuple[Tensor, Tensor, Tensor | None],
    needs: tuple[bool, bool, bool],
    grad_loss: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], HeadGradients]:
    """All chunks: the outputs, and the gradients that are needed."""
    hidden, weight, bias = head[0].to(plan.dtype), head[1].to(plan.dtype), head[2]
    bias = None if bias is None else bias.to(plan.dtype)
    gradients = HeadGradients(hidden, weight, needs, plan.skip_below)
    rows = replace(rows, student=hidden)
    most_tokens = max(end - begin for begin, end in plan.chunks)
    student_linear, teacher_linear = _LinearInPlace(most_tokens), _LinearInPlace(most_tokens)
    outputs = []
    # whatever autocast asks for is in plan.dtype, cast once and not once a chunk
    with torch.autocast(hidden.device.type, enabled=False):
        for begin, end in plan.chunks:
            part = counted(rows.part(begin, end))
            scale = None if grad_loss is None else grad_loss[begin:end]
            logits = with_logits(part, weight, bias, student_linear, teacher_linear)
            output, grad = _loss(logits, plan, any(needs), scale)
            outputs.append(output)
            if any(needs):
                gradients.add(begin, grad, part.student, weight)
            del grad  # before the next chunk's logits are made
    if plan.shard is not None and gradients.hidden is not None:
        dist.all_reduce(gradients.hidden, group=plan.shard.group)
    return joined(outputs, plan.spec), gradients


def joined(outputs: list[Tensor], spec: LossSpec) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, kd, ce) of all chunks from ``[3]`` or ``[3, c]`` of each."""
    if spec.reduction == "none":
        loss, kd, ce = torch.cat(outputs, -1)
    else:
        loss, kd, ce = torch.stack(outputs).sum(0)
    return loss, kd, ce


def with_logits(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    student_linear: Linear = functional.linear,
    teacher_linear: Linear = functional.linear,
) -> Rows:
    """Rows of hidden states as rows of logits, on both sides."""
    real = slice(rows.vocab_size)
    logits = student_linear(rows.student, weight[real], None if bias is None else bias[real])
    return replace(rows.with_teacher_logits(teacher_linear), student=logits)


class _LinearInPlace:
    """``functional.linear`` that overwrites what it returned before.

    A system clears every page it hands out, and a CPU's allocator returns blocks of this size.
    """

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._memory: Tensor | None = None

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._memory is None:
            self._memory = input.new_empty(self._most_rows, len(weight))
        out = self._memory[: len(input)]
        if bias is None:
            return torch.mm(input, weight.T, out=out)
        return torch.addmm(bias, input, weight.T, out=out)


def counted(rows: Rows) -> Rows:
    """Zeros in what does not count: 0 * NaN must not reach the weight's gradient."""
    if rows.labels is None and rows.mask is None:
        return rows
    return replace(rows, student=rows.student.masked_fill(~rows.counts()[:, None], 0.0))


def _loss(
    rows: Rows, plan: Plan, needs_grad: bool, grad_loss: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of a chunk of logits: loss, kd and ce, ``[3]`` or ``[3, c]``; the gradient of the logits."""
    if plan.shard is not None:
        loss, kd, ce, grad = vocab_parallel.run(
            rows, plan.spec, plan.shard, needs_grad=needs_grad, grad_loss=grad_loss
        )
        return torch.stack([loss, kd, ce]), grad
    loss, kd, ce, _, grad, _ = ops.run(
        rows, plan.spec, needs_grad_student=needs_grad, needs_grad_hidden=False
    )
    if grad_loss is not None:
        torch.ops.mkd_fast.scale_(grad, grad_loss)
    return torch.stack([loss, kd, ce]), grad


def run(
    rows: Rows, plan: Plan, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, kd, ce) of rows of hidden states under this head."""
    teacher = rows.teacher
    if isinstance(teacher, TeacherHead) and torch.is_autocast_enabled(rows.student.device.type):
        hidden_ND, weight_VD, bias_V = teacher.hidden, teacher.weight, teacher.bias
        bias_V = None if bias_V is None else bias_V.to(plan.dtype)
        teacher = TeacherHead(hidden_ND.to(plan.dtype), weight_VD.to(plan.dtype), bias_V)
        rows = replace(rows, teacher=teacher)
    return _LinearKD.apply(rows, plan, rows.student, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
