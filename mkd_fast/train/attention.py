"""How a model computes attention while it is trained.

On CPUs the backward pass of ``scaled_dot_product_attention`` in bfloat16 takes ten times its
forward pass: with 14 to 40 tokens six times as long as plain matrix products, with 128 still
twice, and at 512 they are even. In float32 it is the faster one (benchmarks/LOG.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mkd_fast.checks import train as checks


@contextmanager
def attention(model: nn.Module, wanted: str) -> Iterator[None]:
    """Compute it as ``wanted`` names it; as before afterwards.

    Args:
        model: of ``transformers``, unless nothing is to change.
        wanted: "model", as it was loaded, or another name that ``transformers`` knows.

    Raises:
        TypeError: the model has no such choice.
    """
    if wanted == "model":
        yield
        return
    chosen: Any = model
    if not hasattr(chosen, "set_attn_implementation"):
        raise checks.attention_is_fixed(wanted, type(model).__name__)
    before = chosen.config._attn_implementation
    chosen.set_attn_implementation(wanted)
    try:
        yield
    finally:
        chosen.set_attn_implementation(before)
