"""A case of kd_loss with its gradients, on any device and in any precision, and its truth."""

import dataclasses
from typing import Any

import torch
from budget import assert_within_budget
from torch import Tensor

from mkd_fast import kd_loss

Case = dict[str, Any]  # arguments of kd_loss
Values = dict[str, Tensor]

GRADIENT = "gradient of student_logits"


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


def evaluate(
    arguments: Case, impl: str, device: str = "cpu", dtype: torch.dtype | None = None
) -> Values:
    """Values and gradients; the incoming one changes its sign from token to token."""
    arguments = {name: converted(value, device, dtype) for name, value in arguments.items()}
    leaves = {GRADIENT: arguments["student_logits"].requires_grad_()}
    for layer, states in enumerate(arguments.get("student_hidden", [])):
        leaves[f"gradient of student_hidden[{layer}]"] = states.requires_grad_()
    out = kd_loss(**arguments, impl=impl)
    incoming = torch.full_like(out.loss, 2.0)  # a power of two adds no rounding
    incoming.view(-1)[1::2] = -2.0
    gradients = torch.autograd.grad(
        out.loss, list(leaves.values()), incoming, materialize_grads=True
    )
    values = {"loss": out.loss.detach(), "kd": out.kd, "ce": out.ce, "hidden": out.hidden}
    return values | dict(zip(leaves, gradients, strict=True))


def exact_and_plain(arguments: Case, device: str = "cpu") -> tuple[Values, Values]:
    """The reference in float64, and in float32 throughout."""
    exact = evaluate(arguments, "eager", device, torch.float64)
    return exact, evaluate(arguments, "eager", device, torch.float32)


def assert_all_within_budget(actual: Values, exact: Values, plain: Values) -> None:
    """Each value and each gradient; see budget.py."""
    for what, value in actual.items():
        assert_within_budget(value, exact[what], plain[what].to(value.dtype), what)
