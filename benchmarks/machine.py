"""Which machine and which code a measurement is of."""

import re
from pathlib import Path

import torch

from mkd_fast.environment import device_name, environment, source_commit

_HERE = Path(__file__).resolve().parent


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
    """``source_commit``; committed results do not count as changes."""
    return source_commit(":(top)", f":(exclude){_HERE / 'results'}")
