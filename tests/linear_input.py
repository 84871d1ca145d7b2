"""A head's inputs for tests of linear_kd_loss, and its truth: kd_loss of the whole logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast import SampledTeacher, SparseTeacher, TeacherHead, kd_loss
from mkd_fast.losses.targets import PackedSampledTeacher, Teacher

N, D, V, K = 37, 16, 50, 6
LABELS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(9))
LABELS[::5] = -100


def normal(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() * size


def ids() -> Tensor:
    """Distinct ids, with an empty slot in every third token."""
    found = normal(N, V, seed=5).topk(K).indices
    found[::3, -1] = -1
    return found


def sparse(dtype: torch.dtype, tail: str = "bucket") -> SparseTeacher:
    logits = normal(N, V, seed=5, size=2.0)
    log_z = (logits / 2.0).logsumexp(-1).float()
    return SparseTeacher(ids(), logits.gather(1, ids().clamp(min=0)).to(dtype), log_z, tail)


def packed() -> PackedSampledTeacher:
    counts = torch.where(ids() < 0, 0, 3)
    entries = ids().clamp(min=0) | counts << 18
    three_bytes = [(entries >> shift & 255).byte() for shift in (0, 8, 16)]
    return PackedSampledTeacher(torch.stack(three_bytes, -1), num_draws=18)


def head_teacher(dtype: torch.dtype) -> TeacherHead:
    parts = (normal(N, 8, seed=3), normal(V, 8, seed=4), normal(V, seed=6))
    return TeacherHead(*(part.to(dtype) for part in parts))


TEACHERS: dict[str, Callable[[torch.dtype], Teacher]] = {
    "head": head_teacher,
    "dense": lambda dtype: normal(N, V, seed=5, size=2.0).to(dtype),
    "sparse": sparse,
    "sampled": lambda dtype: SampledTeacher(ids(), normal(N, K, seed=7).abs().to(dtype)),
    "packed": lambda _: packed(),
}


def student(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias, each of which wants a gradient."""
    parts = (normal(N, D, seed=0), normal(V, D, seed=1, size=0.5), normal(V, seed=2))
    hidden, weight, bias = (part.float().to(dtype).requires_grad_() for part in parts)
    return hidden, weight, bias


def whole(dtype: torch.dtype, teacher: Teacher, incoming: Tensor | float, **fields: Any) -> Any:
    """Outputs and gradients of the eager loss of all logits at once."""
    hidden, weight, bias = student(dtype)
    out = kd_loss(functional.linear(hidden, weight, bias), teacher, impl="eager", **fields)
    (out.loss * incoming).sum().backward()
    return [out.loss.detach(), out.kd, out.ce, hidden.grad, weight.grad, bias.grad]
