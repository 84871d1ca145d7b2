"""The losses as training scripts have them: the rivals that everybody has.

Plain torch.nn.functional, float32 inside, means over tokens that all count; at T = 2 with T^2 on
the kd term, plus half the cross-entropy with the labels, unless they say otherwise.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast.benchmarks.inputs import Argument

TEMPERATURE = 2.0
CE_WEIGHT = 0.5

# N tokens, V vocabulary, K kept ids, D width


def dense_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    student_hidden: tuple[Tensor, ...] = (),
    teacher_hidden: tuple[Tensor, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Forward KL of ``[N, V]`` logits, with matched hidden layers where there are some."""
    student, teacher = student.to(dtype), teacher.to(dtype)
    log_q = functional.log_softmax(student / TEMPERATURE, -1)
    log_p = functional.log_softmax(teacher / TEMPERATURE, -1)
    kd = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    loss = TEMPERATURE**2 * kd + CE_WEIGHT * functional.cross_entropy(student, labels)
    return loss + hidden(student_hidden, teacher_hidden) if student_hidden else loss


def jsd(student: Tensor, teacher: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Jensen-Shannon divergence, beta = 1/2, at T = 1 and without labels."""
    log_q = functional.log_softmax(student.to(dtype), -1)
    log_p = functional.log_softmax(teacher.to(dtype), -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    from_p = functional.kl_div(log_m, log_p, reduction="batchmean", log_target=True)
    from_q = functional.kl_div(log_m, log_q, reduction="batchmean", log_target=True)
    return 0.5 * (from_p + from_q)


def sparse_kd(
    student: Tensor, ids: Tensor, logits: Tensor, log_z: Tensor, labels: Tensor
) -> Tensor:
    """Forward KL of the K kept ids and one bucket for all others."""
    student = student.float()
    log_q_NK = functional.log_softmax(student / TEMPERATURE, -1).gather(1, ids.long())
    log_p_NK = logits.float() / TEMPERATURE - log_z[:, None]
    p_NK = log_p_NK.exp()
    log_rest_p, log_rest_q = (torch.log1p(-log.exp().sum(-1)) for log in (log_p_NK, log_q_NK))
    kept = (p_NK * (log_p_NK - log_q_NK)).sum(-1)
    kd = (kept + log_rest_p.exp() * (log_rest_p - log_rest_q)).mean()
    return TEMPERATURE**2 * kd + CE_WEIGHT * functional.cross_entropy(student, labels)


def hidden(
    student_hidden: tuple[Tensor, ...],
    teacher_hidden: tuple[Tensor, ...],
    teacher_scale: tuple[Tensor, ...] = (),
) -> Tensor:
    """Mean squared error of matched layers; int8 layers come with a scale a row."""
    if teacher_scale:
        pairs = zip(teacher_hidden, teacher_scale, strict=True)
        teacher_hidden = tuple(values.float() * scale[..., None] for values, scale in pairs)
    errors = [
        functional.mse_loss(ours.float(), theirs.float())
        for ours, theirs in zip(student_hidden, teacher_hidden, strict=True)
    ]
    return torch.stack(errors).mean()


def linear_kd(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``dense_kd`` of logits that are made, whole, from last hidden states and heads."""
    student, teacher = _logits(hidden, weight, teacher_hidden, teacher_weight)
    return dense_kd(student, teacher, labels, dtype=dtype)


def linear_jsd(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``jsd`` of logits that are made whole."""
    student, teacher = _logits(hidden, weight, teacher_hidden, teacher_weight)
    return jsd(student, teacher, dtype=dtype)


def _logits(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        teacher = functional.linear(teacher_hidden, teacher_weight)
    return functional.linear(hidden, weight), teacher


def linear_sparse_kd(
    hidden: Tensor, weight: Tensor, labels: Tensor, ids: Tensor, logits: Tensor, log_z: Tensor
) -> Tensor:
    """``sparse_kd`` of logits that are made whole."""
    return sparse_kd(functional.linear(hidden, weight), ids, logits, log_z, labels)


def compiled(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile of a formula, shapes static; on a GPU it searches its kernels' settings."""

    def run(**arguments: Argument) -> Tensor:
        is_cuda = any(isinstance(a, Tensor) and a.is_cuda for a in arguments.values())
        return _compiled(formula, "max-autotune-no-cudagraphs" if is_cuda else None)(**arguments)

    return run


@functools.cache
def _compiled(formula: Callable[..., Tensor], mode: str | None) -> Callable[..., Tensor]:
    return torch.compile(formula, dynamic=False, mode=mode)
