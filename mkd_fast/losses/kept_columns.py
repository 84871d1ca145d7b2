"""A teacher of the full vocabulary, as the teacher of a student that kept a part of it.

The student cannot say a token that was dropped, so it learns what the teacher says given that it
says none of those: with S the kept tokens and P(S) the sum of p over them,

    p'_v = p_v / P(S)        for v in S

dense, TeacherHead
    Exact: softmax over the kept columns is p'. Other columns, and rows of a head, are left out.

SparseTeacher
    Of the dropped mass, the part d that stands at listed ids is known. How much of the rest r that
    is not listed belongs to dropped tokens is not, so P(S) is known to lie in [1 - d - r, 1 - d].
    ``dropped="renormalize"`` takes the upper end, as if all of the rest were kept tokens':

        log_z' = log_z + log(1 - d),   p'_k = p_k / (1 - d),   r' = r / (1 - d)

    This is exact if they are, and else each log p'_k is too low by at most -log(1 - r'). With
    tail="renormalize" it does not matter: the target is p given an id that is listed and kept.
    ``dropped="bucket"`` leaves log_z as it is: every p_k, and the mass of "anything else", now
    r + d, are the teacher's own, exactly. But all that the student can say else are kept tokens, so
    these are asked to make up for d: right where the bucket is to mean "not one of the listed",
    wrong as a model of kept text, by at most d in total variation. Both agree where d = 0.

SampledTeacher, PackedSampledTeacher
    Ids that were dropped go, and the other weights are divided by their sum W:

        w'_i = w_i / W,   W = sum of w over kept ids

    At tau = 1 a weight is count / N, and the n draws that fell on S are n draws from p'. So w' is
    count / n, whose expectation is p' given any n > 0, and the expected gradient is that of the
    dense forward KL to p'. At another tau, w' is a ratio of two unbiased estimates, biased by
    O(1 / N). A token without a kept draw, (1 - P(S))^N of them, has no weight and no gradient.

Nothing here waits for the device, and only the dense kinds touch V columns.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast.checks import losses as checks
from mkd_fast.losses.reference import transformed
from mkd_fast.losses.spec import LossSpec
from mkd_fast.losses.targets import (
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    Teacher,
    TeacherHead,
)

Dropped = Literal["renormalize", "bucket"]
DROPPED: tuple[Dropped, ...] = get_args(Dropped)
FUNCTION = "TokenMap.target"


class KeptColumns:
    """The columns that a student kept of its teacher's, on one device.

    Args:
        columns: int64 ``[V_s]``, the teacher's column of each of the student's.
        new_ids: int64 ``[V_t]``, each old id's new one, -1 where it was dropped.
        num_needed: columns that a dense teacher must have at least: the largest kept, and one.
    """

    def __init__(self, columns: Tensor, new_ids: Tensor, num_needed: int) -> None:
        self._columns, self._num_needed = columns, num_needed
        self._new_ids = functional.pad(new_ids, (0, 1), value=-1)  # the last is of ids outside
        self._cut: tuple[Tensor, TeacherHead] | None = None

    def ids(self, old_ids: Tensor) -> Tensor:
        """The new ids, of the same dtype: -1 where dropped, negative or past the vocabulary."""
        outside = len(self._new_ids) - 1
        is_outside = (old_ids < 0) | (old_ids >= outside)
        return self._new_ids[old_ids.long().masked_fill(is_outside, outside)].to(old_ids.dtype)

    def labels(self, labels: Tensor, ignore_index: int) -> Tensor:
        """The new labels: ignored where dropped; what is no id of the vocabulary stays."""
        is_id = (labels >= 0) & (labels < len(self._new_ids) - 1)
        new = self.ids(labels)
        return torch.where(is_id, new.masked_fill(new < 0, ignore_index), labels)

    def target(self, teacher: Teacher, spec: LossSpec, dropped: Dropped) -> Teacher:
        """What ``TokenMap.target`` documents."""
        checks.one_of(FUNCTION, "dropped", dropped, DROPPED)
        if isinstance(teacher, SparseTeacher):
            if dropped == "bucket" and teacher.tail != "bucket":
                raise checks.no_bucket(f"a SparseTeacher with tail={teacher.tail!r}")
            return self._sparse(teacher, spec, dropped)
        if dropped == "bucket":
            raise checks.no_bucket(type(teacher).__name__)
        if isinstance(teacher, SampledTeacher | PackedSampledTeacher):
            return self._sampled(teacher)
        if isinstance(teacher, TeacherHead):
            return self._head(teacher)
        if not isinstance(teacher, Tensor):
            raise checks.unknown_teacher(FUNCTION, type(teacher).__name__)
        checks.floating_point(FUNCTION, "teacher", teacher)
        self._require_columns(teacher.shape[-1])
        return teacher.index_select(-1, self._columns)

    def _sparse(self, teacher: SparseTeacher, spec: LossSpec, dropped: Dropped) -> SparseTeacher:
        ids = self.ids(teacher.ids)
        if dropped == "bucket":
            return replace(teacher, ids=ids)
        logits = transformed(
            teacher.logits, spec.teacher_logit_scale, spec.resolved_teacher_softcap
        )
        log_p = logits / spec.resolved_teacher_temperature - teacher.log_z[..., None]
        p = log_p.exp().masked_fill(teacher.ids < 0, 0.0)
        rest = (1.0 - p.sum(-1)).clamp(min=0.0)
        left = p.masked_fill(ids < 0, 0.0).sum(-1) + rest  # 1 - d, exact where next to none is left
        least = torch.finfo(left.dtype).tiny
        log_left = left.clamp(min=least).log().to(teacher.log_z.dtype)
        return replace(teacher, ids=ids, log_z=teacher.log_z + log_left)

    def _sampled(self, teacher: SampledTeacher | PackedSampledTeacher) -> SampledTeacher:
        if isinstance(teacher, PackedSampledTeacher):
            teacher = teacher.unpacked()
        ids = self.ids(teacher.ids)
        weights = teacher.weights.masked_fill(ids < 0, 0.0)
        total = weights.sum(-1, keepdim=True)
        least = torch.finfo(total.dtype).tiny
        return SampledTeacher(ids, weights / total.clamp(min=least))

    def _head(self, teacher: TeacherHead) -> TeacherHead:
        """The head's kept rows, taken once: a cache hands out the same head with every batch."""
        if self._cut is None or self._cut[0] is not teacher.weight:
            self._require_columns(len(teacher.weight))
            weight = teacher.weight.index_select(0, self._columns)
            bias = None if teacher.bias is None else teacher.bias.index_select(0, self._columns)
            self._cut = teacher.weight, TeacherHead(weight.new_empty(0), weight, bias)
        return replace(self._cut[1], hidden=teacher.hidden)

    def _require_columns(self, num_columns: int) -> None:
        if num_columns < self._num_needed:
            raise checks.not_the_full_vocabulary(FUNCTION, num_columns, self._num_needed)


def device_of(teacher: Teacher) -> torch.device:
    """Where a teacher's tensors are."""
    if isinstance(teacher, TeacherHead):
        return teacher.hidden.device
    if isinstance(teacher, PackedSampledTeacher):
        return teacher.entries.device
    if isinstance(teacher, SparseTeacher | SampledTeacher):
        return teacher.ids.device
    if not isinstance(teacher, Tensor):
        raise checks.unknown_teacher(FUNCTION, type(teacher).__name__)
    return teacher.device
