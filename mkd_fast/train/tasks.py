"""What a model is trained for: the labels, or the teacher's outputs in a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from torch import nn
from torch.nn import functional

from mkd_fast.data.feeding import PLAIN, Feeding
from mkd_fast.data.tokens import NO_LABEL, TokenisedText
from mkd_fast.losses import LossOutput, LossSpec, kd_loss
from mkd_fast.student import TokenMap
from mkd_fast.teacher.cache import TeacherCache
from mkd_fast.train.forward import inputs_of, padded
from mkd_fast.train.loop import Step
from mkd_fast.train.schedule import CONSTANT, LossSchedule


@dataclass(frozen=True)
class LabelTask:
    """Cross-entropy with the labels, of samples or of tokens: fine-tuning.

    Args:
        text: what is trained on, in the model's token ids.
        batch_size: samples a step, all of about the same length.
        seed: of their order.
        feeding: which samples an epoch has, and how they are laid out.
        weights: of the loss, those that move, as they are at a step; known of what ``at`` returns.
    """

    text: TokenisedText
    batch_size: int
    seed: int
    feeding: Feeding = field(default=PLAIN, kw_only=True)
    weights: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def at(self, step: int, num_steps: int) -> Self:
        """The same at every step: no weight moves."""
        return self

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows of each step."""
        return self.feeding.batches(
            self.text, batch_size=self.batch_size, seed=self.seed, epoch=epoch
        )

    def read(self, rows: Sequence[int]) -> Step:
        """The padded batch."""
        return Step(self.feeding.collate(self.text, rows))

    def num_counted(self, step: Step) -> int:
        """The samples or tokens that have a label."""
        return int((step.batch.labels != NO_LABEL).sum())

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """Mean cross-entropy over what has a label; 0 where nothing has."""
        batch = step.batch
        logits = padded(model(**inputs_of(model, batch)).logits, batch)
        labels = batch.labels.flatten()
        loss = functional.cross_entropy(logits.flatten(0, -2).float(), labels, reduction="sum")
        loss = loss / (labels != NO_LABEL).sum().clamp(min=1)
        nothing = loss.new_zeros(())
        return LossOutput(loss, kd=nothing, ce=loss.detach(), hidden=nothing)


@dataclass(frozen=True)
class DistillTask(LabelTask):
    """``kd_loss`` against what a teacher left in its cache.

    Where tokens have labels, those count that have one: the first pieces of words.

    Args:
        teacher_text: the same text in the teacher's token ids, to compare with the cache's.
        cache: the teacher's outputs.
        spec: the loss.
        matched_layers: pairs (hidden state of the student, hidden state of the teacher), as
            ``transformers`` numbers them; none where hidden states play no part.
        token_map: of a student with fewer tokens than the teacher, where the logits are over
            tokens; None where they are over labels, or the vocabulary is whole.
        schedule: how the weights of ``spec`` move from what they are there.
    """

    teacher_text: TokenisedText
    cache: TeacherCache
    spec: LossSpec
    matched_layers: tuple[tuple[int, int], ...]
    token_map: TokenMap | None = None
    schedule: LossSchedule = field(default=CONSTANT, kw_only=True)

    def at(self, step: int, num_steps: int) -> Self:
        """With the weights of the loss that a step has."""
        weights: dict[str, Any] = {**self.schedule.weights_at(self.spec, step, num_steps)}
        return replace(self, spec=replace(self.spec, **weights), weights=weights)

    def read(self, rows: Sequence[int]) -> Step:
        """The padded batch and the teacher's outputs for it."""
        hashes = np.array([self.teacher_text.token_hash(row) for row in rows], np.uint64)
        target = self.cache.batch(
            rows,
            hashes,
            temperature=self.spec.resolved_teacher_temperature,
            hidden_layers=[theirs for _, theirs in self.matched_layers],
        )
        return Step(self.feeding.collate(self.text, rows), target)

    def num_counted(self, step: Step) -> int:
        """The samples or tokens whose label is not to be ignored."""
        return int((step.batch.labels != self.spec.ignore_index).sum())

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """``kd_loss`` of the batch."""
        batch, target = step.batch, step.target
        assert target is not None, "read() gives every step its target"
        out = model(**inputs_of(model, batch), output_hidden_states=bool(self.matched_layers))
        teacher = target.teacher
        if self.token_map is not None:
            teacher = self.token_map.target(teacher, spec=self.spec)
        return kd_loss(
            padded(out.logits, batch),
            teacher,
            batch.labels,
            student_hidden=[
                padded(out.hidden_states[ours], batch) for ours, _ in self.matched_layers
            ],
            teacher_hidden=target.hidden,
            hidden_mask=target.hidden_mask if self.matched_layers else None,
            spec=self.spec,
        )
