"""The arguments of ``kd_loss``, checked once and flattened to rows: what every path works on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses import matched
from mkd_fast.losses.spec import LossSpec
from mkd_fast.losses.targets import (
    TAILS,
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    Teacher,
    TeacherHead,
)

# N tokens, V vocabulary, K kept ids

RowTeacher = Tensor | SparseTeacher | SampledTeacher | PackedSampledTeacher


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a token.

    Attributes:
        student: logits ``[N, V_s]``.
        teacher: logits ``[N, V_t]``, or a sparse or sampled teacher of ``[N, K]``.
        vocab_size: how many columns are real, <= V_s and V_t.
        labels: int64 ``[N]`` or None.
        mask: bool ``[N]`` or None.
        num_tokens: float32 ``[]``, the denominator of "mean", or None for the tokens that count.
        hidden: the matched layers, possibly none.
        ignore_index: the label of a token that does not count.
        leading_shape: the shape that was flattened to N.
    """

    student: Tensor
    teacher: RowTeacher
    vocab_size: int
    labels: Tensor | None
    mask: Tensor | None
    num_tokens: Tensor | None
    hidden: matched.MatchedLayers
    ignore_index: int
    leading_shape: torch.Size

    def counts(self) -> Tensor:
        """Which tokens count: bool ``[N]``."""
        counts_N = torch.ones(len(self.student), dtype=torch.bool, device=self.student.device)
        if self.labels is not None:
            counts_N = counts_N & (self.labels != self.ignore_index)
        return counts_N if self.mask is None else counts_N & self.mask

    def denominator(self, counts_N: Tensor) -> Tensor:
        """What "mean" divides by: ``num_tokens``, or the tokens that count but at least 1."""
        return counts_N.sum().clamp(min=1) if self.num_tokens is None else self.num_tokens

    def cleared(self, counts_N: Tensor) -> "Rows":
        """The same with zeros in tokens that do not count, whose NaN would reach the gradient."""

        def clear(tensor: Tensor, value: float = 0.0) -> Tensor:
            return tensor.masked_fill(~counts_N.view(-1, *[1] * (tensor.dim() - 1)), value)

        teacher = self.teacher
        if isinstance(teacher, PackedSampledTeacher):
            teacher = teacher.unpacked()
        if isinstance(teacher, SparseTeacher):
            teacher = replace(
                teacher,
                ids=clear(teacher.ids, -1),
                logits=clear(teacher.logits),
                log_z=clear(teacher.log_z),
            )
        elif isinstance(teacher, SampledTeacher):
            teacher = SampledTeacher(clear(teacher.ids, -1), clear(teacher.weights))
        else:
            teacher = clear(teacher)
        return replace(
            self,
            student=clear(self.student),
            teacher=teacher,
            hidden=self.hidden.cleared(counts_N),
        )


def flatten(
    student: Tensor,
    teacher: Teacher,
    labels: Tensor | None,
    student_hidden: matched.Hidden | None,
    teacher_hidden: matched.TeacherHidden | None,
    *,
    spec: LossSpec,
    mask: Tensor | None,
    vocab_size: int | None,
    num_tokens: Tensor | float | None,
    hidden_mask: Tensor | None,
    hidden_projection: matched.Projection | None,
) -> Rows:
    """Check the arguments of ``kd_loss`` and flatten their leading dimensions."""
    checks.floating_point("student_logits", student)
    leading_shape = student.shape[:-1]
    if spec.ce_weight and labels is None:
        raise checks.labels_missing(spec.ce_weight)
    if labels is not None:
        _check_integer("labels", labels)
        labels = _flat("labels", labels, student, trailing=0).long()
    if mask is not None:
        if mask.dtype != torch.bool:
            raise checks.wrong_dtype("mask", "bool", mask.dtype)
        mask = _flat("mask", mask, student, trailing=0)
    _check_divergence(teacher, spec)
    rows_teacher, teacher_columns = _flatten_teacher(teacher, student)
    hidden = matched.flatten(
        student_hidden,
        teacher_hidden,
        hidden_mask,
        hidden_projection,
        leading_shape=leading_shape,
        device=student.device,
    )
    if spec.hidden_weight and not hidden.student:
        raise checks.hidden_missing("0 of them")
    rows = Rows(
        student=_flat("student_logits", student, student, trailing=1),
        teacher=rows_teacher,
        vocab_size=_real_columns(student.shape[-1], teacher_columns, vocab_size),
        labels=labels,
        mask=mask,
        num_tokens=_denominator(num_tokens, student),
        hidden=hidden,
        ignore_index=spec.ignore_index,
        leading_shape=leading_shape,
    )
    _check_ids(rows)
    return rows


def _check_divergence(teacher: Teacher, spec: LossSpec) -> None:
    """A sample knows the forward KL's gradient only, and a sparse teacher has not every logit."""
    is_sampled = isinstance(teacher, SampledTeacher | PackedSampledTeacher)
    if is_sampled and spec.divergence != "forward_kl":
        kind = type(teacher).__name__
        raise checks.divergence_needs_more(kind, spec.divergence, "'forward_kl'")
    if isinstance(teacher, SparseTeacher) and spec.divergence == "logit_mse":
        raise checks.divergence_needs_more("SparseTeacher", spec.divergence, "one of distributions")


def _check_ids(rows: Rows) -> None:
    """Labels and teacher's ids that count name columns, where looking waits for no device."""
    if rows.student.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if rows.labels is not None:
        labels = rows.labels
        is_wrong = rows.counts() & ((labels < 0) | (labels >= rows.vocab_size))
        if is_wrong.any():
            row = int(is_wrong.nonzero()[0])
            raise checks.label_out_of_range(
                int(labels[row]), row, rows.vocab_size, rows.ignore_index
            )
    if isinstance(rows.teacher, SparseTeacher | SampledTeacher):
        is_wrong = rows.counts()[:, None] & (rows.teacher.ids >= rows.vocab_size)
        if is_wrong.any():
            row, slot = map(int, is_wrong.nonzero()[0])
            raise checks.id_out_of_range(int(rows.teacher.ids[row, slot]), row, rows.vocab_size)


def _check_integer(argument: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise checks.wrong_dtype(argument, "integer", tensor.dtype)


def _flat(argument: str, tensor: Tensor, student: Tensor, *, trailing: int) -> Tensor:
    """Leading dimensions, which must be the student's, flattened to one."""
    leading = tensor.shape[: tensor.dim() - trailing]
    if leading != student.shape[:-1]:
        raise checks.leading_shape_mismatch(argument, student.shape[:-1], leading)
    checks.on_device(argument, tensor, student.device)
    return tensor.reshape(student.shape[:-1].numel(), *tensor.shape[tensor.dim() - trailing :])


def _flat_teacher(argument: str, tensor: Tensor, student: Tensor, *, trailing: int) -> Tensor:
    if tensor.requires_grad:
        raise checks.teacher_requires_grad(argument)
    return _flat(argument, tensor, student, trailing=trailing)


def _flatten_teacher(teacher: Teacher, student: Tensor) -> tuple[RowTeacher, int]:
    """The teacher as rows, and how many columns it has (the student's where it does not say)."""
    if isinstance(teacher, TeacherHead):
        checks.floating_point("TeacherHead.hidden", teacher.hidden)
        parts = {"hidden": teacher.hidden, "weight": teacher.weight, "bias": teacher.bias}
        for name, tensor in parts.items():
            if tensor is not None and tensor.requires_grad:
                raise checks.teacher_requires_grad(f"TeacherHead.{name}")
        hidden = _flat("TeacherHead.hidden", teacher.hidden, student, trailing=1)
        logits = torch.nn.functional.linear(hidden, teacher.weight, teacher.bias)
        return logits, logits.shape[-1]
    if isinstance(teacher, SparseTeacher):
        checks.one_of("SparseTeacher", "tail", teacher.tail, TAILS)
        _check_integer("SparseTeacher.ids", teacher.ids)
        return SparseTeacher(
            _flat_teacher("SparseTeacher.ids", teacher.ids, student, trailing=1),
            _flat_teacher("SparseTeacher.logits", teacher.logits, student, trailing=1),
            _flat_teacher("SparseTeacher.log_z", teacher.log_z, student, trailing=0),
            teacher.tail,
        ), student.shape[-1]
    if isinstance(teacher, SampledTeacher):
        _check_integer("SampledTeacher.ids", teacher.ids)
        return SampledTeacher(
            _flat_teacher("SampledTeacher.ids", teacher.ids, student, trailing=1),
            _flat_teacher("SampledTeacher.weights", teacher.weights, student, trailing=1),
        ), student.shape[-1]
    if isinstance(teacher, PackedSampledTeacher):
        if teacher.entries.dtype != torch.uint8:
            raise checks.wrong_dtype("PackedSampledTeacher.entries", "uint8", teacher.entries.dtype)
        if teacher.entries.dim() < 2 or teacher.entries.shape[-1] != 3:
            raise checks.entries_not_three_bytes(teacher.entries.shape)
        entries = _flat("PackedSampledTeacher.entries", teacher.entries, student, trailing=2)
        return replace(teacher, entries=entries), student.shape[-1]
    if not isinstance(teacher, Tensor):
        raise checks.unknown_teacher(type(teacher).__name__)
    checks.floating_point("teacher", teacher)
    return _flat_teacher("teacher", teacher, student, trailing=1), teacher.shape[-1]


def _real_columns(student: int, teacher: int, vocab_size: int | None) -> int:
    if vocab_size is None:
        if student != teacher:
            raise checks.vocabulary_mismatch(student, teacher)
        return student
    if not 1 <= vocab_size <= min(student, teacher):
        raise checks.vocab_size_out_of_range(vocab_size, min(student, teacher))
    return vocab_size


def _denominator(num_tokens: Tensor | float | None, student: Tensor) -> Tensor | None:
    """float32 ``[]`` on the student's device, without waiting for it."""
    if num_tokens is None:
        return None
    if not isinstance(num_tokens, Tensor):
        return torch.full((), num_tokens, dtype=torch.float32, device=student.device)
    if num_tokens.numel() != 1:
        raise checks.num_tokens_not_one(num_tokens.shape)
    checks.on_device("num_tokens", num_tokens, student.device)
    return num_tokens.detach().float().reshape(())
