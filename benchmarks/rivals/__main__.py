"""``python -m mkd_fast.benchmarks.rivals JSON``: one trainer's memory, in a process of its own."""

import json
import sys
from functools import partial

import torch

from mkd_fast.benchmarks.memory import peak_extra_bytes
from mkd_fast.benchmarks.rivals.job import Job
from mkd_fast.benchmarks.rivals.variants import VARIANTS


def main() -> None:
    """Print the most bytes that an epoch held beyond what was imported, its models included."""
    kind, number, job = json.loads(sys.argv[1])
    run = partial(VARIANTS[kind][number].train, Job(**job))
    print(peak_extra_bytes(run, torch.device("cpu")))


if __name__ == "__main__":
    main()
