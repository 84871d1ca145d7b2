"""What is asked of a loss (LossSpec) and what comes back (LossOutput)."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from mkd_fast.checks import losses as checks

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "tvd",
    "alpha_beta",
    "logit_mse",
]
HiddenDistance = Literal["mse", "cosine"]
Reduction = Literal["mean", "sum", "none"]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)
HIDDEN_DISTANCES: tuple[str, ...] = get_args(HiddenDistance)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


@dataclass(frozen=True)
class LossSpec:
    """Every choice that a distillation loss leaves open, checked once when it is made.

    The loss of a token is ``kd_weight * T^2 * D(p, q) + ce_weight * CE(z_s, y) +
    hidden_weight * H`` with ``p = softmax(z_t / T_t)``, ``q = softmax(z_s / T_s)`` and natural
    logarithms.

    Args:
        divergence: D; one of ``DIVERGENCES``.
        temperature: T_s > 0; also the teacher's unless ``teacher_temperature`` is given.
        teacher_temperature: T_t > 0, or None for the student's.
        kd_weight, ce_weight, hidden_weight: weights of the three terms, >= 0.
        hidden_distance: H of a matched pair: ``"mse"``, the mean of (h_s - h_t)^2 over the
            width, or ``"cosine"``, 1 - cos(h_s, h_t).
        temperature_squared: multiply the kd term, value and gradient, by T_s^2 (Hinton et al.,
            arXiv 1503.02531); never for ``logit_mse``, which knows no temperature.
        beta: in [0, 1]. ``jsd``: 0 is forward_kl and 1 is reverse_kl. ``skew_*``: the share of
            the first distribution in the mixture.
        alpha_beta: (alpha, beta) for ``divergence="alpha_beta"``, else None.
        ignore_index: the label of a token that does not count.
        reduction: ``"mean"`` over tokens that count, ``"sum"``, or ``"none"`` (one value a token).
        softcap: z -> softcap * tanh(z / softcap) before the temperature; None: off.
        teacher_softcap: the same for the teacher; ``"same"`` takes the student's.
        logit_scale: z -> logit_scale * z before the softcap.
        teacher_logit_scale: the same for the teacher.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    teacher_temperature: float | None = None
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    hidden_weight: float = 0.0
    hidden_distance: HiddenDistance = "mse"
    temperature_squared: bool = True
    beta: float = 0.5
    alpha_beta: tuple[float, float] | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"
    softcap: float | None = None
    teacher_softcap: float | Literal["same"] | None = "same"
    logit_scale: float = 1.0
    teacher_logit_scale: float = 1.0

    def __post_init__(self) -> None:
        checks.one_of("LossSpec", "divergence", self.divergence, DIVERGENCES)
        checks.one_of("LossSpec", "reduction", self.reduction, REDUCTIONS)
        checks.one_of("LossSpec", "hidden_distance", self.hidden_distance, HIDDEN_DISTANCES)
        for name in ("temperature", "teacher_temperature", "softcap"):
            checks.positive("LossSpec", name, getattr(self, name))
        if self.teacher_softcap != "same":
            checks.positive("LossSpec", "teacher_softcap", self.teacher_softcap)
        for name in ("kd_weight", "ce_weight", "hidden_weight"):
            checks.not_negative("LossSpec", name, getattr(self, name))
        if not 0.0 <= self.beta <= 1.0:
            raise checks.beta_out_of_range(self.beta)
        if (self.alpha_beta is not None) != (self.divergence == "alpha_beta"):
            raise checks.alpha_beta_mismatch(self.divergence, self.alpha_beta)

    @property
    def kd_scale(self) -> float:
        """T^2 where the kd term is multiplied by it, else 1."""
        squared = self.temperature_squared and self.divergence != "logit_mse"
        return self.temperature**2 if squared else 1.0

    @property
    def resolved_teacher_temperature(self) -> float:
        """T_t: the teacher's own temperature, or the student's."""
        return self.temperature if self.teacher_temperature is None else self.teacher_temperature

    @property
    def resolved_teacher_softcap(self) -> float | None:
        """The teacher's own softcap, or the student's."""
        return self.softcap if self.teacher_softcap == "same" else self.teacher_softcap


@dataclass(frozen=True, eq=False)
class LossOutput:
    """A loss and its parts, float32 (float64 for float64 logits).

    Shapes are ``[]``, or the leading shape of the logits with ``reduction="none"``.

    Attributes:
        loss: the weighted sum; the only one that carries a gradient.
        kd: the divergence with its T^2, reduced as the loss, detached, without ``kd_weight``.
        ce: cross-entropy with the labels (0 without labels), detached, without ``ce_weight``.
        hidden: the hidden-state error (0 without hidden states), detached, unweighted.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    hidden: Tensor
