"""One process of a data-parallel step: ``python distributed_job.py FOLDER RANK``.

Two processes share a batch in which the first has more tokens that count. Rank 0 leaves the
gradients of the whole step in FOLDER, by the name of what sharded the model.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from dense_kd_input import normal
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mkd_fast import kd_loss

NUM_PROCESSES = 2
LABELS = torch.tensor([3, 1, 0, 4, 6, 2, -100, -100, 5, -100, -100, 1])
NUM_COUNTED = 8
PARTS = {"first": slice(0, 6), "second": slice(6, 12), "whole": slice(0, 12)}


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 7)).to(dtype)


def step_loss(model: nn.Module, part: str, num_tokens: Tensor | float) -> Tensor:
    rows = PARTS[part]
    dtype = next(model.parameters()).dtype
    logits = model(normal(12, 8, seed=2)[rows].to(dtype))
    teacher = normal(12, 7, seed=3)[rows].to(dtype)
    return kd_loss(logits, teacher, LABELS[rows], ce_weight=0.5, num_tokens=num_tokens).loss


def gradients(model: nn.Module) -> list[Tensor]:
    grads = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]


def work(folder: Path, rank: int) -> None:
    """Write the gradients of a step; no model outlives the process group that it talks through."""
    part = ["first", "second"][rank]
    num_tokens = (LABELS[PARTS[part]] != -100).sum()
    dist.all_reduce(num_tokens)
    mesh = dist.device_mesh.init_device_mesh("cpu", (NUM_PROCESSES,))
    sharded = make_model()
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    for name, model in {"ddp": DistributedDataParallel(make_model()), "fsdp2": sharded}.items():
        # both average the processes' gradients, so each divides by its share of the tokens
        step_loss(model, part, num_tokens / NUM_PROCESSES).backward()
        whole = gradients(model)
        if rank == 0:
            torch.save(whole, folder / f"{name}.pt")
    dist.barrier()


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=rank, world_size=NUM_PROCESSES)
    work(folder, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
