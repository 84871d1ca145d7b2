"""A cache that a whole teacher filled trains the student that kept a part of its vocabulary."""

import copy

import pytest
import student_families as families
import torch
from budget import assert_within_budget
from torch.nn import functional

from mkd_fast import LossSpec, kd_loss, linear_kd_loss
from mkd_fast.student import TokenMap, copy_init
from mkd_fast.teacher import capture

KEEP = [30, 2, 7, 1, 39, 0, 12, 5, 6, 21, 22]
KINDS = ("logits", "topk:36", "sampled:50", "hidden")
TEMPERATURE = 2.0
SPEC = LossSpec(temperature=TEMPERATURE)
LENGTHS = torch.tensor([9, 5, 7])
COUNTS = torch.arange(9) < LENGTHS[:, None]


@pytest.fixture(scope="module")
def teacher():
    return families.make("llama", "causal")


@pytest.fixture(scope="module")
def input_ids():
    """Text of kept tokens."""
    chosen = torch.randint(len(KEEP), (3, 9), generator=torch.Generator().manual_seed(3))
    return torch.tensor(KEEP)[chosen]


@pytest.fixture(scope="module")
def cache(teacher, input_ids, tmp_path_factory):
    batch = {
        "input_ids": input_ids,
        "attention_mask": COUNTS.long(),
        "sample_ids": torch.tensor([4, 8, 9]),
    }
    folder = tmp_path_factory.mktemp("full") / "cache"
    return capture(teacher, [batch], folder, keep=KINDS, temperatures=(TEMPERATURE,))


@pytest.fixture
def student(teacher):
    return copy_init(teacher, num_layers=3, keep_token_ids=KEEP)


@pytest.fixture
def token_map(tmp_path):
    """As it comes with the student's folder."""
    TokenMap.of(KEEP, families.VOCAB_SIZE).save(tmp_path)
    return TokenMap.load(tmp_path)


def next_tokens(ids):
    return functional.pad(ids[:, 1:], (0, 1), value=-100).masked_fill(~COUNTS.roll(-1, 1), -100)


def hidden_states(student, ids):
    return student.model(input_ids=ids, attention_mask=COUNTS.long()).last_hidden_state


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_from_it(teacher, student, cache, token_map, input_ids, kind):
    """Both losses agree at every step, and what is learnt is the teacher given a kept token."""
    target = token_map.target(
        cache.batch([4, 8, 9], keep=kind, temperature=TEMPERATURE).teacher, spec=SPEC
    )
    ids, labels = token_map.new_ids(input_ids), token_map.labels(next_tokens(input_ids))
    with torch.no_grad():
        logits = teacher(input_ids=input_ids, attention_mask=COUNTS.long()).logits[..., KEEP]

    def distance():
        with torch.no_grad():
            ours = student.lm_head(hidden_states(student, ids))
            return kd_loss(ours, logits, labels, temperature=TEMPERATURE).kd

    before = distance()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    for _ in range(12):
        states, head = hidden_states(student, ids), student.lm_head.weight
        out = linear_kd_loss(states, head, target, labels, spec=SPEC)
        dense = kd_loss(states.double() @ head.double().T, target, labels, spec=SPEC)
        plain = kd_loss(states @ head.T, target, labels, spec=SPEC)
        assert_within_budget(out.loss.detach(), dense.loss.detach(), plain.loss.detach())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert distance() < before


@pytest.mark.parametrize("kind", ["logits", "hidden"])
def test_exact_kinds_are_the_teacher_s_own_kept_columns(teacher, cache, token_map, input_ids, kind):
    target = token_map.target(cache.batch([4, 8, 9], keep=kind).teacher)
    if kind == "hidden":
        target = functional.linear(target.hidden, target.weight, target.bias)
    with torch.no_grad():
        logits = teacher(input_ids=input_ids, attention_mask=COUNTS.long()).logits[..., KEEP]
        exact_teacher = copy.deepcopy(teacher).double()
        exact = exact_teacher(input_ids=input_ids, attention_mask=COUNTS.long()).logits
    assert_within_budget(target[COUNTS], exact[..., KEEP][COUNTS], logits[COUNTS])


def test_top_k_is_the_teacher_s_but_for_what_is_not_listed(teacher, cache, token_map, input_ids):
    """Each probability lies below the exact one by no more than what is not listed."""
    batch = cache.batch([4, 8, 9], keep="topk:36", temperature=TEMPERATURE)
    target = token_map.target(batch.teacher, temperature=TEMPERATURE)
    with torch.no_grad():
        logits = teacher(input_ids=input_ids, attention_mask=COUNTS.long()).logits
    exact = (logits[..., KEEP].double() / TEMPERATURE).softmax(-1)
    is_kept = target.ids >= 0
    assert (batch.teacher.ids >= 0)[COUNTS].sum() > is_kept[COUNTS].sum() > 0
    p = (target.logits / TEMPERATURE - target.log_z[..., None]).exp().masked_fill(~is_kept, 0.0)
    exact = exact.gather(-1, target.ids.clamp(min=0).long()).masked_fill(~is_kept, 0.0)
    rest = 1 - p.sum(-1, keepdim=True)
    rounding = exact * 0.0015  # of the cache's entries: docs of kinds.topk
    assert (p - exact <= rounding)[COUNTS].all()
    assert (exact * (1 - rest) <= p + rounding)[COUNTS].all()
