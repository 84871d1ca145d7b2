"""Errors of the benchmarks."""

from collections.abc import Sequence

from mkd_fast.checks.wording import runtime_error


def ours_is_wrong(op: str, cases: Sequence[str]) -> RuntimeError:
    """A fused op that does not compute what the reference does."""
    return runtime_error(
        "bench",
        f"fused {op} must agree with float64 within twice the error of plain torch",
        f"more at {', '.join(cases)}",
        "Nothing was timed there. The kernel's tests narrow it down.",
    )


def logits_differ(variants: Sequence[str]) -> RuntimeError:
    """A way of running a teacher that changes what it says."""
    return runtime_error(
        "bench",
        "every way of running the teacher must give the same logits, bit by bit",
        f"others from {', '.join(variants)}",
        "The column is_same says whose are those of the last row.",
    )


def no_gpu() -> RuntimeError:
    """The GPU's table is asked for where there is none."""
    return runtime_error(
        "gpu.py",
        "there must be a GPU that torch sees",
        "torch.cuda.is_available() == False",
        "Pass --tiny to see it run on the CPU; mkd-fast bench measures that.",
    )
