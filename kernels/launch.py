"""Which kernel a shape gets, and with which block sizes: the launch table."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

# V vocabulary

_TILE_COLUMNS = 8192  # a pair of longer rows does not stay in registers
_COSTLY_TILE_COLUMNS = 4096  # nor do these, where a softcap or powers are computed beside them
_UNALIGNED_TILE_COLUMNS = 1024
_TILE_ELEMENTS = 1024  # of small rows: 8 a thread of either side, about 64 registers
_HIDDEN_COLUMNS = 128
# Left to itself ptxas gives up a few registers, and spills, to fit in one more block.
_MAX_REGISTERS = 128


@dataclass(frozen=True)
class LaunchConfig:
    """Block sizes of one launch of a loss op.

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
    is_register_bound: bool = False

    def run(self) -> None:
        """Launch it on the current stream; a grid of nothing is not launched."""
        if self.grid:
            options = self.options(is_nvidia=torch.version.hip is None)
            self.kernel[(self.grid,)](**self.arguments, **options)

    def options(self, *, is_nvidia: bool) -> dict[str, Any]:
        """What the compiler is told."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "enable_fp_fusion": True}
        if self.is_register_bound and is_nvidia:
            options["maxnreg"] = _MAX_REGISTERS
        return options


def dense_kd_config(
    num_columns: int,
    *,
    logit_bytes: tuple[int, int],
    hidden_bytes: int = 4,
    warp_size: int = 32,
    is_aligned: bool = True,
    is_costly: bool = False,
) -> LaunchConfig:
    """The configuration for rows of ``num_columns`` logits.

    The numbers come from the compile gates (gates.py): the widest blocks that do not spill on any
    target and leave room for a quarter of a multiprocessor's warps or more.

    Args:
        num_columns: of the student's rows.
        logit_bytes: of one logit of the student and of the teacher.
        hidden_bytes: of one hidden state, of the widest layer.
        warp_size: threads in a warp of the device.
        is_aligned: whether every row begins at a multiple of 16 bytes. Long rows that do not are
            left to "rows", which can read them in whole vectors all the same.
        is_costly: whether a softcap or alpha_beta needs registers beside the row.
    """
    longest_tile = _COSTLY_TILE_COLUMNS if is_costly else _TILE_COLUMNS
    if num_columns <= (longest_tile if is_aligned else _UNALIGNED_TILE_COLUMNS):
        kernel: Literal["tile", "rows"] = "tile"
        block = max(16, _next_power_of_two(num_columns))
        rows = max(1, _TILE_ELEMENTS // block)
        num_threads = min(512, max(128, rows * block // 8))
    else:
        kernel, rows, num_threads = "rows", 1, 256
        # One 16-byte load a thread of the narrower side: with two, some divergences spill.
        block = num_threads * 16 // min(logit_bytes)
    return _with_hidden_states(kernel, rows, block, num_threads, hidden_bytes, warp_size)


def sparse_kd_config(
    num_columns: int, *, logit_bytes: int, hidden_bytes: int = 4, warp_size: int = 32
) -> LaunchConfig:
    """The configuration of ``sparse_kd``: a row a program, as few threads as a short row needs.

    Args:
        num_columns: of the student's rows.
        logit_bytes: of one logit of the student.
        hidden_bytes: of one hidden state, of the widest layer.
        warp_size: threads in a warp of the device.
    """
    group = 16 // logit_bytes
    num_threads = min(256, max(64, _next_power_of_two(num_columns) // group))
    block = num_threads * group
    return _with_hidden_states("rows", 1, block, num_threads, hidden_bytes, warp_size)


def _with_hidden_states(
    kernel: Literal["tile", "rows"],
    rows: int,
    block: int,
    num_threads: int,
    hidden_bytes: int,
    warp_size: int,
) -> LaunchConfig:
    """A configuration whose hidden programs load 16 bytes a thread."""
    return LaunchConfig(
        kernel,
        rows,
        block,
        num_warps=num_threads // warp_size,
        hidden_rows=num_threads * 16 // hidden_bytes // _HIDDEN_COLUMNS,
        hidden_block=_HIDDEN_COLUMNS,
    )


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def warp_size_of(device: torch.device) -> int:
    """Threads in a warp of a device; 32 where the interpreter stands in for one."""
    if device.type != "cuda":
        return 32
    return int(torch.cuda.get_device_properties(device).warp_size)
