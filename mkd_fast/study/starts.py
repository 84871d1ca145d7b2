"""What a student is before it is trained.

    scratch      random weights, embeddings and head too
    embeddings   the fine-tuned teacher's embeddings (word, position, type, their norm), else random
    pretrained   chosen layers and the embeddings of the model before fine-tuning, a random head
    finetuned    chosen layers, embeddings and head of the fine-tuned teacher

A random weight depends on the seed, and is the same in every start that has it. The head are the
parameters that fine-tuning added to the pretrained model (with BERT, its pooler among them). Where
words are tagged, a random head starts with the labels' shares as its bias, as a teacher's does.
What of a language model's head is tied to the embeddings is theirs.

Under the objective "hidden" every start has the fine-tuned teacher's head, and nothing trains it:
the student is to hand the head the states that it knows, and neither labels nor logits are needed.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from mkd_fast.student import copy_init, embeddings_only, scratch_like
from mkd_fast.study.config import Objective, Start
from mkd_fast.study.shared import Shared
from mkd_fast.train import models

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(
    shared: Shared, start: Start, layers: tuple[int, ...], objective: Objective, seed: int
) -> "PreTrainedModel":
    """A student, on the CPU, that shares no memory with another.

    Args:
        shared: the models it is copied from.
        start: what is copied.
        layers: the teacher's layers; for "scratch" and "embeddings" their number counts.
        objective: what it will be trained with.
        seed: of random weights.
    """
    parent = shared.pretrained_parent if start == "pretrained" else shared.finetuned_parent
    student = copy_init(parent, layers)
    if start == "pretrained":
        _take(student, scratch_like(student, seed), shared.head_names)
    elif start == "embeddings":
        student = embeddings_only(student, seed)
    elif start == "scratch":
        student = scratch_like(student, seed)
    if start != "finetuned" and shared.kind.starts_at_label_shares:
        models.start_at_label_shares(student, shared.train_part.tokens.labels)
    if objective == "hidden":
        _take(student, shared.finetuned_parent, shared.head_names)
    return student


def _take(model: "PreTrainedModel", source: "PreTrainedModel", names: Iterable[str]) -> None:
    ours, theirs = dict(model.named_parameters()), dict(source.named_parameters())
    with torch.no_grad():
        for name in names:
            ours[name].copy_(theirs[name])
