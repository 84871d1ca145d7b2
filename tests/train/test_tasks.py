"""Tasks that a run does not reach: a teacher of tokens and a student that has fewer of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mkd_fast import LossSpec, SparseTeacher, TeacherHead, kd_loss
from mkd_fast.data import TokenisedText
from mkd_fast.student import TokenMap
from mkd_fast.teacher import CachedBatch
from mkd_fast.train.tasks import DistillTask

KEEP = [5, 0, 8, 3]
SPEC = LossSpec(temperature=2.0)
LOGITS = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
VALUES, IDS = LOGITS.topk(9)
TEACHERS = {
    "dense": LOGITS,
    "head": TeacherHead(LOGITS, torch.eye(9)),
    "top-k": SparseTeacher(IDS, VALUES, (LOGITS / 2).logsumexp(-1)),  # all of them
}


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.logits = nn.Parameter(torch.randn(3, len(KEEP), generator=generator))

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.logits, hidden_states=None)


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_student_of_fewer_tokens_learns_from_those_columns(kind):
    text = TokenisedText(np.arange(6, dtype=np.int32), np.arange(0, 7, 2), np.arange(3), pad_id=0)
    cached = CachedBatch(TEACHERS[kind], (), None)
    task = DistillTask(
        text=text, batch_size=3, seed=0, teacher_text=text, spec=SPEC, matched_layers=(),
        cache=SimpleNamespace(batch=lambda *_, **__: cached), token_map=TokenMap.of(KEEP, 9),
    )  # fmt: skip
    student = Student()
    out = task.loss(student, task.read([0, 1, 2]))
    wanted = kd_loss(student.logits, task.token_map.target(TEACHERS[kind], spec=SPEC), spec=SPEC)
    assert torch.equal(out.kd, wanted.kd)
    assert out.kd > 0
