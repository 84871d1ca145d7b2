"""Hidden states: ``keep="hidden"``, what goes into the head; and layers to be matched.

In eight bits a row is ``round(h / scale)`` with ``scale = max |h| / 127``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mkd_fast.losses.targets import Int8Hidden
from mkd_fast.teacher.cache.arrays import as_tensor
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.kinds.dense import DTYPES
from mkd_fast.teacher.cache.kinds.rows import Read

LAST = "hidden.last"
STATE_DTYPES = (*DTYPES, "int8")


def layer_name(number: int) -> str:
    """The stored tensor's name for a layer, as ``transformers`` numbers hidden states."""
    return f"hidden.{number}"


@dataclass(frozen=True)
class States:
    """The hidden states of every token.

    Args:
        name: of the stored tensor.
        dtype: one of ``STATE_DTYPES``.
    """

    name: str
    dtype: str

    def specs(self, width: int) -> tuple[TensorSpec, ...]:
        """One tensor, and the scales of rows in eight bits."""
        if self.dtype != "int8":
            return (TensorSpec(self.name, DTYPES[self.dtype][0], width, "token"),)
        return (
            TensorSpec(f"{self.name}.scale", "F32", 1, "token"),
            TensorSpec(self.name, "I8", width, "token"),
        )

    def on_device(self, states_ND: Tensor) -> dict[str, Tensor]:
        """What is stored, by name."""
        if self.dtype != "int8":
            return {self.name: states_ND.to(DTYPES[self.dtype][1])}
        states_ND = states_ND.float()
        scale_N1 = states_ND.abs().amax(-1, keepdim=True) / 127
        rounded = (states_ND / scale_N1).round()
        eight_bits = torch.where(scale_N1 > 0, rounded, 0).to(torch.int8)
        return {self.name: eight_bits, f"{self.name}.scale": scale_N1}

    def target(self, read: Read) -> Tensor | Int8Hidden:
        """``[B, S, D]``, padded with 0."""
        rows = as_tensor(read(self.name, 0))
        if self.dtype != "int8":
            return rows
        return Int8Hidden(rows, torch.from_numpy(np.squeeze(read(f"{self.name}.scale", 0), -1)))
