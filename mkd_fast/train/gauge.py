"""How much of what a device can do a training does, and the memory it has taken."""

import resource
import sys
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from mkd_fast.train.device import is_bfloat16
from mkd_fast.train.flops import Flops, peak_flops
from mkd_fast.train.optim_config import Precision
from mkd_fast.train.shares import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Gauge:
    """Read by every line of a loop; nothing here waits for the device.

    Args:
        model: a model of transformers, or another, of which no operations are counted.
        device: where it is trained.
        precision: of its matrix products.
    """

    def __init__(
        self, model: "nn.Module | PreTrainedModel", device: torch.device, precision: Precision
    ) -> None:
        from transformers import PreTrainedModel

        self._device = device
        self._flops = Flops.of(model) if isinstance(model, PreTrainedModel) else None
        self._dtype = torch.bfloat16 if is_bfloat16(device, precision) else torch.float32
        self._operations = 0

    def see(self, share: Share) -> None:
        """Count what this process has of a step."""
        if self._flops is not None:
            self._operations += self._flops.of_share(share)

    def read(self, seconds: float) -> dict[str, float]:
        """What was done in the seconds since the last reading, and the most memory ever taken.

        ``peak_share`` is the share of the device's peak; ``peak_memory_bytes`` what torch had
        allocated on a GPU, and on a CPU what the process had in memory.
        """
        memory: dict[str, float] = {"peak_memory_bytes": peak_memory_bytes(self._device)}
        if self._flops is None:
            return memory
        peak = _known_peak(self._device, self._dtype, torch.get_num_threads())
        share, self._operations = self._operations / seconds / peak, 0
        return {"peak_share": share, **memory}


@cache
def _known_peak(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    return peak_flops(device, dtype)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that torch has had allocated on a GPU, or this process in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
