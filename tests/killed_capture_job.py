"""Captures killed at random moments and resumed: ``killed_capture_job.py FOLDER``.

Children are forked, killed by SIGKILL before a random write or after a random time, and what they
have left is finished. Prints as JSON how many were killed each way, and what some of them left.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from disk_calls import before_each_write, count_writes
from rich_cache import contents
from torch import nn

from mkd_fast.teacher import Fingerprints, capture

KILLED_EACH_WAY = 25
NUM_BATCHES, BATCH_SIZE, NUM_COLUMNS = 5, 2, 1500


class Wide(nn.Module):
    """A teacher whose batches are larger than a file's buffer, so that files grow in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.linspace(0, 1, NUM_COLUMNS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=input_ids[:, :1] * self.row)


def run(folder: Path) -> None:
    ids = torch.arange(NUM_BATCHES * BATCH_SIZE * 3).reshape(NUM_BATCHES, BATCH_SIZE, 3)
    batches = [
        {"input_ids": batch, "attention_mask": torch.ones_like(batch), "sample_ids": batch[:, 0]}
        for batch in ids
    ]
    size = 4 * NUM_COLUMNS * BATCH_SIZE * 2  # two batches a shard
    origin = Fingerprints("wide")
    capture(Wide(), batches, folder, keep="logits", shard_bytes=size, fingerprints=origin)


def child(folder: Path, dies_at: int | None) -> int:
    """Start one; returns its process id."""
    if (process := os.fork()) != 0:
        return process

    def die(number: int) -> None:
        if number == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with before_each_write(die):
        run(folder)
    os._exit(0)


def is_killed(process: int) -> bool:
    return os.waitpid(process, 0)[1] == signal.SIGKILL


def main(root: Path) -> None:
    torch.set_num_threads(1)
    run(root / "whole")
    whole = contents(root / "whole")
    num_writes = count_writes(lambda: run(root / "counted"))
    rng, folder = random.Random(0), root / "killed"
    left: set[str] = set()

    def require_resumed() -> None:
        left.update(path.name for path in folder.glob("*"))
        run(folder)
        found = contents(folder)
        assert {name: found[name] for name in whole} == whole
        assert found.keys() - whole.keys() <= {"capture.lock"}
        shutil.rmtree(folder)

    for number in rng.sample(range(num_writes), KILLED_EACH_WAY):
        assert is_killed(child(folder, number)), number
        require_resumed()
    begin = time.perf_counter()
    assert not is_killed(child(folder, None))
    shutil.rmtree(folder)
    duration = time.perf_counter() - begin
    num_killed = 0
    while num_killed < KILLED_EACH_WAY:
        process = child(folder, None)
        time.sleep(rng.uniform(0, duration))
        os.kill(process, signal.SIGKILL)
        num_killed += is_killed(process)
        require_resumed()
    json.dump({"killed": KILLED_EACH_WAY + num_killed, "left": sorted(left)}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
