"""The arguments of ``kd_loss``, checked once and flattened to rows: what every path works on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional

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
from mkd_fast.losses.tokens import Tokens

# N tokens, V vocabulary, K kept ids

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
RowTeacher = Tensor | SparseTeacher | SampledTeacher | PackedSampledTeacher | TeacherHead


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a token.

    Attributes:
        student: logits ``[N, V_s]``, or the hidden states ``[N, D]`` that a head makes them of.
        teacher: logits ``[N, V_t]``, or one of the other kinds with ``[N, ...]`` tensors.
        vocab_size: how many columns are real, <= V_s and V_t.
        labels: int64 ``[N]`` or None.
        mask: bool ``[N]`` or None.
        num_tokens: float32 ``[]``, the denominator of "mean", or None for the tokens that count.
        hidden: the matched layers, possibly none.
        ignore_index: the label of a token that does not count.
        tokens: the leading shape that was flattened to N.
    """

    student: Tensor
    teacher: RowTeacher
    vocab_size: int
    labels: Tensor | None
    mask: Tensor | None
    num_tokens: Tensor | None
    hidden: matched.MatchedLayers
    ignore_index: int
    tokens: Tokens

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
            is_cleared = ~counts_N.view(-1, *[1] * (tensor.dim() - 1))
            return tensor.masked_fill(is_cleared, 0.0 if tensor.is_floating_point() else -1)

        teacher = self.teacher
        if isinstance(teacher, PackedSampledTeacher):
            teacher = teacher.unpacked()
        return replace(
            self,
            student=clear(self.student),
            teacher=_changed(teacher, clear),
            hidden=self.hidden.cleared(counts_N),
        )

    def check_ids(self) -> None:
        """Raise if a label or teacher's id that counts names no column, where it can be seen."""
        is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if self.student.device.type != "cpu" or is_traced or isinstance(self.student, FakeTensor):
            return
        function, counts_N = self.tokens.function, self.counts()
        if self.labels is not None:
            is_wrong_N = counts_N & ((self.labels < 0) | (self.labels >= self.vocab_size))
            if is_wrong_N.any():
                row = int(is_wrong_N.nonzero()[0])
                raise checks.label_out_of_range(
                    function, int(self.labels[row]), row, self.vocab_size, self.ignore_index
                )
        if isinstance(self.teacher, SparseTeacher | SampledTeacher):
            is_wrong_NK = counts_N[:, None] & (self.teacher.ids >= self.vocab_size)
            if is_wrong_NK.any():
                row, slot = map(int, is_wrong_NK.nonzero()[0])
                raise checks.id_out_of_range(
                    function, int(self.teacher.ids[row, slot]), row, self.vocab_size
                )

    def part(self, begin: int, end: int) -> "Rows":
        """Some of the rows, without their matched layers."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[begin:end]

        return replace(
            self,
            student=cut(self.student),
            teacher=_changed(self.teacher, cut),
            labels=None if self.labels is None else cut(self.labels),
            mask=None if self.mask is None else cut(self.mask),
            hidden=matched.MatchedLayers(),
        )

    def with_teacher_logits(self, linear: Linear = functional.linear) -> "Rows":
        """The same with the logits that a TeacherHead makes, of real columns only, in its place."""
        if not isinstance(self.teacher, TeacherHead):
            return self
        hidden, weight, bias = self.teacher.hidden, self.teacher.weight, self.teacher.bias
        weight = weight[: self.vocab_size]
        bias = None if bias is None else bias[: self.vocab_size]
        return replace(self, teacher=linear(hidden, weight, bias))


def _changed(teacher: RowTeacher, change: Callable[[Tensor], Tensor]) -> RowTeacher:
    """The same kind of teacher with every tensor that has a row a token changed."""
    if isinstance(teacher, Tensor):
        return change(teacher)
    if isinstance(teacher, SparseTeacher):
        ids, logits, log_z = map(change, (teacher.ids, teacher.logits, teacher.log_z))
        return replace(teacher, ids=ids, logits=logits, log_z=log_z)
    if isinstance(teacher, SampledTeacher):
        return SampledTeacher(change(teacher.ids), change(teacher.weights))
    if isinstance(teacher, PackedSampledTeacher):
        return replace(teacher, entries=change(teacher.entries))
    return replace(teacher, hidden=change(teacher.hidden))


def flatten(
    student: Tensor,
    teacher: Teacher,
    labels: Tensor | None,
    student_hidden: matched.Hidden | None,
    teacher_hidden: matched.TeacherHidden | None,
    *,
    tokens: Tokens,
    num_columns: int,
    is_sharded: bool = False,
    spec: LossSpec,
    mask: Tensor | None,
    vocab_size: int | None,
    num_tokens: Tensor | float | None,
    hidden_mask: Tensor | None,
    hidden_projection: matched.Projection | None,
) -> Rows:
    """Check the arguments of a loss and flatten their leading dimensions.

    ``student`` is its logits or what a head makes them of; of logits there are ``num_columns``.
    Where the vocabulary is sharded, these are some of all ``vocab_size``.
    """
    function = tokens.function
    if spec.ce_weight and labels is None:
        raise checks.labels_missing(function, spec.ce_weight)
    if labels is not None:
        _check_integer(function, "labels", labels)
        labels = tokens.flat("labels", labels, trailing=0).long()
    if mask is not None:
        if mask.dtype != torch.bool:
            raise checks.wrong_dtype(function, "mask", "bool", mask.dtype)
        mask = tokens.flat("mask", mask, trailing=0)
    _check_divergence(function, teacher, spec)
    row_teacher, teacher_columns = _flatten_teacher(teacher, tokens, num_columns)
    if vocab_size is None or not is_sharded or num_columns != teacher_columns:
        vocab_size = _real_columns(function, num_columns, teacher_columns, vocab_size)
    hidden = matched.flatten(student_hidden, teacher_hidden, hidden_mask, hidden_projection, tokens)
    if spec.hidden_weight and not hidden.student:
        raise checks.hidden_missing(function, tokens.layers, "0 of them")
    return Rows(
        student=tokens.flat("student", student, trailing=1),
        teacher=row_teacher,
        vocab_size=vocab_size,
        labels=labels,
        mask=mask,
        num_tokens=_denominator(num_tokens, tokens),
        hidden=hidden,
        ignore_index=spec.ignore_index,
        tokens=tokens,
    )


def _check_divergence(function: str, teacher: Teacher, spec: LossSpec) -> None:
    """A sample knows the forward KL's gradient only, and a sparse teacher has not every logit."""
    is_sampled = isinstance(teacher, SampledTeacher | PackedSampledTeacher)
    if is_sampled and spec.divergence != "forward_kl":
        kind = type(teacher).__name__
        raise checks.divergence_needs_more(function, kind, spec.divergence, "'forward_kl'")
    if isinstance(teacher, SparseTeacher) and spec.divergence == "logit_mse":
        raise checks.divergence_needs_more(
            function, "SparseTeacher", spec.divergence, "one of distributions"
        )


def _check_integer(function: str, argument: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise checks.wrong_dtype(function, argument, "integer", tensor.dtype)


def _flatten_teacher(teacher: Teacher, tokens: Tokens, num_columns: int) -> tuple[RowTeacher, int]:
    """The teacher as rows, and how many columns it has (the student's where it does not say)."""
    function, flat = tokens.function, tokens.flat_target
    if isinstance(teacher, TeacherHead):
        checks.head(function, "TeacherHead.", teacher.hidden, teacher.weight, teacher.bias)
        for name, tensor in (("weight", teacher.weight), ("bias", teacher.bias)):
            if tensor is not None and tensor.requires_grad:
                raise checks.teacher_requires_grad(function, f"TeacherHead.{name}")
        hidden = flat("TeacherHead.hidden", teacher.hidden, trailing=1)
        return replace(teacher, hidden=hidden), len(teacher.weight)
    if isinstance(teacher, SparseTeacher):
        checks.one_of("SparseTeacher", "tail", teacher.tail, TAILS)
        _check_integer(function, "SparseTeacher.ids", teacher.ids)
        return SparseTeacher(
            flat("SparseTeacher.ids", teacher.ids, trailing=1),
            flat("SparseTeacher.logits", teacher.logits, trailing=1),
            flat("SparseTeacher.log_z", teacher.log_z, trailing=0),
            teacher.tail,
        ), num_columns
    if isinstance(teacher, SampledTeacher):
        _check_integer(function, "SampledTeacher.ids", teacher.ids)
        return SampledTeacher(
            flat("SampledTeacher.ids", teacher.ids, trailing=1),
            flat("SampledTeacher.weights", teacher.weights, trailing=1),
        ), num_columns
    if isinstance(teacher, PackedSampledTeacher):
        argument, entries = "PackedSampledTeacher.entries", teacher.entries
        if entries.dtype != torch.uint8:
            raise checks.wrong_dtype(function, argument, "uint8", entries.dtype)
        if entries.dim() < 2 or entries.shape[-1] != 3:
            raise checks.entries_not_three_bytes(function, entries.shape)
        return replace(teacher, entries=flat(argument, entries, trailing=2)), num_columns
    if not isinstance(teacher, Tensor):
        raise checks.unknown_teacher(function, type(teacher).__name__)
    checks.floating_point(function, "teacher", teacher)
    return flat("teacher", teacher, trailing=1), teacher.shape[-1]


def _real_columns(function: str, student: int, teacher: int, vocab_size: int | None) -> int:
    if vocab_size is None:
        if student != teacher:
            raise checks.vocabulary_mismatch(function, student, teacher)
        return student
    if not 1 <= vocab_size <= min(student, teacher):
        raise checks.vocab_size_out_of_range(function, vocab_size, min(student, teacher))
    return vocab_size


def _denominator(num_tokens: Tensor | float | None, tokens: Tokens) -> Tensor | None:
    """float32 ``[]`` on the student's device, without waiting for it."""
    if num_tokens is None:
        return None
    if not isinstance(num_tokens, Tensor):
        return torch.full((), num_tokens, dtype=torch.float32, device=tokens.device)
    if num_tokens.numel() != 1:
        raise checks.num_tokens_not_one(tokens.function, num_tokens.shape)
    checks.on_device(tokens.function, "num_tokens", num_tokens, tokens.device)
    return num_tokens.detach().float().reshape(())
