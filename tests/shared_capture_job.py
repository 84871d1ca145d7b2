"""One process of a shared capture, as torchrun starts it: ``shared_capture_job.py FOLDER [RANK]``.

The process of this rank is killed in its second forward pass, unless it has been restarted.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed, nn

from mkd_fast.teacher import Fingerprints, TeacherCache, capture

NUM_PARTS, NUM_BATCHES, BATCH_SIZE = 4, 11, 3


class Echo(nn.Module):
    """A teacher that needs no time; something may happen before its n-th forward pass."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.before, self.num_forwards = before, 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.before(self.num_forwards)
        self.num_forwards += 1
        return SimpleNamespace(logits=(input_ids[:, :6] / 7).sin())


def make_batches() -> list[dict[str, torch.Tensor]]:
    numbers = torch.arange(NUM_BATCHES * BATCH_SIZE * 8)
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sample_ids": ids[:, 0]}
        for ids in numbers.reshape(NUM_BATCHES, BATCH_SIZE, 8)
    ]


def killed_at(killed: int) -> Callable[[int], None]:
    """The process ends before this forward pass."""

    def kill(number: int) -> None:
        if number == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def run(folder: Path, teacher: Echo | None = None, **options: Any) -> TeacherCache:
    defaults = {
        "keep": "logits",
        "shard_bytes": 100,  # two batches fill one
        "fingerprints": Fingerprints("echo"),
        "num_parts": NUM_PARTS,
    }
    return capture(teacher or Echo(), make_batches(), folder, **defaults | options)


def main(folder: Path, rank_that_dies: int | None) -> None:
    torch.set_num_threads(1)
    rank, world_size, attempt = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    )
    # torchrun's own store still has the addresses of an earlier attempt's processes
    store = f"file://{folder.with_name(f'store-{attempt}')}"
    distributed.init_process_group("gloo", store, rank=rank, world_size=world_size)
    dies = attempt == 0 and rank == rank_that_dies
    cache = run(folder, Echo(killed_at(1)) if dies else None)
    assert len(cache) == NUM_BATCHES * BATCH_SIZE
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None)
