"""What a norm does, tried out on the module rather than known by its class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from mkd_fast.checks import width as checks


@dataclass(frozen=True)
class Norm:
    """y = gain * standardised(x) + bias, unit by unit.

    Attributes:
        is_centred: standardised subtracts the mean over the units (LayerNorm), not RMSNorm.
        gain_offset: gain = gain_offset + weight; 1 for Gemma.
    """

    is_centred: bool
    gain_offset: float

    def standardised(self, x: Tensor) -> Tensor:
        """Float32 x with mean square 1 over the last axis, without the norm's epsilon."""
        x = self.centred(x.float())
        return x * x.square().mean(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()

    def centred(self, x: Tensor) -> Tensor:
        """X, without its mean where the norm subtracts that."""
        return x - x.mean(-1, keepdim=True) if self.is_centred else x


def norms_of(model: PreTrainedModel, names: tuple[str, ...]) -> dict[str, Norm]:
    """What each of these modules does.

    Raises:
        ValueError: one that scales in another way than by its weight or by 1 + its weight.
    """
    found = {}
    for name in names:
        norm: Any = model.get_submodule(name)
        offset = next((o for o in (0.0, 1.0) if _is_silent(norm, -o)), None)
        if offset is None:
            raise checks.laid_out_otherwise(
                type(model).__name__, f"whose norm {name} scales in a way of its own"
            )
        found[name] = Norm(_is_centred(norm), offset)
    return found


def _is_silent(norm: Any, weight: float) -> bool:
    """Whether a norm of this weight and no bias makes nothing of anything."""
    return not _apply(norm, weight, torch.arange(norm.weight.numel())).any()


def _is_centred(norm: Any) -> bool:
    """Whether adding the same to every unit changes nothing."""
    x = torch.arange(norm.weight.numel())
    return torch.allclose(_apply(norm, 0.5, x), _apply(norm, 0.5, x + x.max()), rtol=1e-2)


def _apply(norm: Any, weight: float, x: Tensor) -> Tensor:
    like: Tensor = norm.weight
    settings: Mapping[str, Tensor] = {
        name: torch.full_like(like, weight if name == "weight" else 0.0, dtype=torch.float32)
        for name, _ in norm.named_parameters()
    }
    with torch.no_grad():
        output: Tensor = functional_call(norm, dict(settings), (x.to(like.device).float(),))
    return output
