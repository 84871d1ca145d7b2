"""How a model computes attention while it is trained.

On CPUs the backward pass of ``scaled_dot_product_attention`` in bfloat16 takes ten times its
forward pass: with 14 to 40 tokens six times as long as plain matrix products, with 128 still
twice, and at 512 they are even. In float32 it is the faster one (benchmarks/LOG.md). Plain products
keep several numbers for every two tokens of a row: at 160 tokens a step held 1.6 times as much. So
where rows are long they are left alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mkd_fast.checks import train as checks
from mkd_fast.data.batches import Batch
from mkd_fast.train.device import is_bfloat16
from mkd_fast.train.optim_config import OptimConfig

_LONGEST_PLAIN = 128  # tokens of a row


@contextmanager
def attention(
    model: nn.Module, config: OptimConfig, device: torch.device
) -> Iterator[Callable[[Batch], None]]:
    """Compute it as ``config.attention`` names it; as before afterwards.

    Args:
        model: of ``transformers``, unless nothing is to change.
        config: "model" is as it was loaded; "eager" plain products; "auto" plain products for
            batches of short rows where those are faster.
        device: where it is computed.

    Yields:
        what is to be called with each batch before the model is.

    Raises:
        TypeError: the model has no such choice.
    """
    chosen: Any = model
    has_choice = hasattr(model, "set_attn_implementation")
    before = chosen.config._attn_implementation if has_choice else ""
    if config.attention == "eager" and not has_choice:
        raise checks.attention_is_fixed(config.attention, type(model).__name__)
    is_slow = before == "sdpa" and device.type == "cpu" and is_bfloat16(device, config.precision)
    if config.attention == "model" or (config.attention == "auto" and not is_slow):
        yield lambda batch: None
        return

    def choose(batch: Batch) -> None:
        num_tokens = (batch.packed or batch).input_ids.shape[1]
        is_plain = config.attention == "eager" or num_tokens <= _LONGEST_PLAIN
        take("eager" if is_plain else before)

    def take(name: str) -> None:
        if name != chosen.config._attn_implementation:
            chosen.set_attn_implementation(name)

    try:
        yield choose
    finally:
        take(before)
