"""Which device a run takes, and in which precision it computes there."""

import contextlib
from typing import Any

import torch

from mkd_fast.checks import train as checks
from mkd_fast.train.optim_config import Precision


def choose_device(wanted: str) -> torch.device:
    """The named device, or with "auto" a GPU where there is one.

    Raises:
        RuntimeError: torch knows no such device, or it is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's ways of saying no
        raise checks.no_such_device(wanted, error) from error
    return device


def computes_faster_in_bfloat16(device: torch.device) -> bool:
    """True on GPUs and CPUs with bfloat16 matrix instructions (2.2 times on AVX-512: LOG.md)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch >= 2.13
    return device.type == "cpu" and any(
        capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")
    )


def is_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether matrix products are in bfloat16: as asked, or where the device is good at it."""
    return precision == "bfloat16" or (precision == "auto" and computes_faster_in_bfloat16(device))


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 where ``precision`` asks for it or the device is good at it."""
    if not is_bfloat16(device, precision):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
