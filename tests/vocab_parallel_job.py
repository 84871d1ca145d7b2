"""One of the processes over which tests split a vocabulary; in a module that they can import."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from linear_input import LABELS, TEACHERS, N, V, normal, sparse, student

from mkd_fast import TeacherHead, linear_kd_loss

SHARDS = {2: (0, 31, 53), 3: (0, 9, 48, 53)}  # unequal; the last holds padding from 50 on
FIELDS = {"labels": LABELS, "temperature": 2.0, "ce_weight": 0.5, "vocab_size": V}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "forward_kl": (TEACHERS["dense"], {}),
    "reverse_kl, no labels": (TEACHERS["dense"], {"divergence": "reverse_kl", "ce_weight": 0.0}),
    "jsd of a head": (TEACHERS["head"], {"divergence": "jsd", "beta": 0.3}),
    "tvd, softcap": (TEACHERS["dense"], {"divergence": "tvd", "softcap": 3.0}),
    "logit_mse": (TEACHERS["dense"], {"divergence": "logit_mse"}),
    "one value a token": (TEACHERS["head"], {"reduction": "none"}),
    "bucket": (sparse, {}),
    "bucket, jsd": (sparse, {"divergence": "jsd"}),
    "renormalize": (partial(sparse, tail="renormalize"), {}),
    "drop": (partial(sparse, tail="drop"), {}),
    "uniform": (partial(sparse, tail="uniform"), {"divergence": "reverse_kl"}),
    "sampled": (TEACHERS["sampled"], {}),
    "packed": (TEACHERS["packed"], {}),
}


# vocab_start, rows and vocab_size of either process, and what both must say of them.
BAD_LAYOUTS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], str]] = {
    "gap": ((0, 3, 7), (4, 3, 7), "must be all of vocab_size=7, each in one of them, got [0, 3), "),
    "overlap": ((0, 4, 7), (3, 4, 7), "got [0, 4), [3, 7). Pass as vocab_start how many rows"),
    "twice": ((0, 7, 7), (0, 7, 7), "got [0, 7), [0, 7)"),
    "too few": ((0, 3, 7), (3, 3, 7), "got [0, 3), [3, 6)"),
    "other vocabulary": ((0, 3, 7), (3, 3, 6), "vocab_size must be the same on all processes"),
}


def padded(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Columns past the real ones, which must not matter."""
    shape = list(tensor.shape)
    shape[dim] = 3
    return torch.cat([tensor, tensor.new_full(shape, 5.0)], dim)


def local_teacher(teacher: Any, columns: slice) -> Any:
    if isinstance(teacher, torch.Tensor):
        return padded(teacher, 1)[:, columns]
    if isinstance(teacher, TeacherHead):
        weight, bias = (padded(part, 0)[columns] for part in (teacher.weight, teacher.bias))
        return TeacherHead(teacher.hidden, weight, bias)
    return teacher


def run(case: str, dtype: torch.dtype, group: Any = None, bounds: Any = None) -> list[Any]:
    """Outputs and gradients of one process, which holds everything without a group."""
    make_teacher, fields = CASES[case]
    hidden, weight, bias = student(dtype)
    hidden = hidden.detach().requires_grad_()
    columns = slice(None) if bounds is None else slice(*bounds)
    weight, bias = (padded(part.detach(), 0)[columns].requires_grad_() for part in (weight, bias))
    out = linear_kd_loss(
        hidden, weight, local_teacher(make_teacher(dtype), columns), student_bias=bias,
        max_chunk_bytes=15 * V * dtype.itemsize, process_group=group,
        vocab_start=None if bounds is None else bounds[0],
        impl="eager" if group is None else None, **FIELDS | fields,
    )  # fmt: skip
    (out.loss * normal(N, seed=8)[: out.loss.numel()].to(dtype)).sum().backward()
    return [out.loss.detach(), out.kd, out.ce, hidden.grad, weight.grad, bias.grad]


def misplace(rank: int, world_size: int, folder: Path, name: str) -> None:
    """Write what this process says of a bad layout."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=world_size)
    start, num_rows, vocab_size = BAD_LAYOUTS[name][rank]  # type: ignore[misc]
    try:
        linear_kd_loss(
            torch.zeros(2, 3), torch.zeros(num_rows, 3), torch.zeros(2, num_rows),
            process_group=dist.group.WORLD, vocab_start=start, vocab_size=vocab_size,
        )  # fmt: skip
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


def work(rank: int, world_size: int, folder: Path) -> None:
    """Write what this process computes in every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=world_size)
    bounds = SHARDS[world_size][rank : rank + 2]
    results = {
        (case, dtype): run(case, dtype, dist.group.WORLD, bounds)
        for case in CASES
        for dtype in (torch.float32, torch.float64)
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
