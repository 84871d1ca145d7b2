"""``kd_loss``, the function other projects import, and its module form."""

import dataclasses
from typing import Any, Literal

from torch import Tensor, nn

from mkd_fast.checks import losses as checks
from mkd_fast.losses import matched, ops, reference, rows
from mkd_fast.losses.spec import LossOutput, LossSpec
from mkd_fast.losses.targets import Teacher
from mkd_fast.losses.tokens import Tokens

Impl = Literal["eager", "fused"]
_FIELDS = [field.name for field in dataclasses.fields(LossSpec)]  # torch.compile cannot ask


def kd_loss(
    student_logits: Tensor,
    teacher: Teacher,
    labels: Tensor | None = None,
    *,
    student_hidden: matched.Hidden | None = None,
    teacher_hidden: matched.TeacherHidden | None = None,
    spec: LossSpec | None = None,
    impl: Impl | None = None,
    mask: Tensor | None = None,
    vocab_size: int | None = None,
    num_tokens: Tensor | float | None = None,
    hidden_mask: Tensor | None = None,
    hidden_projection: matched.Projection | None = None,
    **fields: Any,
) -> LossOutput:
    """Knowledge-distillation loss: divergence from a teacher, label and hidden-state terms.

    ``kd_weight * T^2 * D(p, q) + ce_weight * CE(z_s, y) + hidden_weight * H`` a token, reduced
    over the tokens that count: those neither ignored by their label nor masked. Sums are taken
    in float32. Where a fused kernel exists, value and gradient come from one op in one launch.

        out = kd_loss(student_logits, teacher_logits, labels, temperature=2.0, ce_weight=0.5)
        out.loss.backward()

    Args:
        student_logits: ``[..., V]``, float32, bfloat16, float16 (or float64: eager). Receives a
            gradient.
        teacher: dense logits ``[..., V]`` of any of these dtypes, or a SparseTeacher,
            SampledTeacher, PackedSampledTeacher or TeacherHead. Never receives a gradient.
        labels: integer ``[...]``; ``spec.ignore_index`` marks tokens that do not count.
        student_hidden: one tensor ``[..., D]``, or one a matched layer. Receives a gradient. A
            sequence classifier, whose logits ``[B, V]`` have one row a sentence, passes
            ``[B, S, D]``: H is then the mean over positions.
        teacher_hidden: the same shapes, or Int8Hidden in every layer; never receives a gradient.
        spec: what to compute; or pass fields of LossSpec as keywords instead.
        impl: None takes the fused path where it exists for this device and input, else eager;
            "fused" and "eager" never fall back.
        mask: bool ``[...]``, True for tokens that count; besides or instead of labels.
        vocab_size: how many columns are real on both sides; those past it get zero probability
            and zero gradient. Needed where the two widths differ.
        num_tokens: denominator of "mean" instead of the tokens that count (gradient
            accumulation, data parallel).
        hidden_mask: bool ``[..., S]``, the positions that count in hidden states
            ``[..., S, D]``; all of them if None.
        hidden_projection: W_l ``[D_s, D_t]``, one a matched layer (None where the widths agree):
            ``student_hidden[l] @ W_l`` is compared. It is the caller's, and receives a gradient.
        **fields: fields of LossSpec, instead of ``spec``.

    Returns:
        LossOutput. Where nothing counts, every value and gradient is 0.

    Raises:
        ValueError, TypeError: arguments that do not go together; the message says which and how.
        RuntimeError: ``impl="fused"`` where there is no such kernel; the message says why.
    """
    spec = resolved_spec("kd_loss", spec, fields)
    checks.floating_point("kd_loss", "student_logits", student_logits)
    flat = rows.flatten(
        student_logits,
        teacher,
        labels,
        student_hidden,
        teacher_hidden,
        tokens=Tokens("kd_loss", student_logits.shape[:-1], student_logits.device),
        num_columns=student_logits.shape[-1],
        spec=spec,
        mask=mask,
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        hidden_mask=hidden_mask,
        hidden_projection=hidden_projection,
    ).with_teacher_logits()
    return of_rows(flat, spec, impl)


def of_rows(flat: rows.Rows, spec: LossSpec, impl: Impl | None) -> LossOutput:
    """The loss of checked rows, one value a token in the shape that was flattened."""
    if takes_fused(flat, spec, impl):
        out = ops.fused(flat, spec)
    else:
        flat.check_ids()
        out = reference.kd(flat, spec)
    if spec.reduction != "none":
        return out
    parts = (out.loss, out.kd, out.ce, out.hidden)
    return LossOutput(*(part.view(flat.tokens.leading_shape) for part in parts))


def takes_fused(flat: rows.Rows, spec: LossSpec, impl: Impl | None) -> bool:
    """Whether the fused path is to be taken; raises where it is named and there is none."""
    function = flat.tokens.function
    if impl == "eager":
        return False
    if impl is not None:
        checks.one_of(function, "impl", impl, ("eager", "fused"))
    reason = ops.not_fusible(flat, spec)
    if impl == "fused" and reason is not None:
        raise checks.not_fused(function, reason)
    return reason is None


def resolved_spec(function: str, spec: LossSpec | None, fields: dict[str, Any]) -> LossSpec:
    """The specification, given as itself or as its fields."""
    if spec is not None:
        if fields:
            raise checks.spec_and_fields(function, fields)
        return spec
    for name in fields:
        if name not in _FIELDS:
            raise checks.unknown_field(function, name, _FIELDS)
    return LossSpec(**fields)


class KDLoss(nn.Module):
    """``kd_loss`` with its specification held: ``KDLoss(spec)(logits, teacher, labels)``."""

    def __init__(self, spec: LossSpec | None = None, **fields: Any) -> None:
        super().__init__()
        self.spec = resolved_spec("KDLoss", spec, fields)

    def forward(
        self, student_logits: Tensor, teacher: Teacher, labels: Tensor | None = None, **kwargs: Any
    ) -> LossOutput:
        """``kd_loss`` with this specification; keywords are those of ``kd_loss``."""
        return kd_loss(student_logits, teacher, labels, spec=self.spec, **kwargs)

    def extra_repr(self) -> str:
        """Show the specification where the module is printed."""
        return repr(self.spec)
