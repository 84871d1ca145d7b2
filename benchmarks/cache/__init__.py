"""``mkd-fast bench cache``: what keeping a teacher costs, and what reading it is worth.

Teachers have 12 layers of width 384 and random weights, students 6 of them: speed does not depend
on what a model knows. ``classifier`` is the main job's shape (a few tokens a sample, logits and
six hidden layers), ``causal`` a language model with 32,000 columns. What is compared is
interleaved, round by round, and ratios are taken within a round. Fingerprinting the teacher, once
a capture and as fast as the disk, is not part of a capture's time here.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from mkd_fast.benchmarks.cache.capturing import capturing
from mkd_fast.benchmarks.cache.reading import opening, reading
from mkd_fast.benchmarks.cache.setting import TINY, Bench, Size
from mkd_fast.benchmarks.cache.training import same_curves, training
from mkd_fast.benchmarks.findings import Finding


def measure(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    """Everything, one finding after another."""
    size = TINY if is_tiny else Size()
    with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as folder:
        bench = Bench(device, size, Path(folder))
        yield from capturing(bench)
        yield from training(bench)
        yield from reading(bench)
        yield same_curves(bench)
        yield from opening(bench)
