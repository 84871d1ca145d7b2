"""Floating-point operations of a training step, counted from the model, and a device's peak.

A matrix product of a token takes 2 operations a weight; its gradients for the states take as many
again, and those for the weights as many where they are trained. Attention takes 4 S^2 operations a
layer and unit of its heads for a sample of S tokens (scores, and what is summed by them), and twice
that backward; that a causal model needs half of them is not taken off, as is the custom. Padding
is not counted, nor what activation checkpointing computes twice: both are time lost, not work.

Embeddings are looked up, and norms, activations and losses are not matrix products: nothing is
counted for them. A head is used where something counts in the loss.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mkd_fast.skeleton import text_config
from mkd_fast.train.shares import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Dense bfloat16 FLOP/s without sparsity, by a part of the name that torch gives the device:
# NVIDIA's data sheets of A100 (2020), H100, H200 (2023) and B200 (2024); AMD's of MI300X (2023).
_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "MI300X": 1307e12,
}
_PROBE = 512  # rows and columns of the matrices that a peak is measured with


@dataclass(frozen=True)
class Flops:
    """What a model's training takes.

    Attributes:
        body: weights that every token is multiplied with.
        trained_body: those of them that are trained.
        head: weights that a token (or sample) with a label is multiplied with.
        trained_head: those of them that are trained.
        attention: units of all heads of all layers.
    """

    body: int
    trained_body: int
    head: int
    trained_head: int
    attention: int

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Flops":
        """Counted from a model's modules."""
        in_base = set(model.base_model.modules())
        body, head = list[Tensor](), list[Tensor]()
        for module in model.modules():
            if (weight := _matrix(module)) is not None:
                (body if module in in_base else head).append(weight)
        return cls(
            *(_numbers(body), _numbers(w for w in body if w.requires_grad)),
            *(_numbers(head), _numbers(w for w in head if w.requires_grad)),
            attention=_attention_units(model),
        )

    def of_share(self, share: Share) -> int:
        """Operations of the forward and backward pass of what one process has of a step."""
        return (
            (4 * self.body + 2 * self.trained_body) * share.num_tokens
            + (4 * self.head + 2 * self.trained_head) * share.num_counted
            + 3 * 4 * self.attention * share.num_pairs
        )


def _matrix(module: nn.Module) -> Tensor | None:
    """What a module multiplies states with, as nn.Linear and GPT-2's Conv1D do."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding) or not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    return weight


def _numbers(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _attention_units(model: "PreTrainedModel") -> int:
    config = text_config(model)
    heads: int = getattr(config, "num_attention_heads", 0)
    if not heads:
        return 0
    head_dim: int | None = getattr(config, "head_dim", None)
    return int(config.num_hidden_layers * heads * (head_dim or config.hidden_size // heads))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device's matrix products: a GPU's data sheet, or measured in some milliseconds.

    Args:
        device: a CPU is measured with the threads that torch has now.
        dtype: of the products; float32 and GPUs that are not in the table are measured too.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in _PEAKS.items():
            if known in name:
                return peak
    size = _PROBE if device.type == "cpu" else 16 * _PROBE
    left, right = torch.ones(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(_seconds_of_product(left, right) for _ in range(4))


def _seconds_of_product(left: Tensor, right: Tensor) -> float:
    if left.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
