"""How much memory a call needs beyond its inputs, whoever allocates it."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import torch

from mkd_fast.losses import ops
from mkd_fast.resident import status_bytes

_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak resident set becomes the present one


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> float:
    """Most memory that a call holds at once beyond what was held before; its result counts.

    On a GPU the caching allocator says. On a CPU it is the process's resident set, so scratch
    memory of C++, MKL and OpenMP is seen as well as tensors; what earlier calls left behind, or we
    keep for the next gradient, is given back first. Only memory that is touched counts, to a few
    pages. NaN where the system does not tell (it is Linux's).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _kept = call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    if not _CLEAR.exists():
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)
    if not ops.missing_kernels("cpu"):
        torch.ops.mkd_fast.release_kept_memory()
    _CLEAR.write_text(_RESET_PEAK)
    before = status_bytes("VmRSS")
    _kept = call()
    return float(max(status_bytes("VmHWM") - before, 0))
