"""``python killed_training_job.py RECIPE [SECTION.KEY=VALUE...]``: killed in a student's 8th step.

The last checkpoint is then that of the sixth.
"""

import os
import signal
import sys

import torch

import mkd_fast
from mkd_fast.train.language_model import TokenDistillTask
from mkd_fast.train.tasks import DistillTask


def killing(loss):
    steps = []

    def counting(*args):
        steps.append(args)
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*args)

    return counting


def main() -> None:
    torch.set_num_threads(1)
    for task in (DistillTask, TokenDistillTask):
        task.loss = killing(task.loss)
    mkd_fast.distill(sys.argv[1], dict(setting.split("=") for setting in sys.argv[2:]))


if __name__ == "__main__":
    main()
