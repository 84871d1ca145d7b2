"""Op schemas, where each op runs, and autograd.

The schemas exist whether or not a binary does. C++ (``csrc/``) implements them for CPU, Triton
(``kernels/``) for CUDA and ROCm devices. A fused loss computes value *and* gradient in its
forward pass; backward hands the gradient out, scaled in place by the incoming one.
"""

from collections.abc import Sequence
from importlib import util
from typing import Any

import torch
from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses.rows import Rows
from mkd_fast.losses.spec import LossOutput, LossSpec

# N tokens, V vocabulary, P positions of hidden states a token, D width

FUSED_DIVERGENCES = ("forward_kl", "reverse_kl", "jeffreys", "jsd")
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library("mkd_fast", "DEF")

# student, teacher [N, V_s], [N, V_t]: rows may be strided, columns are contiguous, and only the
# first vocab_size of them are real. labels int64 [N]; mask bool [N]; num_tokens float32 [].
# student_hidden, teacher_hidden [N, P, D_l] with contiguous D_l; hidden_mask bool [N, P].
# loss, kd, ce, hidden are float32, [] or with reduction "none" [N]; kd carries kd_scale (T^2),
# and only loss carries the weights. grad_student [N, V_s] and grad_hidden are the gradients of
# loss in the student's dtypes, with zeros in columns past vocab_size and in rows that do not
# count; a gradient not asked for is empty. They are contiguous, except that the rows of
# grad_student may be padded.
_library.define(
    "dense_kd(Tensor student, Tensor teacher, Tensor? labels, Tensor? mask, Tensor? num_tokens,"
    " Tensor[] student_hidden, Tensor[] teacher_hidden, Tensor? hidden_mask, *,"
    " str divergence, float beta, float temperature, float teacher_temperature,"
    " float logit_scale, float teacher_logit_scale,"
    " float kd_scale, float kd_weight, float ce_weight, float hidden_weight,"
    " int vocab_size, int ignore_index, str reduction,"
    " bool needs_grad_student, bool needs_grad_hidden)"
    " -> (Tensor loss, Tensor kd, Tensor ce, Tensor hidden,"
    " Tensor grad_student, Tensor[] grad_hidden)"
)
# In place: grad [N, ...] *= scale, which is [] or [N]; nothing is touched where scale is 1.
_library.define("scale_(Tensor(a!) grad, Tensor scale) -> ()")


@torch.library.register_fake("mkd_fast::dense_kd", lib=_library)  # type: ignore[untyped-decorator]
def _dense_kd_fake(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    num_tokens: Tensor | None,
    student_hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    hidden_mask: Tensor | None,
    *,
    reduction: str,
    needs_grad_student: bool,
    needs_grad_hidden: bool,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    shape = (student.shape[0],) if reduction == "none" else ()
    loss, kd, ce, hidden = (student.new_empty(shape, dtype=torch.float32) for _ in range(4))
    grad_student = student.new_empty(student.shape if needs_grad_student else (0,))
    grad_hidden = [h.new_empty(h.shape) for h in student_hidden] if needs_grad_hidden else []
    return loss, kd, ce, hidden, grad_student, grad_hidden


@torch.library.register_fake("mkd_fast::scale_", lib=_library)  # type: ignore[untyped-decorator]
def _scale_fake(grad: Tensor, scale: Tensor) -> None:
    pass


def _dense_kd_triton(*args: Any, **kwargs: Any) -> Any:
    from mkd_fast.kernels.dense_kd import dense_kd

    return dense_kd(*args, **kwargs)


def _scale_triton(grad: Tensor, scale: Tensor) -> None:
    from mkd_fast.kernels.scale import scale_

    scale_(grad, scale)


_library.impl("dense_kd", _dense_kd_triton, "CUDA")
_library.impl("scale_", _scale_triton, "CUDA")


def _load_cpp() -> str | None:
    """Load the C++ kernels; return None, or why there are none."""
    library = util.find_spec("mkd_fast._mkd_fast_cpu")
    if library is None:
        return "the package was built without a C++ compiler or without torch at hand"
    try:
        torch.ops.load_library(library.origin)
    except OSError as error:
        return f"{library.name} does not load: {error}"
    return None


# What is missing, by device type; found out once, since torch.compile cannot look for it.
_MISSING_KERNELS = {
    "cpu": _load_cpp(),
    "cuda": None if util.find_spec("triton") else "triton is not installed",
}


def missing_kernels(device_type: str) -> str | None:
    """None where this device type has fused kernels, else what is missing."""
    return _MISSING_KERNELS.get(device_type, f"device type {device_type!r} has no kernels")


def not_fusible(rows: Rows, spec: LossSpec) -> str | None:
    """None where a fused op computes exactly this loss, else what stands in the way."""
    if not isinstance(rows.teacher, Tensor):
        return f"a {type(rows.teacher).__name__} has no fused kernel yet"
    if spec.divergence not in FUSED_DIVERGENCES:
        return f"divergence {spec.divergence!r} has no fused kernel yet"
    if spec.softcap is not None or spec.resolved_teacher_softcap is not None:
        return "softcap has no fused kernel yet"
    for tensor in (rows.student, rows.teacher, *rows.student_hidden, *rows.teacher_hidden):
        if tensor.dtype not in FUSED_DTYPES:
            return f"{tensor.dtype} has no fused kernel"
    return missing_kernels(rows.student.device.type)


class _DenseKD(torch.autograd.Function):
    """Autograd of ``mkd_fast::dense_kd``: forward computes the gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Rows, spec: LossSpec, student: Tensor, *student_hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loss, kd, ce, hidden, grad_student, grad_hidden = torch.ops.mkd_fast.dense_kd(
            student,
            rows.teacher,
            rows.labels,
            rows.mask,
            rows.num_tokens,
            list(student_hidden),
            list(rows.teacher_hidden),
            rows.hidden_mask,
            divergence=spec.divergence,
            beta=spec.beta,
            temperature=spec.temperature,
            teacher_temperature=spec.resolved_teacher_temperature,
            logit_scale=spec.logit_scale,
            teacher_logit_scale=spec.teacher_logit_scale,
            kd_scale=spec.kd_scale,
            kd_weight=spec.kd_weight,
            ce_weight=spec.ce_weight,
            hidden_weight=spec.hidden_weight,
            vocab_size=rows.vocab_size,
            ignore_index=spec.ignore_index,
            reduction=spec.reduction,
            needs_grad_student=ctx.needs_input_grad[2],
            needs_grad_hidden=any(ctx.needs_input_grad[3:]),
        )
        ctx.save_for_backward(grad_student, *grad_hidden)
        ctx.mark_non_differentiable(kd, ce, hidden)
        ctx.is_spent = False
        return loss, kd, ce, hidden

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():  # create_graph=True
                raise checks.double_backward()
            if ctx.is_spent:
                raise checks.second_backward()
            ctx.is_spent = True
        grads: list[Tensor | None] = [None, None]
        for needed, grad in zip(ctx.needs_input_grad[2:], ctx.saved_tensors, strict=False):
            if needed:
                torch.ops.mkd_fast.scale_(grad, grad_loss)
            grads.append(grad if needed else None)
        grads += [None] * (len(ctx.needs_input_grad) - len(grads))
        return tuple(grads)


def fused(rows: Rows, spec: LossSpec) -> LossOutput:
    """The loss of ``kd_loss`` on flattened rows through one fused op."""
    outputs = _DenseKD.apply(rows, spec, rows.student, *rows.student_hidden)  # type: ignore[no-untyped-call]
    return LossOutput(*outputs)
