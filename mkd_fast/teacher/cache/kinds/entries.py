"""Numbers of a few bytes, little-endian: an id in the low bits, and something more above them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def id_bits(num_columns: int) -> int:
    """What the largest id needs."""
    return max(1, (num_columns - 1).bit_length())


def to_bytes(numbers: NDArray[Any], num_bytes: int) -> NDArray[np.uint8]:
    """The low bytes of whole numbers, ``[..., num_bytes]``."""
    as_bytes = numbers.astype("<u8").view(np.uint8).reshape(*numbers.shape, 8)
    return np.ascontiguousarray(as_bytes[..., :num_bytes])


def from_bytes(entries: NDArray[np.uint8]) -> NDArray[Any]:
    """The whole numbers in ``[..., num_bytes]``, without a copy where they have 4 bytes."""
    num_bytes = entries.shape[-1]
    if num_bytes == 4:
        return entries.view("<u4")[..., 0]
    wide = np.zeros((*entries.shape[:-1], 4 if num_bytes < 4 else 8), np.uint8)
    wide[..., :num_bytes] = entries
    return wide.view("<u4" if num_bytes < 4 else "<u8")[..., 0]
