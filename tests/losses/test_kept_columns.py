"""Targets of the full vocabulary become those of the kept tokens: p given that one of them is said.

The truth is the float64 softmax over the kept columns.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter

import pytest
import torch
from budget import assert_within_budget
from sparse_kd_cases import packed
from torch.utils._python_dispatch import TorchDispatchMode

from mkd_fast import (
    LossSpec,
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
    TeacherHead,
    kd_loss,
    linear_kd_loss,
)
from mkd_fast.losses.kept_columns import KeptColumns, device_of
from mkd_fast.losses.reference import transformed
from mkd_fast.losses.targets import TAILS

VOCAB_SIZE = 40
KEEP = [2, 38, 0, 3, 5, 8, 13, 21, 34, 17, 30, 31]  # new ids need not have the old order
SPEC = LossSpec()


def kept_columns(keep=KEEP, num_old=VOCAB_SIZE, device="cpu"):
    columns = torch.tensor(keep)
    new_ids = torch.full((num_old,), -1).index_copy(0, columns, torch.arange(len(keep)))
    return KeptColumns(columns.to(device), new_ids.to(device), max(keep) + 1)


def normal(*shape, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def top(logits, num_kept, tail="bucket", spec=SPEC):
    """What a cache would hand out of these logits."""
    seen = transformed(logits, spec.teacher_logit_scale, spec.resolved_teacher_softcap)
    log_z = (seen / spec.resolved_teacher_temperature).logsumexp(-1)
    values, ids = logits.topk(num_kept)
    return SparseTeacher(ids, values, log_z, tail)


def loss_and_gradient(teacher, spec=SPEC, leading=(5,)):
    student = normal(*leading, len(KEEP), seed=7).requires_grad_()
    out = kd_loss(student, teacher, spec=dataclasses.replace(spec, reduction="none"))
    return out.kd, torch.autograd.grad(out.loss.sum(), student)[0]


def assert_same_loss(got, wanted, spec=SPEC):
    for one, other in zip(
        loss_and_gradient(got, spec), loss_and_gradient(wanted, spec), strict=True
    ):
        torch.testing.assert_close(one, other)  # float64 on both sides, which sum in other orders


def test_dense_logits_are_the_distribution_given_a_kept_token():
    logits = normal(3, 2, VOCAB_SIZE)
    got = kept_columns().target(logits, SPEC, "renormalize")
    p = logits.softmax(-1)[..., KEEP]
    torch.testing.assert_close(got.softmax(-1), p / p.sum(-1, keepdim=True))
    assert torch.equal(got, logits[..., KEEP])


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_head_gives_the_dense_loss_and_gradients(has_bias):
    hidden, weight = normal(2, 3, 8, seed=1), normal(VOCAB_SIZE, 8, seed=2)
    bias = normal(VOCAB_SIZE, seed=3) if has_bias else None
    logits = torch.nn.functional.linear(hidden, weight, bias)
    columns = kept_columns()
    got = columns.target(TeacherHead(hidden, weight, bias), SPEC, "renormalize")
    assert got.weight.shape == (len(KEEP), 8)
    dense = columns.target(logits, SPEC, "renormalize")
    arguments = normal(2, 3, 8, seed=4), normal(len(KEEP), 8, seed=5)
    results = []
    for teacher in (got, dense):
        student = [argument.clone().requires_grad_() for argument in arguments]
        loss = linear_kd_loss(*student, teacher).loss
        results.append([loss, *torch.autograd.grad(loss, student)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_heads_rows_are_taken_once():
    columns, weight = kept_columns(), normal(VOCAB_SIZE, 8)
    first, second = (
        columns.target(TeacherHead(normal(2, 8, seed=seed), weight), SPEC, "renormalize")
        for seed in (1, 2)
    )
    assert first.weight is second.weight
    assert torch.equal(second.hidden, normal(2, 8, seed=2))
    other = columns.target(TeacherHead(normal(2, 8), weight + 1), SPEC, "renormalize")
    assert torch.equal(other.weight, weight[KEEP] + 1)


SPECS = {
    "plain": SPEC,
    "temperatures": LossSpec(temperature=2.0, teacher_temperature=3.0),
    "scaled and capped": LossSpec(
        temperature=0.7, teacher_logit_scale=0.5, teacher_softcap=4.0, softcap=9.0
    ),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("tail", TAILS)
def test_top_k_is_exact_where_all_of_the_rest_is_kept(tail, spec):
    """Dropped tokens are listed, or impossible: then P(kept) is known."""
    logits = normal(5, VOCAB_SIZE)
    teacher = top(logits, 9, tail, spec)
    dropped = [v for v in range(VOCAB_SIZE) if v not in KEEP]
    is_dropped = torch.zeros(5, VOCAB_SIZE, dtype=torch.bool)
    is_dropped[:, dropped] = True
    is_listed = torch.zeros_like(is_dropped).scatter(1, teacher.ids, True)
    logits = logits.masked_fill(is_dropped & ~is_listed, -torch.inf)
    teacher = top(logits, 9, tail, spec)
    assert (is_dropped.gather(1, teacher.ids)).any(-1).all()
    seen = transformed(logits[:, KEEP], spec.teacher_logit_scale, spec.resolved_teacher_softcap)
    got = kept_columns().target(teacher, spec, "renormalize")
    log_z = (seen / spec.resolved_teacher_temperature).logsumexp(-1)
    torch.testing.assert_close(got.log_z, log_z)
    assert_same_loss(got, dataclasses.replace(got, log_z=log_z), spec)


def test_top_k_errs_within_the_bounds_that_are_stated():
    logits = normal(200, VOCAB_SIZE, scale=1.5)
    teacher = top(logits, 9)
    columns = kept_columns()
    exact_log_z = logits[:, KEEP].logsumexp(-1)
    got = columns.target(teacher, SPEC, "renormalize")
    new_p = (got.logits - got.log_z[:, None]).exp().masked_fill(got.ids < 0, 0.0)
    rest = 1.0 - new_p.sum(-1)
    too_low = got.log_z - exact_log_z
    assert (too_low >= 0).all()
    assert (too_low <= -torch.log1p(-rest)).all()

    bucket = columns.target(teacher, SPEC, "bucket")
    assert bucket.log_z is teacher.log_z
    assert bucket.logits is teacher.logits
    assert torch.equal(bucket.ids, got.ids)
    p = (teacher.logits - teacher.log_z[:, None]).exp()
    events = torch.cat([p.masked_fill(bucket.ids < 0, 0.0), torch.zeros(200, 1)], -1)
    mass_dropped = p.masked_fill(bucket.ids >= 0, 0.0).sum(-1)
    events[:, -1] = 1.0 - events.sum(-1)
    distance = (events - torch.cat([new_p, rest[:, None]], -1)).abs().sum(-1) / 2
    assert (mass_dropped > 0).any()
    assert (distance <= mass_dropped + torch.finfo(torch.float64).eps).all()


@pytest.mark.parametrize("tail", TAILS)
def test_nothing_that_is_listed_was_kept(tail):
    """Then nothing is known but the tail, and only a uniform one says something."""
    teacher = SparseTeacher(
        torch.tensor([[1, 4], [1, 2]]), torch.tensor([[9.0, 1.0], [1.0, 2.0]]),
        torch.tensor([9.0, 1.0]).logaddexp(torch.tensor([1.0, 2.0])), tail,
    )  # fmt: skip
    got = kept_columns().target(teacher, SPEC, "renormalize")
    assert got.ids[0].tolist() == [-1, -1]
    kd, grad = loss_and_gradient(got, leading=(2,))
    assert kd.isfinite().all()
    assert grad.isfinite().all()
    if tail != "uniform":
        assert not kd[0]
        assert grad[0].abs().max() <= torch.finfo(torch.float64).eps
    assert grad[1].any()


def test_next_to_nothing_left_is_known_to_rounding():
    """1 - d from the kept side: what is listed as kept is small beside what is dropped."""
    logits = torch.tensor([[0.0, -9.0, -12.0]], dtype=torch.float64)  # 1 is kept, the others not
    log_z = logits.logsumexp(-1)
    ids = torch.tensor([[1, 2, 4]])
    columns = kept_columns()

    def log_z_of(dtype):
        teacher = SparseTeacher(ids, logits.to(dtype), log_z.to(dtype))
        return columns.target(teacher, SPEC, "renormalize").log_z

    plain = log_z.float() + torch.log1p(
        -(logits.float() - log_z.float()).exp()[:, [0, 2]].sum(-1)
    )  # which subtracts two numbers that are next to equal
    assert_within_budget(log_z_of(torch.float32), log_z_of(torch.float64), plain)


def outcomes(p, num_draws, exponent):
    """All that can be drawn from p^exponent: its probability, the ids, their weights."""
    proposal = p**exponent / (p**exponent).sum()
    for drawn in itertools.combinations_with_replacement(range(len(p)), num_draws):
        counts = Counter(drawn)
        orders = math.factorial(num_draws) // math.prod(map(math.factorial, counts.values()))
        weights = [float(p[i] / proposal[i]) * n / num_draws for i, n in counts.items()]
        yield orders * math.prod(float(proposal[i]) for i in drawn), list(counts), weights


def expected_weights(p, keep, num_draws, exponent):
    """Of each kept id, given that one of them was drawn; and the probability of that."""
    columns = kept_columns(keep, len(p))
    mean, mass = torch.zeros(len(keep), dtype=torch.float64), 0.0
    for probability, ids, weights in outcomes(p, num_draws, exponent):
        teacher = SampledTeacher(torch.tensor(ids), torch.tensor(weights, dtype=torch.float64))
        got = columns.target(teacher, SPEC, "renormalize")
        is_kept = got.ids >= 0
        assert torch.equal(is_kept, got.weights > 0)
        mean.index_add_(0, got.ids[is_kept], probability * got.weights[is_kept])
        mass += probability * bool(is_kept.any())
    return mean / mass, mass


P = torch.tensor([0.4, 0.25, 0.2, 0.15], dtype=torch.float64)


@pytest.mark.parametrize("num_draws", [1, 2, 5])
def test_draws_at_tau_1_are_unbiased_given_a_kept_one(num_draws):
    """By enumeration of all that can be drawn."""
    mean, mass = expected_weights(P, [2, 1], num_draws, 1.0)
    torch.testing.assert_close(mean, P[[2, 1]] / P[[2, 1]].sum())
    assert mass == pytest.approx(1 - (1 - 0.45) ** num_draws)


def test_the_bias_at_another_tau_falls_with_the_number_of_draws():
    p, keep = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), [2, 0]
    exact = p[keep] / p[keep].sum()
    biases = [
        float((expected_weights(p, keep, num_draws, 0.5)[0] - exact).abs().max())
        for num_draws in (8, 16, 32)
    ]
    assert biases[0] > 2 * biases[1] > 4 * biases[2] > 0


def test_packed_draws_are_those_unpacked():
    ids = torch.tensor([[[2, 1, 38], [4, 9, -1]]])
    teacher = packed(ids.flatten(0, 1), torch.tensor([[3, 6, 1], [5, 5, 0]]), 10)
    teacher = dataclasses.replace(teacher, entries=teacher.entries.view(1, 2, 3, 3))
    got = kept_columns().target(teacher, SPEC, "renormalize")
    assert got.ids.tolist() == [[[0, -1, 1], [-1, -1, -1]]]
    torch.testing.assert_close(got.weights, torch.tensor([[[0.75, 0.0, 0.25], [0.0, 0.0, 0.0]]]))
    kd, grad = loss_and_gradient(
        dataclasses.replace(got, weights=got.weights.double()), leading=(1, 2)
    )
    assert kd[0, 0] > 0
    assert not kd[0, 1]
    assert not grad[0, 1].any()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_ids_and_labels(dtype):
    """A padded vocabulary has columns, and a wrong label ids, that the map does not know."""
    columns = kept_columns()
    old = torch.tensor([[38, 0, 1], [-1, -100, 5000]], dtype=dtype)
    ids, labels = columns.ids(old), columns.labels(old, -7)
    assert (ids.dtype, labels.dtype) == (dtype, dtype)
    assert ids.tolist() == [[1, 2, -1], [-1, -1, -1]]
    assert labels.tolist() == [[1, 2, -7], [-1, -100, 5000]]


def all_kinds(vocab_size, device="cpu"):
    logits = normal(4, vocab_size).float().to(device)
    ids = torch.tensor([[2, 1, 38]] * 4, device=device)
    entries = torch.zeros(4, 3, 3, dtype=torch.uint8, device=device)
    return {
        "dense": logits,
        "head": TeacherHead(logits[:, :8], logits.T.contiguous()[:, :1].expand(-1, 8).contiguous()),
        "top-k": SparseTeacher(ids, logits[:, :3], logits[:, 0]),
        "sampled": SampledTeacher(ids, logits[:, :3].abs()),
        "packed": PackedSampledTeacher(entries, 50),
    }


@pytest.mark.parametrize("kind", all_kinds(VOCAB_SIZE))
def test_no_value_is_looked_at(kind):
    """The meta device has none, and where values are needed, a GPU would be waited for."""
    teacher = all_kinds(VOCAB_SIZE, "meta")[kind]
    assert device_of(teacher).type == "meta"
    got = kept_columns(device="meta").target(teacher, SPEC, "renormalize")
    assert type(got) is (SampledTeacher if kind == "packed" else type(teacher))
    labels = torch.zeros(3, dtype=torch.long, device="meta")
    assert kept_columns(device="meta").labels(labels, -100).shape == (3,)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("kind", ["top-k", "sampled", "packed"])
def test_sparse_kinds_have_no_dense_temporary(kind):
    columns, teacher = kept_columns(num_old=5000), all_kinds(5000)[kind]
    with Largest() as largest:
        columns.target(teacher, SPEC, "renormalize")
    assert 0 < largest.numel <= 4 * 3 * 3


def refuse(message, teacher, error=ValueError, dropped="renormalize"):
    with pytest.raises(error, match=f"^TokenMap.target: .*{re.escape(message)}"):
        kept_columns().target(teacher, SPEC, dropped)


def test_what_is_no_target_of_the_full_vocabulary_is_refused():
    rule = "must have the full vocabulary, at least 39 columns, got 12. A target that has"
    refuse(rule, normal(2, 12))
    refuse(rule, TeacherHead(normal(2, 8), normal(12, 8)))
    refuse("must be logits or one of mkd_fast's kinds", "logits", TypeError)
    refuse(
        "teacher must be a floating-point tensor", torch.zeros(2, 40, dtype=torch.int), TypeError
    )
    with pytest.raises(TypeError, match=r"^TokenMap.target: teacher must be logits .* got list"):
        device_of([])


@pytest.mark.parametrize("kind", all_kinds(VOCAB_SIZE))
def test_a_bucket_is_for_top_k(kind):
    teacher = all_kinds(VOCAB_SIZE)[kind]
    rule = "dropped='bucket' is for a SparseTeacher with tail='bucket', got "
    if kind == "top-k":
        teacher = dataclasses.replace(teacher, tail="drop")
        refuse(f"{rule}a SparseTeacher with tail='drop'.", teacher, dropped="bucket")
        refuse("dropped must be a known name, got 'buckets'. Did you mean 'bucket'?", teacher,
               dropped="buckets")  # fmt: skip
    else:
        refuse(f"{rule}{type(teacher).__name__}.", teacher, dropped="bucket")
