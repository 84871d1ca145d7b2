"""``mkd-fast distill RECIPE`` by two processes of torchrun, of which rank 1 dies, twice.

At the first attempt it is killed in a student's 8th step, two after a checkpoint; at the second,
when all is done, it meets an error, while rank 0 would have worked on for minutes.
"""

import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from mkd_fast import cli
from mkd_fast.checks.wording import value_error
from mkd_fast.train import stages
from mkd_fast.train.tasks import DistillTask

KILLED = "rank 1 is killed"
ERROR = value_error("read", "samples must be whole", "sample 3, cut short", "Mend it.")


def main() -> None:
    torch.set_num_threads(1)
    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    loss, distill, num_steps = DistillTask.loss, stages.distill, 0

    def killed_at_step_8(*arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if (num_steps, attempt, rank) == (8, 0, 1):
            sys.stderr.write(f"{KILLED}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*arguments)

    def failing_at_the_end(*arguments: Any) -> Any:
        distill(*arguments)
        dist.barrier()
        if rank == 1:
            raise ERROR
        time.sleep(1000)

    DistillTask.loss = killed_at_step_8  # type: ignore[method-assign]
    stages.distill = failing_at_the_end
    sys.argv = ["mkd-fast", "distill", sys.argv[1]]
    cli.main()


if __name__ == "__main__":
    main()
