"""Op schemas, where each op runs, and autograd.

The schemas exist whether or not a binary does. C++ (``csrc/``) implements them for CPU, Triton
(``kernels/``) for CUDA and ROCm devices. A fused loss computes value *and* gradient in its
forward pass; backward hands the gradient out, scaled in place by the incoming one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import util
from typing import Any

import torch
from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses.rows import Rows, RowTeacher
from mkd_fast.losses.spec import LossOutput, LossSpec
from mkd_fast.losses.targets import (
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    TeacherHead,
)

# N tokens, V vocabulary, P positions of hidden states a token, D width

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library("mkd_fast", "DEF")

# What every loss op takes and returns.
#
# student [N, V_s]: rows may be strided, columns are contiguous, and only the first vocab_size are
# real; [N, 0] with vocab_size 0 leaves the hidden term alone. labels int64 [N]; mask bool [N];
# num_tokens float32 []. student_hidden, teacher_hidden [N, P, D_l] with contiguous D_l; where
# teacher_hidden is int8, teacher_scale float32 [N, P] for every layer, else empty; hidden_mask
# bool [N, P]. softcap 0 is none. beta is also that of alpha_beta.
# loss, kd, ce, hidden are float32, [] or with reduction "none" [N]; kd carries kd_scale (T^2),
# and only loss carries the weights. grad_student [N, V_s] and grad_hidden are the gradients of
# loss in the student's dtypes, with zeros in columns past vocab_size and in rows that do not
# count; a gradient not asked for is empty. They are contiguous, except that the rows of
# grad_student may be padded.
_INPUTS = (
    " Tensor? labels, Tensor? mask, Tensor? num_tokens,"
    " Tensor[] student_hidden, Tensor[] teacher_hidden, Tensor[] teacher_scale, Tensor? hidden_mask"
)
_OPTIONS = (
    " str divergence, float alpha, float beta, float temperature, float teacher_temperature,"
    " float logit_scale, float teacher_logit_scale, float softcap, float teacher_softcap,"
    " float kd_scale, float kd_weight, float ce_weight, float hidden_weight, str hidden_distance,"
    " int vocab_size, int ignore_index, str reduction,"
    " bool needs_grad_student, bool needs_grad_hidden"
)
_RESULTS = (
    "(Tensor loss, Tensor kd, Tensor ce, Tensor hidden, Tensor grad_student, Tensor[] grad_hidden)"
)
# teacher [N, V_t], as student.
_library.define(f"dense_kd(Tensor student, Tensor teacher,{_INPUTS}, *,{_OPTIONS}) -> {_RESULTS}")
# ids int32 or int64 [N, K], -1 in an empty slot, with values [N, K]: logits, with log_z float32
# [N] and one of TAILS as tail, or with tail "sampled" weights. Or, with tail "packed", ids are the
# entries of a PackedSampledTeacher, uint8 [N, K, 3], and nothing else is given.
_library.define(
    f"sparse_kd(Tensor student, Tensor ids, Tensor? values, Tensor? log_z,{_INPUTS}, *,"
    f" str tail, int id_bits, int num_draws,{_OPTIONS}) -> {_RESULTS}"
)
# In place: grad [N, ...] *= scale, which is [] or [N]; nothing is touched where scale is 1.
_library.define("scale_(Tensor(a!) grad, Tensor scale) -> ()")


def _loss_fake(
    student: Tensor,
    *tensors: Any,
    reduction: str,
    needs_grad_student: bool,
    needs_grad_hidden: bool,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    student_hidden = tensors[-4]  # what comes before the labels is each op's own
    shape = (student.shape[0],) if reduction == "none" else ()
    loss, kd, ce, hidden = (student.new_empty(shape, dtype=torch.float32) for _ in range(4))
    grad_student = student.new_empty(student.shape if needs_grad_student else (0,))
    grad_hidden = [h.new_empty(h.shape) for h in student_hidden] if needs_grad_hidden else []
    return loss, kd, ce, hidden, grad_student, grad_hidden


torch.library.register_fake("mkd_fast::dense_kd", _loss_fake, lib=_library)
torch.library.register_fake("mkd_fast::sparse_kd", _loss_fake, lib=_library)


@torch.library.register_fake("mkd_fast::scale_", lib=_library)  # type: ignore[untyped-decorator]
def _scale_fake(grad: Tensor, scale: Tensor) -> None:
    pass


def _dense_kd_triton(*args: Any, **kwargs: Any) -> Any:
    from mkd_fast.kernels.dense_kd import dense_kd

    return dense_kd(*args, **kwargs)


def _sparse_kd_triton(*args: Any, **kwargs: Any) -> Any:
    from mkd_fast.kernels.sparse_kd import sparse_kd

    return sparse_kd(*args, **kwargs)


def _scale_triton(grad: Tensor, scale: Tensor) -> None:
    from mkd_fast.kernels.scale import scale_

    scale_(grad, scale)


_library.impl("dense_kd", _dense_kd_triton, "CUDA")
_library.impl("sparse_kd", _sparse_kd_triton, "CUDA")
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
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform, which sees through plain torch only"
    for tensor in _floating_point(rows):
        if tensor.dtype not in FUSED_DTYPES:
            return f"{tensor.dtype} has no fused kernel"
    return missing_kernels(rows.student.device.type)


def _floating_point(rows: Rows) -> Iterator[Tensor]:
    yield rows.student
    teacher = rows.teacher
    if isinstance(teacher, SparseTeacher):
        yield teacher.logits
    elif isinstance(teacher, SampledTeacher):
        yield teacher.weights
    elif isinstance(teacher, TeacherHead):
        yield teacher.hidden
    elif isinstance(teacher, Tensor):
        yield teacher
    yield from rows.hidden.student
    if not rows.hidden.teacher_scale:
        yield from rows.hidden.teacher


def _teacher_arguments(
    teacher: RowTeacher,
) -> tuple[Any, tuple[Tensor | None, ...], dict[str, Any]]:
    """The op for this kind of teacher, and its arguments that say what the teacher left."""
    if isinstance(teacher, Tensor):
        return torch.ops.mkd_fast.dense_kd, (teacher,), {}
    options: dict[str, Any] = {"id_bits": 0, "num_draws": 0}
    sparse_kd = torch.ops.mkd_fast.sparse_kd
    if isinstance(teacher, SparseTeacher):
        top_k = (_as_ids(teacher.ids), teacher.logits, teacher.log_z.float())
        return sparse_kd, top_k, options | {"tail": teacher.tail}
    if isinstance(teacher, SampledTeacher):
        sample = (_as_ids(teacher.ids), teacher.weights, None)
        return sparse_kd, sample, options | {"tail": "sampled"}
    assert isinstance(teacher, PackedSampledTeacher), "a TeacherHead has become logits"
    options = {"id_bits": teacher.id_bits, "num_draws": teacher.num_draws, "tail": "packed"}
    return sparse_kd, (teacher.entries, None, None), options


def _as_ids(ids: Tensor) -> Tensor:
    return ids if ids.dtype in (torch.int32, torch.int64) else ids.long()


def spec_options(spec: LossSpec) -> dict[str, Any]:
    """The options of a loss op that follow from what is asked for."""
    alpha, beta = spec.alpha_beta or (0.0, spec.beta)
    return {
        "divergence": spec.divergence,
        "alpha": alpha,
        "beta": beta,
        "temperature": spec.temperature,
        "teacher_temperature": spec.resolved_teacher_temperature,
        "logit_scale": spec.logit_scale,
        "teacher_logit_scale": spec.teacher_logit_scale,
        "softcap": spec.softcap or 0.0,
        "teacher_softcap": spec.resolved_teacher_softcap or 0.0,
        "kd_scale": spec.kd_scale,
        "kd_weight": spec.kd_weight,
        "ce_weight": spec.ce_weight,
        "hidden_weight": spec.hidden_weight,
        "hidden_distance": spec.hidden_distance,
        "ignore_index": spec.ignore_index,
        "reduction": spec.reduction,
    }


def run(rows: Rows, spec: LossSpec, *, needs_grad_student: bool, needs_grad_hidden: bool) -> Any:
    """Call the op for these rows: (loss, kd, ce, hidden, grad_student, grad_hidden)."""
    op, teacher, teacher_options = _teacher_arguments(rows.teacher)
    try:
        return op(
            rows.student,
            *teacher,
            rows.labels,
            rows.mask,
            rows.num_tokens,
            list(rows.hidden.student),
            list(rows.hidden.teacher),
            list(rows.hidden.teacher_scale),
            rows.hidden.mask,
            **teacher_options,
            **spec_options(spec),
            vocab_size=rows.vocab_size,
            needs_grad_student=needs_grad_student,
            needs_grad_hidden=needs_grad_hidden,
        )
    except RuntimeError:  # C++ looks at every label and id that counts; the error is worded here
        rows.check_ids()
        raise


def refuse_further_backward(ctx: Any, *, is_recomputed: bool = False) -> None:
    """Raise where backward would differentiate itself, or hand out a gradient a second time."""
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():  # create_graph=True
        raise checks.double_backward(ctx.function)
    if ctx.is_spent:
        raise checks.second_backward(ctx.function)
    ctx.is_spent = not is_recomputed


def _divides_late(students: Sequence[Tensor]) -> bool:
    """Whether "mean" waits for the incoming gradient: float16 holds nothing below 6e-8.

    So a loss scaler's factor meets gradients that are not yet divided by the number of tokens.
    """
    return any(tensor.dtype == torch.float16 for tensor in students)


class _FusedKD(torch.autograd.Function):
    """Autograd of the loss ops: forward computes the gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Rows, spec: LossSpec, student: Tensor, *student_hidden: Tensor
    ) -> tuple[Tensor, ...]:
        rows = replace(rows, student=student, hidden=replace(rows.hidden, student=student_hidden))
        denominator = None
        if spec.reduction == "mean" and _divides_late((student, *student_hidden)):
            denominator = rows.denominator(rows.counts())
            spec = replace(spec, reduction="sum")
        *outputs, grad_student, grad_hidden = run(
            rows,
            spec,
            needs_grad_student=ctx.needs_input_grad[2],
            needs_grad_hidden=spec.hidden_weight != 0.0 and any(ctx.needs_input_grad[3:]),
        )
        if denominator is not None:
            outputs = [output / denominator for output in outputs]
        ctx.save_for_backward(denominator, grad_student, *grad_hidden)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.is_spent = False
        ctx.function = rows.tokens.function
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_further_backward(ctx)
        denominator, *saved = ctx.saved_tensors
        if denominator is not None:
            grad_loss = grad_loss / denominator
        grads: list[Tensor | None] = [None, None]
        for needed, grad in zip(ctx.needs_input_grad[2:], saved, strict=False):
            if needed:
                torch.ops.mkd_fast.scale_(grad, grad_loss)
            grads.append(grad if needed else None)
        grads += [None] * (len(ctx.needs_input_grad) - len(grads))
        return tuple(grads)


def fused(rows: Rows, spec: LossSpec) -> LossOutput:
    """The loss of ``kd_loss`` on flattened rows through one fused op."""
    if not torch.is_grad_enabled():  # which needs_input_grad knows nothing of
        return LossOutput(*run(rows, spec, needs_grad_student=False, needs_grad_hidden=False)[:4])
    outputs = _FusedKD.apply(rows, spec, rows.student, *rows.hidden.student)  # type: ignore[no-untyped-call]
    return LossOutput(*outputs)
