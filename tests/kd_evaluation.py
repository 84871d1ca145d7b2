"""A case of kd_loss with its gradients, on any device and in any precision."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mkd_fast import kd_loss

WITH_GRADIENT = ("student_logits", "student_hidden")


def converted(value: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """Fresh tensors with the same strides, also those inside a list or a teacher."""
    if isinstance(value, list):
        return [converted(item, device, dtype) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return type(value)(**{name: converted(v, device, dtype) for name, v in fields.items()})
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device, dtype if value.is_floating_point() else None)


def run(
    arguments: dict[str, Any], impl: str, device: str, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Values and gradients; an incoming gradient that differs from token to token."""
    arguments = {name: converted(value, device, dtype) for name, value in arguments.items()}
    leaves = {}
    for name in WITH_GRADIENT:
        value = arguments.get(name, [])
        for index, tensor in enumerate(value if isinstance(value, list) else [value]):
            leaves[f"{name}[{index}]"] = tensor.requires_grad_()
    out = kd_loss(**arguments, impl=impl)
    weights = torch.linspace(0.5, 2.0, max(out.loss.numel(), 1), device=device)
    (out.loss.flatten() * weights[: out.loss.numel()].to(out.loss.dtype)).sum().backward()
    values = {name: getattr(out, name).detach() for name in ("loss", "kd", "ce", "hidden")}
    return values | {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
