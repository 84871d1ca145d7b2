"""Published kernels that compute a formula of formulas.py, where their package is installed.

Liger (liger_kernel, from 0.8) and orda (orda_kernel, from 0.1) are used as their documentation
says, put together to the whole formula with plain torch where they compute a part of it: Liger's
kernels know neither T^2 nor a label term beside the divergence. What of their interface is not
there, or fails, is told by the judge and not timed.
"""

from collections.abc import Callable
from importlib import util

import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast.benchmarks.formulas import CE_WEIGHT, TEMPERATURE
from mkd_fast.benchmarks.inputs import Run, with_gradients


def rivals(formula_name: str) -> dict[str, Run]:
    """Who computes a formula, by the name that goes into the results."""
    return {
        name: with_gradients(loss_of)
        for name, (package, loss_of) in _RIVALS.get(formula_name, {}).items()
        if util.find_spec(package)
    }


def _liger_kl_div(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerKLDIVLoss

    student, teacher = student.float(), teacher.float()
    log_q = functional.log_softmax(student / TEMPERATURE, -1)
    log_p = functional.log_softmax(teacher / TEMPERATURE, -1)
    kd = LigerKLDIVLoss(reduction="batchmean", log_target=True)(log_q, log_p)
    loss: Tensor = TEMPERATURE**2 * kd + CE_WEIGHT * functional.cross_entropy(student, labels)
    return loss


def _liger_jsd(student: Tensor, teacher: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerJSD

    sides = (functional.log_softmax(side.float(), -1) for side in (student, teacher))
    loss: Tensor = LigerJSD(beta=0.5)(*sides)
    return loss


def _liger_linear_kl_div(
    hidden: Tensor, weight: Tensor, labels: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """Its target is made of probabilities, so the teacher's are held whole."""
    from liger_kernel.transformers import (
        LigerFusedLinearCrossEntropyLoss,
        LigerFusedLinearKLDivLoss,
    )

    with torch.no_grad():
        target = functional.linear(teacher_hidden, teacher_weight)
        target = functional.softmax(target.float() / TEMPERATURE, -1)
    kd = LigerFusedLinearKLDivLoss(temperature=TEMPERATURE)(hidden, weight, target)
    ce = LigerFusedLinearCrossEntropyLoss()(weight, hidden, labels)
    loss: Tensor = TEMPERATURE**2 * kd + CE_WEIGHT * ce
    return loss


def _liger_linear_jsd(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss_of = LigerFusedLinearJSD(jsd_beta=0.5)
    loss: Tensor = loss_of(hidden, weight, teacher_hidden, teacher_weight, None)
    return loss


def _liger_chunked_jsd(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss_of = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    labels = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)  # they mark tokens
    loss: Tensor = loss_of(hidden, weight, teacher_hidden, teacher_weight, labels)
    return loss


def _orda(
    hidden: Tensor, weight: Tensor, labels: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    from orda_kernel import PrecomputedTeacher, distillation_loss

    loss: Tensor = distillation_loss(
        hidden,
        weight,
        labels,
        PrecomputedTeacher(teacher_hidden=teacher_hidden, teacher_weight=teacher_weight),
        student_ce_weight=CE_WEIGHT,
        kl_weight=1.0,
        kl_temperature=TEMPERATURE,
        kl_divergence="forward",
        backend="triton" if hidden.is_cuda else "torch",
    ).loss
    return loss


_RIVALS: dict[str, dict[str, tuple[str, Callable[..., Tensor]]]] = {
    "dense_kd": {"Liger KLDiv": ("liger_kernel", _liger_kl_div)},
    "jsd": {"Liger JSD": ("liger_kernel", _liger_jsd)},
    "linear_kd": {
        "Liger FusedLinearKLDiv": ("liger_kernel", _liger_linear_kl_div),
        "orda": ("orda_kernel", _orda),
    },
    "linear_jsd": {
        "Liger FusedLinearJSD": ("liger_kernel", _liger_linear_jsd),
        "Liger chunked JSD": ("liger_kernel", _liger_chunked_jsd),
    },
}
