"""``mkd-fast bench train``: the loop beside what people would use instead, on a CPU.

Models of 12 layers teach models of 6, copied from them: same student, text, batch size, loss,
optimizer and precision for everyone (rivals/job.py). An epoch of each is timed in every round, in
turn, and ratios are taken within a round. Each deals its batches out as it does by default, for
which ``by length`` is the Trainer's own option; attention too is everyone's default, which is plain
products for ours in bfloat16 and ``sdpa`` for the others. That losses are the same is checked
apart, on the same batches in float32: what ours is off a rival in float64 may be twice what it is
off itself in float32. Memory is a process's own. Making the cache is timed, and no part of an
epoch.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from mkd_fast.benchmarks.findings import Finding
from mkd_fast.benchmarks.rivals.job import Job
from mkd_fast.benchmarks.rivals.variants import VARIANTS, Variant

JOBS = (
    Job("", "classifier"),
    Job("", "language model", num_columns=32_000, batch_size=8, mean_tokens=64, longest=160),
)
TINY: dict[str, Any] = {
    "width": 32,
    "num_layers": 2,
    "num_columns": 100,
    "batch_size": 4,
    "num_steps": 4,
    "mean_tokens": 6,
    "longest": 12,
}
_AT_LEAST = {"live": 2.0, "kept": 1.15}
_CURVE_STEPS, _MEMORY_STEPS = 8, 4


def measure(device: torch.device, *, is_tiny: bool, num_rounds: int = 3) -> Iterator[Finding]:
    """Everything, one finding after another; all of it on the CPU, whatever ``device`` is."""
    for job in JOBS:
        variants = VARIANTS[job.kind]
        there = [variant for variant in variants if variant.is_installed]
        for variant in variants:
            if variant not in there:
                yield Finding.absent(_case(job, variant), f"{variant.package} is not installed")
        with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as folder:
            prepared = replace(job, folder=folder, **(TINY if is_tiny else {}))
            prepared.prepare()
            captured_s = prepared.capture()
            yield from curves(prepared, there)
            yield from _memory(prepared, there)
            yield from _speed(prepared, there, captured_s, num_rounds)


def _case(job: Job, variant: Variant) -> str:
    return f"{job.kind}, {variant.name}, {variant.teacher} teacher"


def curves(job: Job, variants: Sequence[Variant]) -> Iterator[Finding]:
    """Losses of everyone on the same batches; those of a live rival in float64 are the truth."""
    num_steps = min(job.num_steps, _CURVE_STEPS)
    job = replace(job, num_steps=num_steps, has_our_order=True, precision="float32")
    ours, *rivals = (variant for variant in variants if variant.has_our_loss)
    plain = next((variant for variant in rivals if variant.teacher == "live"), None)
    if plain is None:
        return
    job.capture()
    exact = _losses(replace(job, precision="float64"), plain)
    off = {each: (_losses(job, each) - exact).abs() for each in (ours, *rivals)}
    of = f"of float64's, losses of {num_steps} steps"
    for variant, differences in off.items():
        yield Finding.of(_case(job, variant), of, [float((differences / exact).max())])
    ratio = float(off[ours].max() / off[plain].max())
    what = f"x {plain.name}'s float32 rounding, losses of {num_steps} steps"
    yield Finding.of(_case(job, ours), what, [ratio], at_most=2.0)


def _losses(job: Job, variant: Variant) -> torch.Tensor:
    return torch.stack(variant.train(job).losses).double()


def _memory(job: Job, variants: Sequence[Variant]) -> Iterator[Finding]:
    job = replace(job, num_steps=min(job.num_steps, _MEMORY_STEPS))
    for variant in variants:
        yield Finding.of(_case(job, variant), "MB held at most", [peak_bytes(job, variant) / 1e6])


def peak_bytes(job: Job, variant: Variant) -> float:
    """Most that an epoch held in a fresh process, its models included."""
    number = VARIANTS[job.kind].index(variant)
    what = json.dumps([job.kind, number, asdict(job)])
    command = [sys.executable, "-m", "mkd_fast.benchmarks.rivals", what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def _speed(
    job: Job, variants: Sequence[Variant], captured_s: float, num_rounds: int
) -> Iterator[Finding]:
    """Tokens a second, and ours over each rival's."""
    rates: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for number in range(num_rounds):
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            rates[variant].append(variant.train(job).tokens_per_s)
    ours = variants[0]
    for variant, found in rates.items():
        yield Finding.of(_case(job, variant), "tokens/s", found)
    for variant, found in rates.items():
        if variant.package != ours.package:
            at_least = _AT_LEAST[variant.teacher]
            ratios = [us / rival for us, rival in zip(rates[ours], found, strict=True)]
            yield Finding.of(
                _case(job, variant), f"x as fast, {ours.name}", ratios, at_least=at_least
            )
    num_tokens = int(job.text.lengths.sum())
    epochs = [captured_s * rate / num_tokens for rate in rates[ours]]
    yield Finding.of(f"{job.kind}, its cache is made", f"epochs of {ours.name}", epochs)
