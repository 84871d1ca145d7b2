"""The instruction sets that the C++ kernels were compiled for and this machine has."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mkd_fast.losses import ops


def available_capabilities() -> list[str]:
    """Names of the instruction sets that this machine has, the plainest first."""
    best = torch.ops.mkd_fast.cpu_capability() if not ops.missing_kernels("cpu") else "plain"
    known = ["plain", "avx2", "avx512"]
    return known[: known.index(best) + 1]


def run_with(capability: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test module as a script under an instruction set, which a process chooses once."""
    tests = str(Path(__file__).parent)  # where it imports from
    environment = os.environ | {"MKD_FAST_CPU_CAPABILITY": capability, "PYTHONPATH": tests}
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def results_of(script: str, folder: Path) -> Callable[[str], Any]:
    """What a script writes to the file that it is given, by instruction set."""

    @functools.cache
    def of(capability: str) -> Any:
        path = folder / f"{capability}.pt"
        finished = run_with(capability, script, str(path))
        assert finished.returncode == 0, finished.stderr
        return torch.load(path)

    return of
