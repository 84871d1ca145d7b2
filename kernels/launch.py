"""Which kernel a shape gets, and with which block sizes: the launch table."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

# V vocabulary

_TILE_COLUMNS = 8192  # a pair of longer rows does not stay in registers
_TILE_ELEMENTS = 2048  # of a tile of small rows: 16 a thread in 4 warps


@dataclass(frozen=True)
class LaunchConfig:
    """Block sizes of one launch of ``dense_kd``.

    Attributes:
        kernel: "tile" keeps whole rows on chip, "rows" sweeps each row in blocks.
        rows: rows a program; 1 for "rows".
        block: columns a block; for "tile" the row rounded up to a power of two.
        num_warps: explicit, because an oversized tile spills and costs ten times as much.
        hidden_rows, hidden_block: positions a program and columns a block of hidden states.
    """

    kernel: Literal["tile", "rows"]
    rows: int
    block: int
    num_warps: int
    hidden_rows: int
    hidden_block: int


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is called with."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    num_warps: int

    def run(self) -> None:
        """Launch it on the current stream; a grid of nothing is not launched."""
        if self.grid:
            options = {"num_warps": self.num_warps, "enable_fp_fusion": True}
            self.kernel[(self.grid,)](**self.arguments, **options)


def dense_kd_config(num_columns: int, itemsize: int, capability: tuple[int, int]) -> LaunchConfig:
    """The configuration for rows of ``num_columns`` logits of ``itemsize`` bytes.

    Args:
        num_columns: V of the wider side.
        itemsize: bytes of a student's logit.
        capability: of the CUDA device; (9, 4) for gfx942.
    """
    if num_columns <= _TILE_COLUMNS:
        block = max(16, _next_power_of_two(num_columns))
        rows = max(1, _TILE_ELEMENTS // block)
        num_warps = min(16, max(4, rows * block // 512))
        return LaunchConfig("tile", rows, block, num_warps, 4 * num_warps, 128)
    num_warps = 8 if num_columns <= 65536 else 16
    return LaunchConfig("rows", 1, num_warps * 512, num_warps, 4 * num_warps, 128)


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a device; that of Ampere where there is none to ask."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
