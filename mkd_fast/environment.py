"""What this machine and installation are: for ``mkd-fast info``, and recorded with every run."""

import os
import platform
from importlib import metadata

import torch

from mkd_fast.losses import ops

PACKAGES = ("mkd_fast", "torch", "triton", "transformers", "datasets", "numpy", "safetensors")


def environment() -> dict[str, dict[str, str]]:
    """Versions, devices, and which fused kernels can run here or why not."""
    return {"versions": _versions(), "devices": _devices(), "kernels": _kernels()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _devices() -> dict[str, str]:
    devices = {
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    }
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        size = f"{properties.total_memory / 2**30:.0f} GiB"
        devices[f"cuda:{number}"] = f"{properties.name}, {size}"
    return devices


def _kernels() -> dict[str, str]:
    missing = ops.missing_kernels("cpu")
    kernels = {
        "cpu (C++)": f"not built: {missing}"
        if missing
        else f"built, {torch.ops.mkd_fast.cpu_capability()}"
    }
    missing = ops.missing_kernels("cuda")
    if missing:
        kernels["gpu (Triton)"] = f"none: {missing}"
    elif torch.cuda.is_available():
        kernels["gpu (Triton)"] = "compiled at first use"
    else:
        kernels["gpu (Triton)"] = "no GPU here (kernels run in Triton's interpreter in the tests)"
    return kernels
