"""What this machine and installation are: for ``mkd-fast info``, and recorded with every run."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from mkd_fast.losses import ops

PACKAGES = ("mkd_fast", "torch", "triton", "transformers", "datasets", "numpy", "safetensors")


def device_name(device: torch.device) -> str:
    """The processor's model, never the host's name; a CPU with its instructions and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    model = cpu_model(path.read_text() if path.exists() else "")
    capability = "" if ops.missing_kernels("cpu") else f" {torch.ops.mkd_fast.cpu_capability()}"
    return f"CPU {model}{capability} {torch.get_num_threads()} threads"


def cpu_model(cpuinfo: str) -> str:
    """The processor by its name, and by family and model where Linux tells them.

    A virtual machine may name a maker's line alone, whose generations are of unlike speed.
    """

    def said(key: str) -> str | None:
        found = re.search(rf"^{key}\s*: (.+)$", cpuinfo, re.MULTILINE)
        return found[1].strip() if found else None

    name = said("model name") or platform.processor() or platform.machine()
    family, model = said("cpu family"), said("model")
    return name if family is None else f"{name} (family {family}, model {model})"


def source_commit(*pathspecs: str) -> str:
    """Short hash of the source tree this runs from, with a "+" if it was changed since.

    Args:
        pathspecs: where changes count, as git reads it from this folder; nothing is all of it.

    Returns:
        "unknown" away from a source tree.
    """
    if _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return "unknown"
    changes = _git("status", "--porcelain", "--", *(pathspecs or (".",)))
    return f"{_git('rev-parse', '--short=12', 'HEAD')}{'+' if changes else ''}"


def _git(*arguments: str) -> str | None:
    """What git prints, or None where it fails or is not there."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


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
