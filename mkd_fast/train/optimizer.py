"""What moves the parameters, and which of them it may move."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkd_fast.checks import train as checks
from mkd_fast.train.low_bit import adamw8bit
from mkd_fast.train.optim_config import OptimConfig


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
    """AdamW of what is not frozen, of some kind; matrices decay, vectors (biases, norms) do not.

    It moves nothing, and no state of it, in a step at which its ``found_inf`` is not 0. A group
    has as "times" how many times the scheduled rate is its own, unless that is once.

    Raises:
        TypeError: ``config.head_rate`` is not 1, and the model has no head.
        RuntimeError: torchao, which keeps moments in 8 bits, is not installed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    head = set() if config.head_rate == 1.0 else _head(model, config.head_rate)
    groups = _groups([p for p in trained if p not in head], config.weight_decay)
    if head:
        of_head = _groups([p for p in trained if p in head], config.weight_decay)
        groups += [group | {"times": config.head_rate} for group in of_head]
    if config.optimizer == "adamw8bit":
        return adamw8bit(groups, config.learning_rate)
    if config.optimizer == "adamw_foreach":
        return _ForeachAdamW(groups, lr=config.learning_rate, foreach=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _head(model: nn.Module, head_rate: float) -> set[nn.Parameter]:
    """What is not of the base model, and that one's pooler, which is as new where there is one."""
    base = getattr(model, "base_model", model)
    pooler = getattr(base, "pooler", None)
    of_pooler = set() if pooler is None else set(pooler.parameters())
    head = set(model.parameters()) - set(base.parameters()) | of_pooler
    if not head:
        raise checks.no_head(head_rate, type(model).__name__)
    return head


class _ForeachAdamW(torch.optim.AdamW):
    """Which refuses to have a ``found_inf``, at which the fused one looks by itself."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # of no closure
        found_inf: Tensor | None = vars(self).pop("found_inf", None)
        if found_inf is None or not found_inf.item():
            super().step()
