"""The arguments of ``kd_loss``, checked once and flattened to rows: what every path works on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses.spec import LossSpec
from mkd_fast.losses.targets import TAILS, SampledTeacher, SparseTeacher, Teacher, TeacherHead

# N tokens, V vocabulary, K kept ids, P positions of hidden states a token, D width

Hidden = Tensor | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a token.

    Attributes:
        student: logits ``[N, V_s]``.
        teacher: logits ``[N, V_t]``, or a SparseTeacher / SampledTeacher of ``[N, K]``.
        vocab_size: how many columns are real, <= V_s and V_t.
        labels: int64 ``[N]`` or None.
        mask: bool ``[N]`` or None.
        num_tokens: float32 ``[]``, the denominator of "mean", or None for the tokens that count.
        student_hidden, teacher_hidden: one ``[N, P, D_l]`` a matched layer, possibly none.
        hidden_mask: bool ``[N, P]`` or None.
        ignore_index: the label of a token that does not count.
        leading_shape: the shape that was flattened to N.
    """

    student: Tensor
    teacher: Tensor | SparseTeacher | SampledTeacher
    vocab_size: int
    labels: Tensor | None
    mask: Tensor | None
    num_tokens: Tensor | None
    student_hidden: tuple[Tensor, ...]
    teacher_hidden: tuple[Tensor, ...]
    hidden_mask: Tensor | None
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

        def clear(tensor: Tensor) -> Tensor:
            return tensor.masked_fill(~counts_N.view(-1, *[1] * (tensor.dim() - 1)), 0.0)

        def clear_hidden(tensor: Tensor) -> Tensor:
            if self.hidden_mask is not None:
                tensor = tensor.masked_fill(~self.hidden_mask[:, :, None], 0.0)
            return clear(tensor)

        teacher = self.teacher
        if isinstance(teacher, SparseTeacher):
            teacher = replace(teacher, logits=clear(teacher.logits), log_z=clear(teacher.log_z))
        elif isinstance(teacher, SampledTeacher):
            teacher = replace(teacher, weights=clear(teacher.weights))
        else:
            teacher = clear(teacher)
        return replace(
            self,
            student=clear(self.student),
            teacher=teacher,
            student_hidden=tuple(map(clear_hidden, self.student_hidden)),
            teacher_hidden=tuple(map(clear_hidden, self.teacher_hidden)),
        )


def flatten(
    student: Tensor,
    teacher: Teacher,
    labels: Tensor | None,
    student_hidden: Hidden | None,
    teacher_hidden: Hidden | None,
    *,
    spec: LossSpec,
    mask: Tensor | None,
    vocab_size: int | None,
    num_tokens: Tensor | float | None,
    hidden_mask: Tensor | None,
) -> Rows:
    """Check the arguments of ``kd_loss`` and flatten their leading dimensions."""
    _check_float("student_logits", student)
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
    hidden_pair = _flatten_hidden(student_hidden, teacher_hidden, student, spec)
    if hidden_mask is not None:
        hidden_mask = _flatten_hidden_mask(hidden_mask, hidden_pair[0], student)
    rows = Rows(
        student=_flat("student_logits", student, student, trailing=1),
        teacher=rows_teacher,
        vocab_size=_real_columns(student.shape[-1], teacher_columns, vocab_size),
        labels=labels,
        mask=mask,
        num_tokens=_denominator(num_tokens, student),
        student_hidden=hidden_pair[0],
        teacher_hidden=hidden_pair[1],
        hidden_mask=hidden_mask,
        ignore_index=spec.ignore_index,
        leading_shape=leading_shape,
    )
    _check_labels(rows)
    return rows


def _check_divergence(teacher: Teacher, spec: LossSpec) -> None:
    """A sample knows the forward KL's gradient only, and a sparse teacher has not every logit."""
    if isinstance(teacher, SampledTeacher) and spec.divergence != "forward_kl":
        raise checks.divergence_needs_more("SampledTeacher", spec.divergence, "'forward_kl'")
    if isinstance(teacher, SparseTeacher) and spec.divergence == "logit_mse":
        raise checks.divergence_needs_more("SparseTeacher", spec.divergence, "one of distributions")


def _check_labels(rows: Rows) -> None:
    """Each label that counts names a column. Only where looking does not wait for a device."""
    labels = rows.labels
    if labels is None or labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    is_wrong = rows.counts() & ((labels < 0) | (labels >= rows.vocab_size))
    if is_wrong.any():
        row = int(is_wrong.nonzero()[0])
        raise checks.label_out_of_range(int(labels[row]), row, rows.vocab_size, rows.ignore_index)


def _check_float(argument: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise checks.not_logits("kd_loss", argument, type(tensor).__name__)
    if not tensor.is_floating_point() or tensor.dim() == 0:
        raise checks.not_logits("kd_loss", argument, f"{tensor.dtype} {tuple(tensor.shape)}")


def _check_integer(argument: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise checks.wrong_dtype(argument, "integer", tensor.dtype)


def _flat(argument: str, tensor: Tensor, student: Tensor, *, trailing: int) -> Tensor:
    """Leading dimensions, which must be the student's, flattened to one."""
    leading = tensor.shape[: tensor.dim() - trailing]
    if leading != student.shape[:-1]:
        raise checks.leading_shape_mismatch(argument, student.shape[:-1], leading)
    if tensor.device != student.device:
        raise checks.other_device(argument, student.device, tensor.device)
    return tensor.reshape(student.shape[:-1].numel(), *tensor.shape[tensor.dim() - trailing :])


def _flat_teacher(argument: str, tensor: Tensor, student: Tensor, *, trailing: int) -> Tensor:
    if tensor.requires_grad:
        raise checks.teacher_requires_grad(argument)
    return _flat(argument, tensor, student, trailing=trailing)


def _flatten_teacher(
    teacher: Teacher, student: Tensor
) -> tuple[Tensor | SparseTeacher | SampledTeacher, int]:
    """The teacher as rows, and how many columns it has (the student's where it does not say)."""
    if isinstance(teacher, TeacherHead):
        _check_float("TeacherHead.hidden", teacher.hidden)
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
    if not isinstance(teacher, Tensor):
        raise checks.unknown_teacher(type(teacher).__name__)
    _check_float("teacher", teacher)
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
    if num_tokens.device != student.device:
        raise checks.other_device("num_tokens", student.device, num_tokens.device)
    return num_tokens.detach().float().reshape(())


def _layers(hidden: Hidden | None) -> tuple[Tensor, ...]:
    if hidden is None:
        return ()
    return (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)


def _flatten_hidden(
    student_hidden: Hidden | None, teacher_hidden: Hidden | None, student: Tensor, spec: LossSpec
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Matched layers as ``[N, P, D_l]``: P is 1 where hidden states go token by token."""
    ours, theirs = _layers(student_hidden), _layers(teacher_hidden)
    if len(ours) != len(theirs) or (spec.hidden_weight and not ours):
        raise checks.hidden_missing(f"{len(ours)} and {len(theirs)} of them")
    leading_dims = student.dim() - 1
    flat: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer, pair in enumerate(zip(ours, theirs, strict=True)):
        if pair[0].shape != pair[1].shape:
            raise checks.hidden_shape_mismatch(layer, pair[0].shape, pair[1].shape)
        if pair[1].requires_grad:
            raise checks.teacher_requires_grad(f"teacher_hidden[{layer}]")
        names = (f"student_hidden[{layer}]", f"teacher_hidden[{layer}]")
        for side, name, tensor in zip(flat, names, pair, strict=True):
            _check_float(name, tensor)
            if tensor.dim() == leading_dims + 1:
                tensor = tensor.unsqueeze(-2)
            rows = _flat(name, tensor, student, trailing=2)
            if side and rows.shape[1] != side[0].shape[1]:
                raise checks.hidden_shape_mismatch(layer, rows.shape, side[0].shape)
            side.append(rows)
    return tuple(flat[0]), tuple(flat[1])


def _flatten_hidden_mask(
    hidden_mask: Tensor, student_hidden: Sequence[Tensor], student: Tensor
) -> Tensor:
    if hidden_mask.dtype != torch.bool:
        raise checks.wrong_dtype("hidden_mask", "bool", hidden_mask.dtype)
    if not student_hidden:
        raise checks.hidden_missing("hidden_mask without hidden states")
    if hidden_mask.dim() == student.dim() - 1:
        hidden_mask = hidden_mask.unsqueeze(-1)
    rows = _flat("hidden_mask", hidden_mask, student, trailing=1)
    if rows.shape[1] != student_hidden[0].shape[1]:
        raise checks.leading_shape_mismatch("hidden_mask", student_hidden[0].shape[:2], rows.shape)
    return rows
