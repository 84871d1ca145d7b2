"""What a student learns from each kind: the same start, text and steps, another target."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mkd_fast import kd_loss, linear_kd_loss
from mkd_fast.benchmarks.fidelity.errors import Target
from mkd_fast.benchmarks.fidelity.numbers import Number
from mkd_fast.benchmarks.fidelity.study import IGNORED, TRAIN, Study, head_of, select
from mkd_fast.losses import LossSpec, hidden_loss
from mkd_fast.losses.targets import Tail

DENSE = "dense"
LAYERS, INT8_LAYERS = "dense + layers", "hidden + int8 layers"


def train(study: Study, source: str, seed: int) -> Any:
    """A copied student after some steps of forward KL from a cache's kind, or the live teacher.

    A source is "dense", a kind, or a kind and a tail ("topk:16, drop"). LAYERS and INT8_LAYERS add
    the cosine distance of matched hidden states from the live teacher's, and from the cache's.
    """
    size, text = study.size, study.train
    student = study.student(size.num_layers).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=size.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        size.learning_rate,
        total_steps=size.num_steps,
        pct_start=0.1,
        cycle_momentum=False,
    )
    keep, _, tail = source.removesuffix(" + int8 layers").partition(", ")
    target = Target(keep, tail=cast("Tail | None", tail or None))
    matches = source in (LAYERS, INT8_LAYERS)
    ask = _live(study, matches) if source in (DENSE, LAYERS) else _cached(study, keep, matches)
    for rows in _batches(len(text.labels), size.batch_size, size.num_steps, seed):
        ids, is_counted = text.input_ids[rows], text.labels[rows] != IGNORED
        with torch.autocast(ids.device.type, torch.bfloat16):
            teacher, theirs = ask(rows)
            head = head_of(student)
            states, of_layer = _into_head(student, ids)
            chosen = target.of(select(teacher, is_counted))
            loss = linear_kd_loss(
                states[is_counted], head.weight, chosen, student_bias=head.bias
            ).loss
            if matches:
                ours = [of_layer[layer] for layer in study.layers_of(student)]
                loss = loss + hidden_loss(ours, theirs, distance="cosine")
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student.eval()


Ask = Callable[[Tensor], tuple[Any, Sequence[Any]]]  # rows -> logits' teacher, matched layers


def _live(study: Study, matches: bool) -> Ask:
    @torch.no_grad()
    def ask(rows: Tensor) -> tuple[Any, Sequence[Any]]:
        out: Any = study.teacher(
            input_ids=study.train.input_ids[rows], output_hidden_states=matches
        )
        return out.logits, [out.hidden_states[n] for n in study.matched_layers if matches]

    return ask


def _cached(study: Study, keep: str, matches: bool) -> Ask:
    cache = study.cache(TRAIN)
    layers = study.matched_layers if matches else ()

    def ask(rows: Tensor) -> tuple[Any, Sequence[Any]]:
        batch = cache.batch(rows, keep=keep, hidden_layers=layers)
        return batch.teacher, batch.hidden

    return ask


def _batches(num_samples: int, batch_size: int, num_steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step: epochs in random order, whatever the target."""
    order = torch.Generator().manual_seed(seed)
    left: list[Tensor] = []
    for _ in range(num_steps):
        if not left:
            left = [*torch.randperm(num_samples, generator=order).split(batch_size)]
        yield left.pop()


def _into_head(model: Any, ids: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """What the head is given, [B, S, D], and all hidden states; the head makes nothing of it."""
    head = head_of(model)
    head.forward = lambda states: states
    try:
        out = model(input_ids=ids, output_hidden_states=True)
    finally:
        del head.forward
    return out.logits, out.hidden_states


@torch.no_grad()
def evaluate(study: Study, model: Any, kind: str, label: str) -> Iterator[Number]:
    """Held-out KL from the teacher and perplexity, all in float32."""
    spec = LossSpec(ce_weight=1.0, reduction="sum")
    num_tokens, kl, nats = 0, 0.0, 0.0
    for ids, labels in zip(
        study.held_out.input_ids.split(1), study.held_out.labels.split(1), strict=True
    ):
        is_counted = labels != IGNORED
        of_teacher = study.teacher(input_ids=ids).logits[is_counted]
        out = kd_loss(
            model(input_ids=ids).logits[is_counted], of_teacher, labels[is_counted], spec=spec
        )
        num_tokens += len(of_teacher)
        kl += out.kd.item()
        nats += out.ce.item()
    yield Number(study.name, kind, label, 1.0, "held-out KL, nats", kl / num_tokens)
    yield Number(study.name, kind, label, 1.0, "perplexity", math.exp(nats / num_tokens))
