"""What a student is trained with.

    labels      cross-entropy with the labels, nothing of the teacher
    logit_mse   [loss] with divergence logit_mse, without hidden states
    kl          [loss] without hidden states
    kl_hidden   [loss]
    hidden      the distance of hidden states alone: no labels, no logits

So ``loss.ce_weight`` says whether the distilled ones see labels too. Hidden state i + 1 of a
student is matched with that behind the teacher's layer it started from, or would have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Self

import numpy as np
from torch import nn

from mkd_fast.data.batches import length_grouped_batches
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.losses import LossOutput, LossSpec
from mkd_fast.study.config import Objective
from mkd_fast.study.shared import Shared
from mkd_fast.train.loop import Step, Task
from mkd_fast.train.task_kinds import Teaching


def spec_of(objective: Objective, loss: LossSpec) -> LossSpec | None:
    """What is asked of ``kd_loss``; None for labels alone.

    Args:
        objective: its name.
        loss: the recipe's ``[loss]``.
    """
    if objective == "labels":
        return None
    if objective == "hidden":
        return replace(loss, kd_weight=0.0, ce_weight=0.0, hidden_weight=1.0)
    if objective == "kl_hidden":
        return loss
    if objective == "logit_mse":
        return replace(loss, divergence="logit_mse", alpha_beta=None, hidden_weight=0.0)
    return replace(loss, hidden_weight=0.0)


@dataclass(frozen=True)
class SomeSteps:
    """A task on some of its rows, for a number of steps, whatever epochs they make.

    Args:
        task: how a step is read, and its loss.
        text: in the model's token ids.
        rows: the texts of it that are trained on.
        num_steps: all of them are in epoch 0.
        batch_size: rows a step.
        seed: of their order.
    """

    task: Task
    text: TokenisedText
    rows: Sequence[int]
    num_steps: int
    batch_size: int
    seed: int

    @property
    def weights(self) -> Mapping[str, float]:
        """The task's."""
        return self.task.weights

    def at(self, step: int, num_steps: int) -> Self:
        """As the task is."""
        return replace(self, task=self.task.at(step, num_steps))

    def batches(self, epoch: int) -> list[list[int]]:
        """The samples of each step."""
        assert epoch == 0, "everything is in one"
        is_chosen = np.isin(self.text.texts_of_epoch(), self.rows)
        steps = list[list[int]]()
        for number in count():
            if len(steps) >= self.num_steps:
                break
            samples = self.text.rows_of_epoch(number)[is_chosen]
            batches = length_grouped_batches(
                self.text.lengths[samples], batch_size=self.batch_size, seed=self.seed, epoch=number
            )
            steps += [samples[batch].tolist() for batch in batches]
        return steps[: self.num_steps]

    def read(self, rows: Sequence[int]) -> Step:
        """As the task does."""
        return self.task.read(rows)

    def num_counted(self, step: Step) -> int:
        """As the task does."""
        return self.task.num_counted(step)

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """As the task does."""
        return self.task.loss(model, step)


def task_of(
    shared: Shared,
    objective: Objective,
    layers: tuple[int, ...],
    rows: Sequence[int],
    num_steps: int,
    seed: int,
) -> Task:
    """What ``fit`` trains: an objective on some rows of the training text.

    Args:
        shared: the text and the teacher's outputs.
        objective: what is minimised.
        layers: the teacher's layers that the student's are matched with.
        rows: of the training text, a sentence each.
        num_steps: how many steps.
        seed: of the rows' order.
    """
    tokens, batch_size = shared.train_part.tokens, shared.recipe.train.batch_size
    spec = spec_of(objective, shared.recipe.loss)
    if spec is None:
        task = shared.kind.label_task(tokens, batch_size, seed)
    else:
        pairs = tuple((ours + 1, theirs + 1) for ours, theirs in enumerate(layers))
        matched = pairs if spec.hidden_weight else ()
        teaching = Teaching(shared.teacher_text, shared.cache, spec, matched, shared.token_map)
        task = shared.kind.distill_task(tokens, batch_size, seed, teaching)
    return SomeSteps(task, tokens, rows, num_steps, batch_size, seed)
