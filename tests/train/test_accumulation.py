"""A step taken in parts has the losses and gradients of the step taken whole, in float64."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_problem import OPTIM, Problem, metric_rows, train
from torch import nn

from mkd_fast import LossSpec
from mkd_fast.data.tokens import NO_LABEL, LabelledTokens, TokenisedText
from mkd_fast.teacher import CachedBatch
from mkd_fast.train.loop import read_parts
from mkd_fast.train.tasks import DistillTask, LabelTask

LENGTHS = [1, 40, 2, 2, 17, 1, 30, 3]  # very uneven
ROWS = list(range(len(LENGTHS)))
OFFSETS = np.cumsum([0, *LENGTHS])
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 11, (OFFSETS[-1],), generator=GENERATOR).numpy().astype(np.int32)
TEACHER_LOGITS = torch.randn(len(ROWS), 40, 3, generator=GENERATOR, dtype=torch.float64)
TEACHER_HIDDEN = torch.randn(len(ROWS), 40, 8, generator=GENERATOR, dtype=torch.float64)
SPEC = LossSpec(kd_weight=0.7, ce_weight=0.5, hidden_weight=2.0, temperature=2.0)


def token_text():
    labels = IDS.astype(np.int64) % 3
    labels[IDS % 4 == 0] = NO_LABEL
    return LabelledTokens(IDS, OFFSETS, labels, pad_id=0)


def sample_text(labels=(0, 1, 2, NO_LABEL, 1, NO_LABEL, NO_LABEL, NO_LABEL)):
    return TokenisedText(IDS, OFFSETS, np.array(labels), pad_id=0)


def cached(rows, hashes, *, temperature, hidden_layers, of_tokens):
    longest = max(LENGTHS[row] for row in rows)
    mask = torch.arange(longest) < torch.tensor([LENGTHS[row] for row in rows])[:, None]
    logits = TEACHER_LOGITS[rows, :longest] if of_tokens else TEACHER_LOGITS[rows, 0]
    return CachedBatch(logits, (TEACHER_HIDDEN[rows, :longest],), mask)


def distill_task(text, spec=SPEC):
    of_tokens = isinstance(text, LabelledTokens)
    cache = SimpleNamespace(batch=lambda *a, **k: cached(*a, of_tokens=of_tokens, **k))
    layers = ((0, 0),)
    return DistillTask(
        text, 8, seed=0, teacher_text=text, cache=cache, spec=spec, matched_layers=layers
    )


class Student(nn.Module):
    """Logits of every token, or of the mean over a sample's."""

    def __init__(self, of_tokens):
        super().__init__()
        torch.manual_seed(1)
        self.of_tokens = of_tokens
        self.embeddings = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 3)
        self.double()

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        states = self.embeddings(input_ids)
        shares = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
        pooled = states if self.of_tokens else (states * shares).sum(1)
        return SimpleNamespace(logits=self.head(pooled), hidden_states=(states,))


TASKS = {
    "labels of samples": LabelTask(sample_text(), 8, seed=0),
    "labels of tokens": LabelTask(token_text(), 8, seed=0),
    "distilled, samples": distill_task(sample_text()),
    "distilled, tokens": distill_task(token_text()),
    "another label is ignored": distill_task(
        sample_text([2, 2, 0, 1, 2, 0, 1, 1]), replace(SPEC, ignore_index=2)
    ),
    "nothing counts": distill_task(sample_text([NO_LABEL] * len(ROWS))),
}


def terms(out):
    return torch.stack([out.loss.detach(), out.kd, out.ce, out.hidden])


def whole(task):
    """Terms and gradients of one batch, by the count that the loss makes itself."""
    student = Student(isinstance(task.text, LabelledTokens))
    out = task.loss(student, task.read(ROWS))
    out.loss.backward()
    return terms(out), [p.grad for p in student.parameters()]


def in_parts(task, num_parts):
    student = Student(isinstance(task.text, LabelledTokens))
    parts, num_counted = read_parts(task, num_parts, ROWS)
    assert len(parts) == min(num_parts, len(ROWS))
    outs = [task.loss(student, part, torch.tensor(num_counted)) for part in parts]
    for out in outs:
        out.loss.backward()
    return sum(map(terms, outs)), [p.grad for p in student.parameters()]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("name", TASKS)
def test_parts_add_up_to_the_whole(name, num_parts):
    torch.testing.assert_close(in_parts(TASKS[name], num_parts), whole(TASKS[name]))


@pytest.mark.parametrize("name", ["labels of tokens", "distilled, samples", "distilled, tokens"])
def test_the_mean_of_the_parts_means_is_another_loss(name):
    task = TASKS[name]
    student = Student(isinstance(task.text, LabelledTokens))
    parts, _ = read_parts(task, 4, ROWS)
    mean = sum(terms(task.loss(student, part)) for part in parts) / len(parts)
    exact, _ = whole(task)
    assert (mean[0] - exact[0]).abs() > 0.01 * exact[0]


@pytest.mark.parametrize("name", TASKS)
def test_a_whole_step_is_what_it_was_before_bit_for_bit(name):
    for found, wanted in zip(in_parts(TASKS[name], 1)[1], whole(TASKS[name])[1], strict=True):
        assert torch.equal(found, wanted)


def test_the_loop_takes_each_part_and_moves_once(tmp_path):
    """A row names a step's mean loss, and the parts are the step's rows in their order."""
    seen = []

    class Parted(Problem):
        def loss(self, model, step, num_counted=None):
            out = super().loss(model, step)
            seen.append((step.batch.sample_ids.tolist(), model.head.bias.tolist(), num_counted))
            return out

    train(tmp_path, Parted(), replace(OPTIM, accumulate=2))
    steps = [rows for epoch in range(OPTIM.epochs) for rows in Problem().batches(epoch)]
    assert [rows for rows, _, _ in seen] == [
        half for rows in steps for half in (rows[:2], rows[2:])
    ]
    assert {num_counted for _, _, num_counted in seen} == {4.0}
    moments = [bias for _, bias, _ in seen]
    assert moments[0::2] == moments[1::2]
    assert moments[0] != moments[2]
    assert [row["step"] for row in metric_rows(tmp_path / "metrics.jsonl")] == [3, 4, 6, 8, 9, 12]
