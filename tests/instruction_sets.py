"""Every case of an op under every instruction set of this machine, each in its own process.

A process chooses its instruction set once, so a test module runs itself as a script, which writes
what the fused path returns for all of its cases.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkd_fast import kd_loss
from mkd_fast.losses import ops

Case = dict[str, Any]
Values = dict[str, Tensor]


def available_capabilities() -> list[str]:
    """Names of the instruction sets that this machine has, the plainest first."""
    best = torch.ops.mkd_fast.cpu_capability() if not ops.missing_kernels("cpu") else "plain"
    known = ["plain", "avx2", "avx512"]
    return known[: known.index(best) + 1]


def run_with(capability: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test module as a script under an instruction set."""
    tests = str(Path(__file__).parent)  # where it imports from
    environment = os.environ | {"MKD_FAST_CPU_CAPABILITY": capability, "PYTHONPATH": tests}
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def results_of(script: str, folder: Path) -> Callable[[str], dict[str, Values]]:
    """What a test module, run as a script, writes under an instruction set."""

    @functools.cache
    def of(capability: str) -> dict[str, Values]:
        path = folder / f"{capability}.pt"
        finished = run_with(capability, script, str(path))
        assert finished.returncode == 0, finished.stderr
        return torch.load(path)

    return of


def write_results(cases: dict[str, Case]) -> None:
    """What such a script does."""
    torch.set_num_threads(1)
    fused = {name: evaluate(arguments, None, "fused") for name, arguments in cases.items()}
    torch.save(fused, Path(sys.argv[1]))


def converted(value: Any, dtype: torch.dtype | None) -> Any:
    """The same with its floating-point numbers in dtype, unless that is None."""
    if dtype is None:
        return value
    if isinstance(value, list):
        return [converted(item, dtype) for item in value]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: converted(getattr(value, name), dtype) for name in names}
        return dataclasses.replace(value, **fields)  # type: ignore[type-var]
    is_number = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_number else value


def evaluate(arguments: Case, dtype: torch.dtype | None, impl: str) -> Values:
    """Values and gradients of a case, its numbers converted to dtype unless that is None."""
    arguments = {name: converted(value, dtype) for name, value in arguments.items()}
    logits = arguments["student_logits"].detach().requires_grad_()
    hidden = [tensor.detach().requires_grad_() for tensor in arguments.get("student_hidden", [])]
    arguments |= {"student_logits": logits} | ({"student_hidden": hidden} if hidden else {})
    out = kd_loss(**arguments, impl=impl)
    out.loss.sum().backward()
    values = {"loss": out.loss.detach(), "kd": out.kd, "ce": out.ce, "hidden": out.hidden}
    leaves = {"gradient of student_logits": logits}
    leaves |= {f"gradient of student_hidden[{i}]": tensor for i, tensor in enumerate(hidden)}
    return values | {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
