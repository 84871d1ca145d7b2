"""How a rate or a weight goes over the steps of a training, as a share of its peak.

    constant   up, then 1
    linear     up, then straight down to 0
    cosine     up, then down to 0 along half a cosine
    wsd        up, 1, then straight down to 0 over the last ``decay`` of the steps

Up is linear, over the first ``warmup`` of the steps. Step 1 is above 0, and so is the last: a step
that moves nothing is not taken. "wsd" (warmup-stable-decay) for the rate and for the weight of the
teacher's loss alike is what pre-training distillation did best with: arXiv 2410.16215, section 3.3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from mkd_fast.checks import recipe as checks
from mkd_fast.losses import LossSpec

Shape = Literal["constant", "linear", "cosine", "wsd"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def share_of_peak(
    step: int, num_steps: int, shape: Shape, *, warmup: float = 0.0, decay: float = 0.1
) -> float:
    """The share of its peak that something has at a step, in (0, 1].

    Args:
        step: from 1 to ``num_steps``.
        num_steps: of the whole training.
        shape: of ``SHAPES``.
        warmup: share of the steps that lead up, in [0, 1]; 0: one step.
        decay: share of the steps that lead down under "wsd", in [0, 1]; 0: none.
    """
    warmup_steps = max(1, round(warmup * num_steps))
    if step <= warmup_steps:
        return step / warmup_steps
    left = num_steps - step + 1  # the last one included
    after_warmup = num_steps - warmup_steps + 1
    down: dict[Shape, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "linear": lambda: left / after_warmup,
        "cosine": lambda: 0.5 * (1.0 - math.cos(math.pi * left / after_warmup)),
        "wsd": lambda: min(1.0, left / (round(decay * num_steps) + 1)),
    }
    return down[shape]()


@dataclass(frozen=True)
class LossSchedule:
    """``[loss_schedule]``: weights of the loss that go from what ``[loss]`` says to another value.

    ``hidden_weight = ["cosine", 0.0]`` takes that of the hidden states down to 0, and
    ``ce_weight = ["linear", 1.0]`` that of the labels, from wherever it starts, to 1:

        weight = end + share_of_peak * (start - end)

    so that under a warmup a weight comes from ``end`` to ``start`` first.

    Args:
        kd_weight, ce_weight, hidden_weight: how it goes and where it ends; None: it stays.
        warmup: share of the steps that lead to what ``[loss]`` says, in [0, 1].
        decay: share of the steps that lead from it under "wsd", in [0, 1].
    """

    kd_weight: tuple[Shape, float] | None = None
    ce_weight: tuple[Shape, float] | None = None
    hidden_weight: tuple[Shape, float] | None = None
    warmup: float = 0.0
    decay: float = 0.1

    def __post_init__(self) -> None:
        for name, (_, end) in self._moving.items():
            checks.not_negative("recipe: [loss_schedule]", name, end)
        for key in ("warmup", "decay"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise checks.share_out_of_range("recipe: [loss_schedule]", key, getattr(self, key))

    @property
    def _moving(self) -> dict[str, tuple[Shape, float]]:
        found = {name: getattr(self, name) for name in ("kd_weight", "ce_weight", "hidden_weight")}
        return {name: moves for name, moves in found.items() if moves is not None}

    def weights_at(self, spec: LossSpec, step: int, num_steps: int) -> dict[str, float]:
        """Those that move, at a step (from 1).

        Args:
            spec: has what they start at.
            step: from 1 to ``num_steps``.
            num_steps: of the whole training.
        """
        weights = {}
        for name, (shape, end) in self._moving.items():
            share = share_of_peak(step, num_steps, shape, warmup=self.warmup, decay=self.decay)
            weights[name] = end + share * (getattr(spec, name) - end)
        return weights

    def most_hidden_weight(self, spec: LossSpec) -> float:
        """The largest that the weight of hidden states ever is; 0: no step compares any."""
        end = 0.0 if self.hidden_weight is None else self.hidden_weight[1]
        return max(spec.hidden_weight, end)


CONSTANT = LossSchedule()
