"""A step taken in parts, by one process or several, has the losses and gradients of the whole."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mkd_fast import LossSpec
from mkd_fast.data.tokens import NO_LABEL, LabelledTokens, TokenisedText
from mkd_fast.losses import LossOutput
from mkd_fast.teacher import CachedBatch
from mkd_fast.train.processes import Processes
from mkd_fast.train.schedule import LossSchedule
from mkd_fast.train.shares import in_the_mean, share_of
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
    return DistillTask(
        text, 8, seed=0, teacher_text=text, cache=cache, spec=spec, matched_layers=((0, 0),)
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
        pooled = states if self.of_tokens else (states * shares).sum(1).to(states)
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
    return torch.cat([terms(out), *(p.grad.flatten() for p in student.parameters())])


def in_parts(task, num_parts, num_processes):
    """The same of all parts, gradients averaged over processes as DDP and FSDP2 do."""
    found = []
    shares = [
        share_of(ROWS, task, num_parts, Processes(rank, num_processes))
        for rank in range(num_processes)
    ]
    num_counted = sum(share.num_counted for share in shares)
    for share in shares:
        student = Student(isinstance(task.text, LabelledTokens))
        summed = torch.zeros(4)
        for part in share.parts:
            out = task.loss(student, part.step)
            out = in_the_mean(out, part.num_counted, num_counted, num_processes)
            out.loss.backward()
            summed = summed + terms(out)
        found.append(torch.cat([summed, *(p.grad.flatten() for p in student.parameters())]))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    ("num_parts", "num_processes"),
    [(1, 1), (2, 1), (3, 1), (8, 1), (20, 1), (1, 3), (2, 3), (1, 9)],
)
@pytest.mark.parametrize("name", TASKS)
def test_parts_add_up_to_the_whole(name, num_parts, num_processes):
    found = in_parts(TASKS[name], num_parts, num_processes)
    torch.testing.assert_close(found.float(), whole(TASKS[name]).float())  # whose terms are


def test_a_step_has_its_own_weights_of_the_loss():
    schedule = LossSchedule(hidden_weight=("linear", 1.0), kd_weight=("linear", 0.0))
    task = replace(TASKS["distilled, tokens"], schedule=schedule).at(3, 4)
    assert task.weights == {"kd_weight": 0.5 * 0.7, "hidden_weight": 1.5}
    wanted = distill_task(token_text(), replace(SPEC, kd_weight=0.5 * 0.7, hidden_weight=1.5))
    assert torch.equal(whole(task), whole(wanted))


@pytest.mark.parametrize("name", TASKS)
def test_a_whole_step_is_what_it_was_bit_for_bit(name):
    assert torch.equal(in_parts(TASKS[name], 1, 1), whole(TASKS[name]))


@pytest.mark.parametrize("name", ["labels of tokens", "distilled, samples", "distilled, tokens"])
def test_the_mean_of_the_parts_means_is_another_loss(name):
    task = TASKS[name]
    student = Student(isinstance(task.text, LabelledTokens))
    parts = share_of(ROWS, task, 4).parts
    mean = sum(terms(task.loss(student, part.step)) for part in parts) / len(parts)
    exact = whole(task)[0]
    assert (mean[0] - exact).abs() > 0.01 * exact


@pytest.mark.parametrize(
    ("num_rows", "num_parts", "num_processes", "wanted"),
    [
        pytest.param(5, 2, 1, [[[0, 1], [2, 3, 4]]], id="parts keep the order"),
        pytest.param(3, 8, 1, [[[0], [1], [2]]], id="no more parts than rows"),
        pytest.param(4, 2, 2, [[[0], [2]], [[1], [3]]], id="every process has as many"),
        pytest.param(3, 2, 2, [[[0], [2]], [[1], [0]]], id="a row stands in for a part"),
        pytest.param(3, 2, 4, [[[0]], [[1]], [[2]], [[0]]], id="or for a process"),
    ],
)
def test_who_takes_which_rows(num_rows, num_parts, num_processes, wanted):
    shares = [
        share_of(
            ROWS[:num_rows], TASKS["distilled, tokens"], num_parts, Processes(rank, num_processes)
        )
        for rank in range(num_processes)
    ]
    assert [share.sample_ids for share in shares] == wanted


def test_a_row_that_stands_in_counts_nothing():
    task = TASKS["another label is ignored"]
    found = [share_of([1, 4, 6], task, 2, Processes(rank, 4)) for rank in range(4)]
    assert [share.num_counted for share in found] == [0, 0, 1, 0]
    assert [share.num_tokens for share in found] == [40, 17, 30, 0]
    assert [share.num_pairs for share in found] == [1600, 289, 900, 0]
    assert [share.parts[0].num_counted for share in found] == [0, 0, 1, 0]


@pytest.mark.parametrize("term", ["loss", "kd", "ce", "hidden"])
def test_a_term_that_is_not_finite_spoils_the_loss_that_others_get(term):
    weight = torch.ones((), requires_grad=True)
    parts = {name: torch.ones(()) for name in ("kd", "ce", "hidden")} | {"loss": weight * 1.0}
    parts[term] = parts[term] + torch.inf
    in_the_mean(LossOutput(**parts), 1, 2, 2).loss.backward()
    assert weight.grad.isnan()
