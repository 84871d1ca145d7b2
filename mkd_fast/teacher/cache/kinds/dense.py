"""``keep="logits"``: every logit, for small label sets. Exact at any temperature."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_fast.teacher.cache.arrays import as_tensor
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.kinds.rows import Arrays, LogitsRows, Read, Stored

DTYPES = {
    "float32": ("F32", torch.float32),
    "bfloat16": ("BF16", torch.bfloat16),
    "float16": ("F16", torch.float16),
}


@dataclass(frozen=True)
class Dense:
    """All of a row.

    Args:
        num_columns: real ones.
        dtype: a key of ``DTYPES``.
    """

    num_columns: int
    dtype: str
    name = "logits"
    temperatures = None
    num_top = num_draws = 0

    def specs(self, axis: str) -> tuple[TensorSpec, ...]:
        """One tensor."""
        return (TensorSpec(self.name, DTYPES[self.dtype][0], self.num_columns, axis),)

    def on_device(self, rows: LogitsRows) -> dict[str, Tensor]:
        """The logits in their dtype."""
        z_NV = rows.logits.index_select(0, rows.chosen)
        return {self.name: z_NV.to(DTYPES[self.dtype][1])}

    def on_host(self, made: Arrays) -> Stored:
        """The same."""
        return Stored(made)

    def target(self, read: Read, temperature: float) -> Tensor:
        """``[B, V]`` or ``[B, S, V]``, padded with 0."""
        return as_tensor(read(self.name, 0))
