"""A chunk's loss and gradient where each process holds some columns of the vocabulary.

Every divergence is a sum over columns of what log p and log q are there, and these need one thing
of the whole row: its log-softmax. So each process takes its columns' share of the loss, and what
crosses processes is inside two differentiable functions: in forward the largest logit and the sum
of exponentials, in backward the row's sum of gradients, of which each share knows a part. Plain
torch in chunks, not the fused kernels, whose one sweep has no place for the exchange: about ten
float32 temporaries a logit.

Hidden states, labels and sparse teachers are the same on every process; dense teachers are the
process's own columns.
"""

import itertools
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from mkd_fast.checks import losses as checks
from mkd_fast.losses import divergences
from mkd_fast.losses.reference import transformed
from mkd_fast.losses.rows import Rows
from mkd_fast.losses.spec import LossSpec
from mkd_fast.losses.targets import SampledTeacher, SparseTeacher

# N tokens, V columns of this process, K kept ids

# Of each group the vocabularies that its processes were seen to cover.
_covered: "WeakKeyDictionary[dist.ProcessGroup, set[int]]" = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Shard:
    """This process's part of the vocabulary.

    Attributes:
        group: the processes that hold it all.
        begin: id of the first column here.
        vocab_size: how many columns are real on all processes together.
    """

    group: "dist.ProcessGroup"
    begin: int
    vocab_size: int

    @property
    def is_first(self) -> bool:
        """Whether terms that belong to no column are counted here."""
        return dist.get_rank(self.group) == 0

    @property
    def mean_columns(self) -> int:
        """Real columns a process, if they were spread evenly."""
        return -(-self.vocab_size // dist.get_world_size(self.group))

    def num_real(self, num_columns: int) -> int:
        """How many of this process's columns are real."""
        return max(0, min(num_columns, self.vocab_size - self.begin))

    def check_cover(self, num_columns: int) -> None:
        """Raise if the processes' columns are not the vocabulary, the first time in this group.

        Every process of the group must call it; all of them raise, or none.
        """
        covered = _covered.setdefault(self.group, set())
        if self.vocab_size in covered:
            return
        layouts: list[Any] = [None] * dist.get_world_size(self.group)
        layout = (self.vocab_size, self.begin, self.begin + num_columns)
        dist.all_gather_object(layouts, layout, group=self.group)
        sizes = [vocab_size for vocab_size, _, _ in layouts]
        if len(set(sizes)) > 1:
            raise checks.vocab_sizes_differ(sizes)
        columns = [(begin, end) for _, begin, end in layouts]
        if not _are_all(columns, self.vocab_size):
            raise checks.columns_not_covered(self.vocab_size, columns)
        covered.add(self.vocab_size)

    def local(self, ids: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
        """Ids as columns of this process, and which of them are: others are column 0."""
        columns = ids.long() - self.begin
        is_here = (ids >= 0) & (columns >= 0) & (columns < num_columns)
        return columns.masked_fill(~is_here, 0), is_here


def _are_all(columns: list[tuple[int, int]], vocab_size: int) -> bool:
    """Whether these, up to ``vocab_size``, are each column once."""
    real = ((begin, min(end, vocab_size)) for begin, end in columns)
    parts = [(0, 0), *sorted(part for part in real if part[0] < part[1]), (vocab_size, vocab_size)]
    return all(one[1] == next_[0] for one, next_ in itertools.pairwise(parts))


def _largest_and_sum(values_NV: Tensor, group: "dist.ProcessGroup") -> tuple[Tensor, Tensor]:
    """``[N, 1]`` over all processes: m, the largest value, and the sum of exp(value - m)."""
    largest_N = values_NV.new_full((len(values_NV), 1), -torch.inf)
    if values_NV.shape[1]:
        largest_N = values_NV.amax(-1, keepdim=True)
    dist.all_reduce(largest_N, dist.ReduceOp.MAX, group=group)
    sum_N = (values_NV - largest_N).exp().sum(-1, keepdim=True)
    dist.all_reduce(sum_N, group=group)
    return largest_N, sum_N


class _LogSoftmax(torch.autograd.Function):
    """Over the columns of all processes, of those here, ``[N, V]``."""

    @staticmethod
    def forward(ctx: Any, values_NV: Tensor, group: "dist.ProcessGroup") -> Tensor:
        largest_N, sum_N = _largest_and_sum(values_NV, group)
        log_softmax_NV = values_NV - largest_N - sum_N.log()
        ctx.save_for_backward(log_softmax_NV)
        ctx.group = group
        return log_softmax_NV

    @staticmethod
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor, None]:
        (log_softmax_NV,) = ctx.saved_tensors
        sum_N = grad_NV.sum(-1, keepdim=True)
        dist.all_reduce(sum_N, group=ctx.group)
        return grad_NV - log_softmax_NV.exp() * sum_N, None


class _LogSumExp(torch.autograd.Function):
    """Over the columns of all processes: ``[N, 1]`` of those here, ``[N, V]``."""

    @staticmethod
    def forward(ctx: Any, values_NV: Tensor, group: "dist.ProcessGroup") -> Tensor:
        largest_N, sum_N = _largest_and_sum(values_NV, group)
        log_sum_N = largest_N + sum_N.log()
        ctx.save_for_backward(values_NV, log_sum_N)
        ctx.group = group
        return log_sum_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        values_NV, log_sum_N = ctx.saved_tensors
        grad_N = grad_N.clone()
        dist.all_reduce(grad_N, group=ctx.group)
        return (values_NV - log_sum_N).exp() * grad_N, None


def _log_softmax(values_NV: Tensor, shard: Shard) -> Tensor:
    return _LogSoftmax.apply(values_NV, shard.group)  # type: ignore[no-any-return, no-untyped-call]


def _log_sum_exp(values_NV: Tensor, shard: Shard) -> Tensor:
    return _LogSumExp.apply(values_NV, shard.group)  # type: ignore[no-any-return, no-untyped-call]


def run(
    rows: Rows, spec: LossSpec, shard: Shard, *, needs_grad: bool, grad_loss: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, kd, ce, gradient of loss) as of ``ops.run``; the first three are of all columns.

    ``grad_loss`` is the incoming gradient of each token, 1 if None.
    """
    counts_N = rows.counts()
    rows = rows.cleared(counts_N)
    with torch.set_grad_enabled(needs_grad):
        student = rows.student.detach().requires_grad_(needs_grad)
        student_NV = transformed(student, spec.logit_scale, spec.softcap)
        kd_N = torch.where(counts_N, _kd(student_NV, rows, spec, shard), 0.0) * spec.kd_scale
        ce_N = torch.zeros_like(kd_N)
        if rows.labels is not None:
            ce_N = torch.where(counts_N, _ce(student_NV, rows.labels, shard), 0.0)
        terms = [(spec.kd_weight, kd_N), (spec.ce_weight, ce_N)]
        loss_N = sum((weight * term for weight, term in terms if weight), torch.zeros_like(kd_N))
    grad = torch.zeros_like(student) if needs_grad else student.new_empty(0)
    if loss_N.requires_grad:
        scale_N = torch.ones_like(loss_N) if grad_loss is None else grad_loss.to(loss_N.dtype)
        (grad,) = torch.autograd.grad(loss_N, student, scale_N)
    parts = torch.stack([loss_N, kd_N, ce_N]).detach()
    dist.all_reduce(parts, group=shard.group)
    loss, kd, ce = parts if spec.reduction == "none" else parts.sum(-1)
    return loss, kd, ce, grad


def _ce(student_NV: Tensor, labels_N: Tensor, shard: Shard) -> Tensor:
    columns_N1, is_here_N1 = shard.local(labels_N[:, None], student_NV.shape[1])
    log_q_N1 = _gathered(_log_softmax(student_NV, shard), columns_N1)
    return -torch.where(is_here_N1, log_q_N1, 0.0).squeeze(-1)


def _kd(student_NV: Tensor, rows: Rows, spec: LossSpec, shard: Shard) -> Tensor:
    if isinstance(rows.teacher, Tensor):
        return _dense(student_NV, rows.teacher, spec, shard)
    log_q_NV = _log_softmax(student_NV / spec.temperature, shard)
    if isinstance(rows.teacher, SparseTeacher):
        return _sparse(log_q_NV, rows.teacher, spec, shard)
    assert isinstance(rows.teacher, SampledTeacher), "cleared rows hold no packed teacher"
    columns_NK, is_here_NK = shard.local(rows.teacher.ids, student_NV.shape[1])
    log_q_NK = torch.where(is_here_NK, _gathered(log_q_NV, columns_NK), 0.0)
    return -(rows.teacher.weights.to(log_q_NK.dtype) * log_q_NK).sum(-1)


def _dense(student_NV: Tensor, teacher: Tensor, spec: LossSpec, shard: Shard) -> Tensor:
    teacher_NV = transformed(
        teacher[:, : student_NV.shape[1]], spec.teacher_logit_scale, spec.resolved_teacher_softcap
    ).to(student_NV.dtype)
    if spec.divergence == "logit_mse":
        return (student_NV - teacher_NV).square().sum(-1) / shard.vocab_size
    log_p_NV = _log_softmax(teacher_NV / spec.resolved_teacher_temperature, shard)
    log_q_NV = _log_softmax(student_NV / spec.temperature, shard)
    return divergences.of_distributions(log_p_NV, log_q_NV, spec)


def _sparse(log_q_NV: Tensor, teacher: SparseTeacher, spec: LossSpec, shard: Shard) -> Tensor:
    """As ``reference._sparse``, of the kept ids and other columns that are here."""
    num_rows, num_columns = log_q_NV.shape
    is_empty_NK = teacher.ids < 0
    logits_NK = transformed(teacher.logits, spec.teacher_logit_scale, spec.resolved_teacher_softcap)
    log_p_NK = logits_NK / spec.resolved_teacher_temperature - teacher.log_z[:, None]
    log_p_NK = log_p_NK.to(log_q_NV.dtype).masked_fill(is_empty_NK, -torch.inf)
    kept_mass_N = log_p_NK.exp().sum(-1, keepdim=True).clamp(max=1.0)
    log_rest_N = torch.log1p(-kept_mass_N)
    num_others_N = shard.vocab_size - (~is_empty_NK).sum(-1, keepdim=True)
    columns_NK, is_here_NK = shard.local(teacher.ids, num_columns)
    slots_NK = columns_NK.masked_fill(~is_here_NK, num_columns)  # elsewhere: one past the end
    is_kept_NV = torch.zeros(
        num_rows, num_columns + 1, dtype=torch.bool, device=log_q_NV.device
    ).scatter(1, slots_NK, True)[:, :-1]
    if teacher.tail == "bucket":
        log_rest_N = log_rest_N.masked_fill(num_others_N == 0, -torch.inf)
        lowest = torch.finfo(log_q_NV.dtype).min
        log_q_tail_N = _log_sum_exp(log_q_NV.masked_fill(is_kept_NV, lowest), shard)
        is_counted_here = torch.full_like(is_empty_NK[:, :1], shard.is_first)
        is_event = torch.cat([is_here_NK, is_counted_here], -1)
        log_p = torch.cat([log_p_NK, log_rest_N], -1)
        log_q = torch.cat([_gathered(log_q_NV, columns_NK), log_q_tail_N], -1)
        log_p, log_q = (torch.where(is_event, side, -torch.inf) for side in (log_p, log_q))
        return divergences.of_distributions(log_p, log_q, spec)
    outside = torch.full_like(log_q_NV, -torch.inf)
    if teacher.tail == "uniform":
        outside = (log_rest_N - num_others_N.log()).expand_as(log_q_NV)
    if teacher.tail == "renormalize":
        log_p_NK = log_p_NK - kept_mass_N.log()
    padded = torch.nn.functional.pad(outside, (0, 1))
    log_p_NV = padded.scatter(1, slots_NK, log_p_NK)[:, :-1]
    return divergences.of_distributions(log_p_NV, log_q_NV, spec)


def _gathered(values_NV: Tensor, columns_NK: Tensor) -> Tensor:
    """Values of these columns; of none at all where the process holds none."""
    if values_NV.shape[1] == 0:
        return values_NV.sum(-1, keepdim=True).expand_as(columns_NK)
    return values_NV.gather(1, columns_NK)
