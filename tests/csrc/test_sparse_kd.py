"""mkd_fast::sparse_kd on the CPU; its accuracy is in test_instruction_sets.py."""

import dataclasses
from typing import Any

import pytest
import torch
from dense_kd_input import normal
from hypothesis import given
from hypothesis import strategies as st
from kd_evaluation import GRADIENT, evaluate
from op_arguments import OPTIONS
from sparse_kd_cases import KINDS, case, packed

from mkd_fast import SampledTeacher, kd_loss
from mkd_fast.losses import ops

pytestmark = pytest.mark.skipif(
    ops.missing_kernels("cpu") is not None, reason=str(ops.missing_kernels("cpu"))
)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_columns", [60, 2500])
def test_a_broken_logit_of_the_student_breaks_its_token_alone(num_columns, kind, is_kept, value):
    arguments = case(4, num_columns, 7, kind, has_labels=False)
    teacher = arguments["teacher"]
    ids = teacher.unpacked().ids if kind == "packed" else teacher.ids
    outside = next(v for v in range(num_columns) if v not in ids[2])
    arguments["student_logits"][2, ids[2, 3] if is_kept else outside] = value
    out = evaluate(arguments, "fused")
    is_broken = torch.tensor([False, False, True, False])
    assert torch.equal(out["loss"].isnan(), is_broken)
    assert torch.equal(out[GRADIENT].isnan().any(-1), is_broken)


@pytest.mark.parametrize("name", ["logits", "log_z", "weights"])
def test_a_broken_number_of_the_teacher_breaks_its_token_alone(name):
    arguments = case(4, 60, 7, "sampled" if name == "weights" else "bucket", has_labels=False)
    getattr(arguments["teacher"], name)[2] = torch.nan
    out = evaluate(arguments, "fused")
    is_broken = torch.tensor([False, False, True, False])
    assert torch.equal(out["loss"].isnan(), is_broken)
    assert torch.equal(out[GRADIENT].isnan().any(-1), is_broken)


def test_a_term_without_weight_cannot_break_the_loss():
    arguments = case(4, 60, 5, kd_weight=0.0)
    clean = evaluate(arguments, "fused")
    arguments["teacher"].logits[1] = torch.nan
    broken = evaluate(arguments, "fused")
    assert broken["kd"].isnan().tolist() == [False, True, False, False]
    for what in ("loss", GRADIENT):
        assert torch.equal(broken[what], clean[what])


def test_no_weight_at_all():
    arguments = case(4, 60, 5, kd_weight=0.0, ce_weight=0.0, labels=torch.arange(4))
    arguments["student_logits"][1, 7] = torch.nan
    out = evaluate(arguments, "fused")
    assert not out["loss"].any()
    assert not out[GRADIENT].any()
    assert out["kd"].all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(kind):
    before = torch.get_num_threads()
    outputs = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        outputs.append(evaluate(case(40, 2777, 9, kind, reduction="mean"), "fused"))
    torch.set_num_threads(before)
    for what, value in outputs[0].items():
        assert torch.equal(value, outputs[1][what])


def test_order_of_the_ids_changes_only_rounding():
    arguments = case(6, 2777, 16)
    teacher = arguments["teacher"]
    turned = dataclasses.replace(teacher, ids=teacher.ids.flip(1), logits=teacher.logits.flip(1))
    first, second = (evaluate(arguments | {"teacher": t}, "fused") for t in (teacher, turned))
    for what, value in first.items():
        torch.testing.assert_close(second[what], value)


@given(data=st.data())
def test_packed_entries_are_what_they_unpack_to(data):
    id_bits = data.draw(st.integers(6, 22), "id_bits")
    num_columns = data.draw(st.integers(1, min(2**id_bits, 1500)), "columns")
    ids = st.lists(st.integers(-1, num_columns - 1), max_size=8, unique=True)
    row = torch.tensor([data.draw(ids, "ids")], dtype=torch.int32).view(1, -1)
    most = 2 ** (24 - id_bits) - 1
    counts = [data.draw(st.integers(0, most), "count") for _ in range(row.numel())]
    counted = torch.tensor([counts]).view(1, -1)
    teacher = packed(row, counted, num_draws=64, id_bits=id_bits)  # count / 64 is exact
    student = normal(1, num_columns, seed=0)
    outputs = [
        evaluate({"student_logits": student, "teacher": kind}, "fused")
        for kind in (teacher, teacher.unpacked())
    ]
    for what, value in outputs[0].items():
        assert torch.equal(value, outputs[1][what]), what


def test_expected_gradient_of_samples_is_the_dense_one():
    """Over many tokens with the same logits: their mean gradient nears that of forward KL."""
    num_tokens, num_columns, num_draws = 20_000, 12, 8
    student, teacher = normal(1, num_columns, seed=0), normal(1, num_columns, seed=1, size=1.0)
    generator = torch.Generator().manual_seed(2)
    draws = torch.multinomial(
        teacher.softmax(-1).expand(num_tokens, -1), num_draws, replacement=True, generator=generator
    )
    counts = torch.zeros(num_tokens, num_columns).scatter_add(1, draws, torch.ones(draws.shape))
    ids = torch.arange(num_columns).where(counts > 0, torch.tensor(-1))
    rows = student.repeat(num_tokens, 1).requires_grad_()
    kd_loss(
        rows, SampledTeacher(ids, counts / num_draws), impl="fused", reduction="sum"
    ).loss.backward()
    assert rows.grad is not None
    dense = student.clone().requires_grad_()
    kd_loss(dense, teacher, impl="fused", reduction="sum").loss.backward()
    assert dense.grad is not None
    standard_error = rows.grad.std(0) / num_tokens**0.5
    assert ((rows.grad.mean(0) - dense.grad[0]).abs() <= 5 * standard_error).all()


def sparse_arguments(kind: str, **changes: Any):
    """Of the op itself: 4 tokens, 60 columns, 5 ids, one matched layer of 3 positions."""
    arguments = case(4, 60, 5, kind)
    teacher = arguments["teacher"]
    tensors = {
        "sampled": lambda: (teacher.ids, teacher.weights, None),
        "packed": lambda: (teacher.entries, None, None),
    }.get(kind, lambda: (teacher.ids, teacher.logits, teacher.log_z))()
    hidden = ([normal(4, 3, 8, seed=3)], [normal(4, 3, 8, seed=4)], [], None)
    labels = torch.tensor([0, -100, 2, 3])
    positional = (arguments["student_logits"], *tensors, labels, None, None, *hidden)
    return positional, {"tail": kind, "id_bits": 18, "num_draws": 50} | OPTIONS | changes


@pytest.mark.parametrize("tail", KINDS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"reduction": "none"}, {"needs_grad_student": False, "needs_grad_hidden": False}],
    ids=["mean", "none", "no gradients"],
)
def test_opcheck(tail, changes):
    positional, keywords = sparse_arguments(tail, **changes)
    torch.library.opcheck(torch.ops.mkd_fast.sparse_kd, positional, keywords)


@pytest.mark.parametrize("tail", KINDS)
def test_ids_out_of_range(tail):
    positional, keywords = sparse_arguments(tail)
    keywords["vocab_size"] = 10
    with pytest.raises(
        RuntimeError,
        match=r"kd_loss: the teacher's ids must lie in \[0, 10\), or be -1 where a slot is empty, "
        r"got \d+ at token 0\. Map them to the student's vocabulary, and set those it lacks to -1",
    ):
        torch.ops.mkd_fast.sparse_kd(*positional, **keywords)


def test_ids_of_tokens_that_do_not_count_may_be_anything():
    arguments = case(4, 60, 5, mask=torch.tensor([True, True, False, True]))
    arguments["teacher"].ids[2] = torch.iinfo(torch.int32).max
    out = evaluate(arguments, "fused")
    assert out["loss"].isfinite().all()
    assert not out[GRADIENT][2].any()


@pytest.mark.parametrize(
    ("tail", "position", "value", "message"),
    [
        ("bucket", 1, torch.zeros(4, 5), "ids must be int32 or int64"),
        ("bucket", 1, torch.zeros(3, 5, dtype=torch.int32), "ids must be int32 or int64"),
        ("bucket", 1, torch.zeros(4, 5, 3, dtype=torch.uint8), "ids must be int32 or int64"),
        ("packed", 1, torch.zeros(4, 5, 2, dtype=torch.uint8), "packed entries uint8"),
        ("packed", 1, torch.zeros(4, 5, dtype=torch.int32), "packed entries uint8"),
        ("bucket", 2, torch.zeros(4, 4), r"values must be \[N, K\], as ids"),
        ("sampled", 2, None, r"values must be \[N, K\], as ids"),
        ("packed", 2, torch.zeros(4, 5), "packed entries have none"),
        ("bucket", 2, torch.zeros(4, 5, dtype=torch.float64), "values must be float32, bfloat16"),
        ("bucket", 3, torch.zeros(3), r"log_z must be float32 \[N\]"),
        ("bucket", 3, torch.zeros(4, dtype=torch.float64), r"log_z must be float32 \[N\]"),
        ("bucket", 3, None, r"log_z must be float32 \[N\]"),
        ("sampled", 3, torch.zeros(4), "a sample has none"),
        ("bucket", 4, torch.zeros(3, dtype=torch.int64), "labels must be int64"),
        ("bucket", 4, torch.full((4,), 60), r"labels must lie in \[0, 60\)"),
    ],
)
def test_the_op_reads_no_foreign_memory(tail, position, value, message):
    positional, keywords = sparse_arguments(tail)
    changed = (*positional[:position], value, *positional[position + 1 :])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.sparse_kd(*changed, **keywords)


@pytest.mark.parametrize(
    ("tail", "changes", "message"),
    [
        ("bucket", {"tail": "buckets"}, "tail must be bucket, .* or packed, got buckets"),
        ("packed", {"id_bits": 24}, r"id_bits must lie in \[1, 23\], got 24"),
        ("packed", {"num_draws": 0}, "num_draws must be at least 1, got 0"),
        ("bucket", {"divergence": "logit_mse"}, "must be one of distributions, got logit_mse"),
        ("sampled", {"divergence": "jsd"}, "must be forward_kl for a sample, got jsd"),
    ],
)
def test_the_op_refuses(tail, changes, message):
    positional, keywords = sparse_arguments(tail, **changes)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mkd_fast.sparse_kd(*positional, **keywords)
