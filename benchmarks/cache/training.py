"""Steps of training from a cache beside steps without one, and their loss curves."""

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mkd_fast import copy_init, kd_loss, linear_kd_loss
from mkd_fast.benchmarks.cache.reading import tokens_per_s
from mkd_fast.benchmarks.cache.setting import ORIGIN, Bench, interleaved, ratios_of
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.data.batches import Batch
from mkd_fast.losses import LossSpec
from mkd_fast.teacher import TeacherCache, capture
from mkd_fast.train.device import autocast
from mkd_fast.train.loop import Step, to_device
from mkd_fast.train.prefetch import prefetch
from mkd_fast.train.tasks import DistillTask, LabelTask

_SPEC = LossSpec(temperature=2.0, ce_weight=0.5, hidden_weight=1.0)


@dataclass(frozen=True)
class _Trainee:
    """A student with its optimizer, which takes steps of one task."""

    bench: Bench
    task: LabelTask
    model: nn.Module
    optimizer: torch.optim.Optimizer
    teacher: Any = None

    @classmethod
    def of(cls, bench: Bench, task: LabelTask, teacher: Any = None) -> "_Trainee":
        model = copy_init(bench.classifier, depth="stride", num_layers=bench.size.num_layers // 2)
        model.train()
        return cls(bench, task, model, torch.optim.AdamW(model.parameters(), fused=True), teacher)

    def steps(self) -> tuple[float, float]:
        """Take some; seconds that they took, and that they waited for their data."""
        rows = itertools.islice(itertools.cycle(self.task.batches(0)), self.bench.size.num_steps)
        waited, started = 0.0, time.perf_counter()
        steps = prefetch(self.task.read, list(rows))
        while True:
            asked = time.perf_counter()
            step = next(steps, None)
            waited += time.perf_counter() - asked
            if step is None:
                return time.perf_counter() - started, waited
            self._take(to_device(step, self.bench.device))

    def _take(self, step: Step) -> None:
        with autocast(self.bench.device, "auto"):
            if self.teacher is None:
                out = self.task.loss(self.model, step)
            else:
                out = _live_loss(self.teacher, self.model, step.batch)
        out.loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _live_loss(teacher: Any, student: Any, batch: Batch) -> Any:
    """``DistillTask.loss`` with the teacher beside it in place of its cache."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        said = teacher(**inputs, output_hidden_states=True)
    out = student(**inputs, output_hidden_states=True)
    num_layers = len(out.hidden_states)
    return kd_loss(
        out.logits,
        said.logits,
        batch.labels,
        student_hidden=list(out.hidden_states[1:]),
        teacher_hidden=[said.hidden_states[2 * layer] for layer in range(1, num_layers)],
        hidden_mask=batch.attention_mask.bool(),
        spec=_SPEC,
    )


def training(bench: Bench) -> Iterator[Finding]:
    """A step from the cache beside one with a live teacher, and one that needs no teacher."""
    size, text = bench.size, bench.sentences
    layers = tuple(range(2, size.num_layers + 1, 2))
    batches = bench.batches(text, 64)
    cache = bench.captured(
        "training", bench.classifier, batches, keep="logits", hidden_layers=layers
    )
    matched = tuple((number, layer) for number, layer in enumerate(layers, start=1))
    distil = DistillTask(text, size.batch_size, 0, text, cache, _SPEC, matched)
    trainees = {
        "cache": _Trainee.of(bench, distil),
        "live": _Trainee.of(bench, LabelTask(text, size.batch_size, 0), bench.classifier),
        "labels": _Trainee.of(bench, LabelTask(text, size.batch_size, 0)),
        "cache, logits": _Trainee.of(
            bench, replace(distil, spec=replace(_SPEC, hidden_weight=0.0), matched_layers=())
        ),
    }
    waits: list[float] = []
    took: list[float] = []

    def from_cache() -> None:
        seconds, waited = trainees["cache"].steps()
        waits.append(waited / seconds)
        took.append(seconds)

    runs = {name: trainee.steps for name, trainee in trainees.items()} | {"cache": from_cache}
    seconds = interleaved(runs, size.num_rounds)
    yield Finding.of("training step", "share of it waiting for the cache", waits[1:], at_most=0.03)
    ratios = ratios_of(seconds["live"], seconds["cache"])
    yield Finding.of("training step", "x, with a live 12-layer teacher", ratios, at_least=1.5)
    ratios = ratios_of(seconds["cache, logits"], seconds["labels"])
    yield Finding.of("training step, logits", "x of labels alone", ratios, at_most=1.10)
    ratios = ratios_of(seconds["cache"], seconds["labels"])
    yield Finding.of("training step, logits + 6 layers", "x of labels alone", ratios)
    taken = itertools.islice(itertools.cycle(distil.batches(0)), size.num_steps)
    num_tokens = int(sum(text.lengths[rows].sum() for rows in taken))
    consumed = [num_tokens / seconds for seconds in took[1:]]
    yield Finding.of("training step", "tokens/s", consumed)
    orders = {
        "in order": np.arange(len(text)),
        "at random": np.random.default_rng(2).permutation(len(text)),
    }
    for order, rows in orders.items():
        chunks = np.array_split(rows, max(1, len(rows) // size.batch_size))
        served = tokens_per_s(cache, text, chunks, size.num_rounds, layers)
        ratios = [rate / statistics.median(consumed) for rate in served]
        what = "x what a training step consumes"
        yield Finding.of(f"reading logits + 6 layers, {order}", what, ratios, at_least=20.0)


def same_curves(bench: Bench) -> Finding:
    """The largest relative difference of two loss curves: from ``hidden``, and from ``logits``."""
    batches = bench.batches(bench.texts, 8)
    cache = capture(
        bench.causal,
        batches,
        bench.folder / "curves",
        keep=("hidden", "logits"),
        fingerprints=ORIGIN,
        resume=False,
    )
    curves = {keep: _curve(bench, cache, keep, batches) for keep in ("hidden", "logits")}
    off = [abs(a - b) / abs(b) for a, b in zip(curves["hidden"], curves["logits"], strict=True)]
    num_steps = len(off)
    return Finding.of(
        "loss curve", f"hidden's off logits' in {num_steps} steps", [max(off)], at_most=1e-4
    )


def _curve(bench: Bench, cache: TeacherCache, keep: str, batches: Sequence[Batch]) -> list[float]:
    student = copy_init(bench.causal, depth="stride", num_layers=bench.size.num_layers // 2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for number in range(2 * bench.size.num_steps):
        batch = to_device(batches[number % len(batches)], bench.device)
        target = cache.batch(batch.sample_ids.cpu(), keep=keep).to(bench.device)
        mask = batch.attention_mask
        states = student.model(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        out = linear_kd_loss(
            states, student.lm_head.weight, target.teacher, mask=mask.bool(), temperature=2.0
        )
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(out.loss.item())
    return losses
