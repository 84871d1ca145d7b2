"""The eager reference: what every kernel must compute, in plain differentiable torch.

It is the specification. It runs on any device, sums in float32 (float64 for float64 logits), and
is written to be read; kernels are judged against it in float64. All functions take rows: leading
dimensions have been flattened to N by the caller.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast.losses import divergences
from mkd_fast.losses.matched import MatchedLayers
from mkd_fast.losses.rows import Rows
from mkd_fast.losses.spec import LossOutput, LossSpec
from mkd_fast.losses.targets import SampledTeacher, SparseTeacher

# N tokens, V vocabulary, K kept ids, P positions of hidden states a token, D width


def _accumulate(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def transformed(logits_NV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits as the loss sees them: scaled, then capped; -inf stays a zero probability."""
    scaled = _accumulate(logits_NV) * scale
    if softcap is None:
        return scaled
    return torch.where(scaled == -torch.inf, scaled, softcap * torch.tanh(scaled / softcap))


def _dense(student_NV: Tensor, teacher: Tensor, spec: LossSpec, vocab_size: int) -> Tensor:
    teacher_NV = transformed(
        teacher[:, :vocab_size], spec.teacher_logit_scale, spec.resolved_teacher_softcap
    ).to(student_NV.dtype)
    if spec.divergence == "logit_mse":
        return (student_NV - teacher_NV).square().sum(-1) / max(vocab_size, 1)
    log_p_NV = functional.log_softmax(teacher_NV / spec.resolved_teacher_temperature, -1)
    log_q_NV = functional.log_softmax(student_NV / spec.temperature, -1)
    return divergences.of_distributions(log_p_NV, log_q_NV, spec)


def _sparse(student_NV: Tensor, teacher: SparseTeacher, spec: LossSpec) -> Tensor:
    """Top-k targets. Everything but ``bucket`` is a dense teacher written out."""
    num_rows, vocab_size = student_NV.shape
    log_q_NV = functional.log_softmax(student_NV / spec.temperature, -1)
    is_empty_NK = teacher.ids < 0
    logits_NK = transformed(teacher.logits, spec.teacher_logit_scale, spec.resolved_teacher_softcap)
    log_p_NK = logits_NK / spec.resolved_teacher_temperature - teacher.log_z[:, None]
    log_p_NK = log_p_NK.to(log_q_NV.dtype).masked_fill(is_empty_NK, -torch.inf)
    kept_mass_N = log_p_NK.exp().sum(-1, keepdim=True).clamp(max=1.0)
    log_rest_N = torch.log1p(-kept_mass_N)  # log r; -inf where nothing is left
    slots_NK = teacher.ids.long().masked_fill(is_empty_NK, vocab_size)  # empty: one past the end
    is_kept_NV = torch.zeros(
        num_rows, vocab_size + 1, dtype=torch.bool, device=log_q_NV.device
    ).scatter(1, slots_NK, True)[:, :-1]
    if teacher.tail == "bucket":
        # where K = V leaves no other id, what rounding left of r is none, and so is q_tail
        is_all_N = is_kept_NV.all(-1, keepdim=True)
        log_rest_N = log_rest_N.masked_fill(is_all_N, -torch.inf)
        lowest = torch.finfo(log_q_NV.dtype).min  # -inf alone would make the gradient NaN
        log_q_tail_N = log_q_NV.masked_fill(is_kept_NV, lowest).logsumexp(-1, keepdim=True)
        log_q_tail_N = log_q_tail_N.masked_fill(is_all_N, -torch.inf)
        log_q_NK = log_q_NV.gather(1, slots_NK.clamp(max=vocab_size - 1))
        return divergences.of_distributions(
            torch.cat([log_p_NK, log_rest_N], -1),
            torch.cat([log_q_NK.masked_fill(is_empty_NK, -torch.inf), log_q_tail_N], -1),
            spec,
        )
    outside = torch.full_like(log_q_NV, -torch.inf)
    if teacher.tail == "uniform":
        outside = (log_rest_N - (~is_kept_NV).sum(-1, keepdim=True).log()).expand_as(log_q_NV)
    if teacher.tail == "renormalize":
        log_p_NK = log_p_NK - kept_mass_N.log()
    log_p_NV = functional.pad(outside, (0, 1)).scatter(1, slots_NK, log_p_NK)[:, :-1]
    return divergences.of_distributions(log_p_NV, log_q_NV, spec)


def _sampled(student_NV: Tensor, teacher: SampledTeacher, spec: LossSpec) -> Tensor:
    log_q_NV = functional.log_softmax(student_NV / spec.temperature, -1)
    is_empty_NK = teacher.ids < 0
    log_q_NK = log_q_NV.gather(1, teacher.ids.long().clamp(min=0)).masked_fill(is_empty_NK, 0.0)
    return -(teacher.weights.to(log_q_NV.dtype) * log_q_NK).sum(-1)


def _one_minus_cosine(a_NPD: Tensor, b_NPD: Tensor) -> Tensor:
    """1 - cos of the angle between them, their lengths at least 1e-8: 1 where one is zero."""
    squares = (tensor.square().sum(-1) for tensor in (a_NPD, b_NPD))
    inverse_a_NP, inverse_b_NP = (square.clamp(min=1e-16).rsqrt() for square in squares)
    return 1.0 - (a_NPD * b_NPD).sum(-1) * inverse_a_NP * inverse_b_NP


def _hidden_error(hidden: MatchedLayers, like: Tensor, distance: str) -> Tensor:
    """Mean over matched layers and counted positions of the distance, one value a token."""
    total = like.new_zeros(like.shape[0])
    for student, teacher in zip(hidden.student, hidden.teacher_values(), strict=True):
        student_NPD, teacher_NPD = _accumulate(student), _accumulate(teacher)
        if distance == "mse":
            error_NP = (student_NPD - teacher_NPD).square().mean(-1)
        else:
            error_NP = _one_minus_cosine(student_NPD, teacher_NPD)
        if hidden.mask is None:
            total = total + error_NP.mean(-1)
        else:
            error_NP = error_NP.masked_fill(~hidden.mask, 0.0)
            total = total + error_NP.sum(-1) / hidden.mask.sum(-1).clamp(min=1)
    return total / max(len(hidden.student), 1)


def kd(rows: Rows, spec: LossSpec) -> LossOutput:
    """The loss of ``kd_loss`` on flattened rows, for any teacher but ``TeacherHead``."""
    counts_N = rows.counts()
    rows = rows.cleared(counts_N)
    student_NV = transformed(rows.student[:, : rows.vocab_size], spec.logit_scale, spec.softcap)
    if isinstance(rows.teacher, SparseTeacher):
        kd_N = _sparse(student_NV, rows.teacher, spec)
    elif isinstance(rows.teacher, SampledTeacher):
        kd_N = _sampled(student_NV, rows.teacher, spec)
    else:
        assert isinstance(rows.teacher, Tensor), "cleared rows hold no packed teacher"
        kd_N = _dense(student_NV, rows.teacher, spec, rows.vocab_size)
    kd_N = kd_N * spec.kd_scale
    if rows.labels is None:
        ce_N = torch.zeros_like(kd_N)
    else:
        labels_N = rows.labels.masked_fill(~counts_N, 0)
        ce_N = functional.cross_entropy(student_NV, labels_N, reduction="none")
    hidden_N = _hidden_error(rows.hidden, kd_N, spec.hidden_distance)

    def reduced(value_N: Tensor) -> Tensor:
        value_N = torch.where(counts_N, value_N, 0.0)
        if spec.reduction == "none":
            return value_N
        total = value_N.sum()
        return total / rows.denominator(counts_N) if spec.reduction == "mean" else total

    kd, ce, hidden = reduced(kd_N), reduced(ce_N), reduced(hidden_N)
    weighted = [(spec.kd_weight, kd), (spec.ce_weight, ce), (spec.hidden_weight, hidden)]
    loss = sum((weight * term for weight, term in weighted if weight), torch.zeros_like(kd))
    return LossOutput(loss, kd.detach(), ce.detach(), hidden.detach())
