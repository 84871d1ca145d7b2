"""``mkd-fast bench switches``: what each switch of the loop gives, and what memory it takes.

One student of 6 layers learns from a kept teacher of 12 (rivals/job.py, the classifier), an epoch
for each switch in every round, in turn; ratios are taken within a round. Time is that of the loop's
thread, so that a busy machine shows little, and the first steps, in which layers are compiled, are
told apart. Memory is a process's own, with steps so large that activations are most of it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from mkd_fast.benchmarks.findings import Finding
from mkd_fast.benchmarks.memory import peak_extra_bytes
from mkd_fast.benchmarks.rivals.job import WARM_UP_STEPS, Job
from mkd_fast.benchmarks.train import TINY
from mkd_fast.teacher import TeacherCache
from mkd_fast.train.loop import FitResult, fit
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.tasks import DistillTask

CPU = torch.device("cpu")
SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "attention model": {"attention": "model"},
    "optimizer adamw_foreach": {"optimizer": "adamw_foreach"},
    "checkpointing": {"checkpointing": True},
    "accumulate 4": {"accumulate": 4},
    "compile layers": {"compile": "layers"},
    "compile layers, checkpointing": {"compile": "layers", "checkpointing": True},
}
# The job whose memory is measured.
_LARGE = {"batch_size": 64, "num_steps": 4, "mean_tokens": 64, "longest": 160}


@dataclass(frozen=True)
class Switched(Job):
    """A job with other settings.

    Attributes:
        changes: of its ``OptimConfig``.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def optim(self) -> OptimConfig:
        """With the changes."""
        return replace(super().optim, **self.changes)


def epoch(job: Job) -> tuple[float, float]:
    """Tokens a second of the thread's time beyond the first steps, and the seconds of these."""
    seconds, tokens = [time.thread_time()], [0]

    def note(done: FitResult) -> None:
        seconds.append(time.thread_time())
        tokens.append(done.tokens)

    text, cache = job.text, TeacherCache.open(job.cache)
    task = DistillTask(text, job.batch_size, 0, text, cache, job.spec, matched_layers=())
    fit(job.student(), task, job.optim, name="", seed=0, after_step=note, shows_progress=False)
    first = WARM_UP_STEPS
    speed = (tokens[-1] - tokens[first]) / (seconds[-1] - seconds[first])
    return speed, seconds[first] - seconds[0]


def measure(device: torch.device, *, is_tiny: bool, num_rounds: int = 3) -> Iterator[Finding]:
    """Every switch on the CPU, whatever ``device`` is; ``is_tiny`` leaves out what takes long."""
    switches = {
        name: changes
        for name, changes in SWITCHES.items()
        if not (is_tiny and "compile" in changes)
    }
    with _prepared(TINY if is_tiny else {}) as plain:
        jobs = {name: replace(plain, changes=changes) for name, changes in switches.items()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for _ in range(num_rounds):
            for name, job in jobs.items():
                found[name].append(epoch(job))
        usual = [speed for speed, _ in found["as it is"]]
        for name, epochs in found.items():
            speeds = [speed for speed, _ in epochs]
            ratios = [speed / as_it_is for speed, as_it_is in zip(speeds, usual, strict=True)]
            yield Finding.of(name, "tokens a CPU second", speeds)
            yield Finding.of(name, "x as fast as it is", ratios)
            first = [seconds for _, seconds in epochs]
            yield Finding.of(name, f"s in the first {WARM_UP_STEPS} steps", first[:1])
    with _prepared(TINY if is_tiny else _LARGE) as plain:
        for name, changes in list(switches.items())[: 1 if is_tiny else None]:
            peak = _peak_bytes(replace(plain, changes=changes))
            yield Finding.of(name, "MB held at most", [peak / 1e6])


@contextmanager
def _prepared(size: Mapping[str, Any]) -> Iterator[Switched]:
    """A job of that size, with its models, text and cache, while they are needed."""
    with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as folder:
        job = Switched(folder, "classifier", **size)
        job.prepare()
        job.capture()
        yield job


def _peak_bytes(job: Job) -> float:
    command = [sys.executable, "-m", "mkd_fast.benchmarks.switches", json.dumps(asdict(job))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(peak_extra_bytes(partial(epoch, Switched(**json.loads(sys.argv[1]))), CPU))
