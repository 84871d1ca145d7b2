"""``fit`` from the teacher's cache: what ``mkd-fast train`` runs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mkd_fast import linear_kd_loss
from mkd_fast.benchmarks.rivals.job import Job, Trained
from mkd_fast.data.batches import collate
from mkd_fast.losses import LossOutput
from mkd_fast.teacher import TeacherCache
from mkd_fast.train.loop import FitResult, Step, fit
from mkd_fast.train.tasks import DistillTask


@dataclass(frozen=True)
class _LabelTask(DistillTask):
    """Keeps the losses."""

    losses: list[Tensor] = field(default_factory=list)

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        out = super().loss(model, step)
        self.losses.append(out.loss.detach())
        return out


@dataclass(frozen=True)
class _NextTokenTask(_LabelTask):
    """``linear_kd_loss`` of every token that has a next one, from one kind that was kept."""

    keep: str = "hidden"

    def read(self, rows: Sequence[int]) -> Step:
        batch = collate(self.text, rows)
        target = self.cache.batch(rows, keep=self.keep)
        return Step(batch, target.at(_with_next(batch.attention_mask)))

    def num_counted(self, step: Step) -> int:
        return len(_with_next(step.batch.attention_mask))

    def loss(self, model: Any, step: Step) -> LossOutput:
        batch, target = step.batch, step.target
        assert target is not None, "read() gives every step its target"
        states = model.model(batch.input_ids, batch.attention_mask, use_cache=False)[0]
        states = states.flatten(0, 1)[_with_next(batch.attention_mask)].float()
        out = linear_kd_loss(states, model.lm_head.weight, target.teacher, spec=self.spec)
        self.losses.append(out.loss.detach())
        return out


def _with_next(mask: Tensor) -> Tensor:
    """Where in a batch that is padded on the right."""
    return (mask * nn.functional.pad(mask[:, 1:], (0, 1))).flatten().nonzero()[:, 0]


def classifier(job: Job) -> Trained:
    """From logits."""
    return _fitted(job, _LabelTask)


def from_hidden(job: Job) -> Trained:
    """A language model from the teacher's last hidden states: the exact divergence."""
    return _fitted(job, _NextTokenTask, keep="hidden")


def from_topk(job: Job) -> Trained:
    """A language model from the teacher's 64 largest logits."""
    return _fitted(job, _NextTokenTask, keep="topk:64")


def _fitted(job: Job, kind: type[_LabelTask], **options: Any) -> Trained:
    text, cache, trained = job.text, TeacherCache.open(job.cache), Trained()
    task = kind(text, job.batch_size, 0, text, cache, job.spec, (), **options)

    def note(done: FitResult) -> None:
        trained.ended.append(time.perf_counter())
        trained.num_tokens.append(done.tokens)

    fit(job.student(), task, job.optim, name="", seed=0, after_step=note, shows_progress=False)
    sums = torch.tensor([0, *trained.num_tokens])
    return replace(trained, losses=task.losses, num_tokens=sums.diff().tolist())
