"""What moves the parameters, and which of them it may move."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mkd_fast.checks import train as checks
from mkd_fast.train.config import OptimConfig


def freeze(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Parameters whose names, or names inside the model, begin so get no gradient.

    Raises:
        ValueError: a beginning that no name has.
    """
    named = dict(model.named_parameters())
    for beginning in beginnings:
        frozen = [name for name in named if f".{beginning}" in f".{name}"]
        if not frozen:
            raise checks.nothing_to_freeze(beginning, named)
        for name in frozen:
            named[name].requires_grad_(False)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Fused AdamW of what is not frozen; matrices decay, vectors (biases, norms) do not.

    It moves nothing, and no state of it, in a step at which its ``found_inf`` is not 0.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
