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
from typing import Literal, get_args

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
