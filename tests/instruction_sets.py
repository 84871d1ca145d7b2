"""The instruction sets that the C++ kernels were compiled for and this machine has."""

import torch

from mkd_fast.losses import ops


def available_capabilities() -> list[str]:
    """Names of the instruction sets that this machine has, the plainest first."""
    best = torch.ops.mkd_fast.cpu_capability() if not ops.missing_kernels("cpu") else "plain"
    known = ["plain", "avx2", "avx512"]
    return known[: known.index(best) + 1]
