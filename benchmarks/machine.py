"""Which machine and which code a measurement is of."""

import platform
import re
import subprocess
from pathlib import Path

import torch

from mkd_fast.environment import environment
from mkd_fast.losses import ops

_HERE = Path(__file__).resolve().parent


def device_name(device: torch.device) -> str:
    """The processor's model, never the host's name; a CPU with its instructions and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    model = models[0].strip() if models else platform.processor() or platform.machine()
    capability = "" if ops.missing_kernels("cpu") else f" {torch.ops.mkd_fast.cpu_capability()}"
    return f"CPU {model}{capability} {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def provenance(device: torch.device) -> dict[str, str]:
    """Columns that are the same in every row of a run."""
    versions = environment()["versions"]
    return {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "commit": commit(),
        **{name: versions[name] for name in ("mkd_fast", "python", "torch", "triton")},
    }


def commit() -> str:
    """Short hash of the source tree this runs from, with a "+" if it was changed since.

    Committed results do not count as changes. "unknown" away from a source tree.
    """
    if _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return "unknown"
    changes = _git("status", "--porcelain", "--", ":(top)", f":(exclude){_HERE / 'results'}")
    return f"{_git('rev-parse', '--short=12', 'HEAD')}{'+' if changes else ''}"


def _git(*arguments: str) -> str | None:
    """What git prints, or None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_HERE), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
