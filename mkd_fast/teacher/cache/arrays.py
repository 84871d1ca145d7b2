"""Between tensors and numpy arrays, which know no bfloat16 and carry its bits as uint16."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_array(rows: Tensor) -> NDArray[Any]:
    """The same memory as an array."""
    if rows.dtype == torch.bfloat16:
        return rows.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = rows.numpy()
    return array


def as_tensor(rows: NDArray[Any]) -> Tensor:
    """The same memory as a tensor; uint16 is bfloat16."""
    if rows.dtype == np.uint16:
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)
