"""The Triton kernel of sparse_kd against float64: compiled on a GPU, interpreted elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_kd_input import BF16, F16, F32, normal
from hidden_cases import hidden_states
from kd_evaluation import (
    GRADIENT,
    assert_all_within_budget,
    converted,
    evaluate,
    exact_and_plain,
)
from sparse_kd_cases import ALPHA_BETAS, DIVERGENCES, KINDS, case

from mkd_fast import SampledTeacher, SparseTeacher, kd_loss
from mkd_fast.kernels.sparse_kd import traffic

INF = float("inf")

# Widths and what they are to the kernel: 60 columns fit one block; rows of 1031 begin off the
# 16-byte units, 4 of float32 and 8 of 16 bits each elsewhere; 2064 are several blocks on them.
SHORT, SHIFTED, WHOLE = 60, 1031, 2064


def student_has_outside(mass: float, **fields: Any) -> dict[str, Any]:
    """Student's logits that leave this much for the ids outside the kept ones."""
    arguments = case(4, 300, 7, has_labels=False, **fields)
    teacher = arguments["teacher"]
    kept = torch.zeros(4, 301, dtype=torch.bool)
    kept = kept.scatter(1, teacher.ids.long().where(teacher.ids >= 0, 300), True)[:, :-1]
    logits = arguments["student_logits"].double()
    log_kept = logits.masked_fill(~kept, -INF).logsumexp(-1, keepdim=True)
    log_rest = logits.masked_fill(kept, -INF).logsumexp(-1, keepdim=True)
    log_odds = torch.logit(torch.tensor(mass, dtype=torch.float64))
    logits = torch.where(kept, logits - log_kept, logits - log_rest + log_odds)
    return arguments | {"student_logits": logits.float()}


def teacher_of_one_id(temperature: float, **fields: Any) -> dict[str, Any]:
    """It is sure of one id of each row, and all others, kept or not, are alike."""
    row = torch.arange(6)
    logits = torch.zeros(6, SHIFTED)
    logits[row, row * 5] = 7.0
    kept = logits.topk(8, -1)
    log_z = (logits.double() / temperature).logsumexp(-1).float()
    teacher = SparseTeacher(kept.indices.int(), kept.values, log_z, "uniform")
    student = normal(6, SHIFTED, seed=0)
    fields |= {"student_logits": student, "teacher": teacher, "reduction": "none"}
    return fields | {"temperature": temperature}


def with_impossible_columns(tail: str) -> dict[str, Any]:
    """Neither side takes some columns for possible, and two of them are kept."""
    arguments = case(4, 200, 5, tail)
    teacher = arguments["teacher"]
    teacher.logits[:, 3:] = -INF
    arguments["student_logits"].scatter_(1, teacher.ids[:, 3:].long(), -INF)
    arguments["student_logits"][:, 50:90] = -INF
    arguments["student_logits"].scatter_(1, teacher.ids[:, :3].long().clamp(min=0), 1.0)
    arguments["labels"].fill_(100)
    return arguments


def strided(tail: str) -> dict[str, Any]:
    """Student's rows, ids and values are parts of longer rows."""
    arguments = case(3, SHORT + 4, 9, tail, vocab_size=SHORT)
    arguments["student_logits"] = arguments["student_logits"][:, :SHORT]
    teacher = arguments["teacher"]
    parts = {"packed": ["entries"], "sampled": ["ids", "weights"]}.get(tail, ["ids", "logits"])
    cut = {name: getattr(teacher, name)[:, 2:] for name in parts}
    return arguments | {"teacher": replace(teacher, **cut)}


# though the student has mass where the teacher has none
FINITE_WITHOUT_TAIL = ("forward_kl", "jsd", "alpha_beta")
MASK = torch.tensor([True, False, True, True])
HIDDEN = hidden_states((3, 2, 40), (3, 2, 24))
# A case is named after the reason it exists.
CASES: dict[str, dict[str, Any]] = {
    **{f"bucket, {name}": case(4, SHORT, 5, **fields) for name, fields in DIVERGENCES.items()},
    **{
        f"bucket, {name}, off 16 bytes": case(4, SHIFTED, 5, temperature=2.0, **fields)
        for name, fields in DIVERGENCES.items()
    },
    **{
        f"{tail}, {name}, several blocks": case(3, WHOLE, 12, tail, temperature=0.5, **fields)
        for name, fields in DIVERGENCES.items()
        for tail in ("renormalize", "drop")
        if name in FINITE_WITHOUT_TAIL
    },
    **{f"uniform, {name}": case(4, SHORT, 5, "uniform", **f) for name, f in DIVERGENCES.items()},
    **{
        f"uniform, {name}, off 16 bytes": case(4, SHIFTED, 5, "uniform", temperature=2.0, **fields)
        for name, fields in DIVERGENCES.items()
    },
    **{
        f"{tail}, alpha_beta {a}, {b}": case(
            3, SHIFTED, 5, tail, temperature=2.0, divergence="alpha_beta", alpha_beta=(a, b)
        )
        for a, b in ALPHA_BETAS
        for tail in ("uniform", "renormalize", "drop")
        if tail == "uniform" or min(a, b) > 0.0
    },
    "uniform, jsd, cold: nearly all of q in one column": teacher_of_one_id(
        temperature=0.1, **DIVERGENCES["jsd"]
    ),
    "uniform, what rounds alike in every column": case(
        6, SHIFTED, 16, "uniform", divergence="alpha_beta", alpha_beta=(0.0, 0.0)
    ),
    **{f"{kind}, several blocks": case(3, WHOLE, 12, kind, temperature=3.0) for kind in KINDS},
    **{
        f"{name}, {mass:g} of the student's mass outside": student_has_outside(mass, **fields)
        for name, fields in DIVERGENCES.items()
        for mass in (0.5, 1e-2, 1e-6, 1e-12)
    },
    "mass outside below float's range": student_has_outside(1e-60),
    # numbers of entries
    **{f"{kind}, one entry": case(3, SHORT, 1, kind) for kind in KINDS},
    **{
        f"{kind}, no entries": case(3, SHORT, 0, kind)
        for kind in ("bucket", "drop", "uniform", "packed")
    },
    **{f"{kind}, every id": case(3, 40, 40, kind) for kind in KINDS},
    **{f"every id, {name}": case(3, 40, 40, **fields) for name, fields in DIVERGENCES.items()},
    **{
        f"every id without a tail, {name}": case(3, 40, 40, "drop", **fields)
        for name, fields in DIVERGENCES.items()
    },
    **{
        f"every id with a uniform tail, {name}": case(3, 40, 40, "uniform", **fields)
        for name, fields in DIVERGENCES.items()
    },
    "uniform, all ids but one": case(3, 40, 39, "uniform"),
    "uniform, more entries than threads": case(2, SHIFTED, 300, "uniform"),
    "more entries than threads": case(2, SHIFTED, 300),
    "one column": case(3, 1, 1),
    # dtypes, and with them vector widths
    "int64 ids": case(3, SHORT, 5, id_dtype=torch.int64),
    "bf16 of both": case(3, WHOLE, 5, dtypes=(BF16, BF16)),
    "bf16 of both, off 16 bytes": case(8, SHIFTED, 5, dtypes=(BF16, BF16)),
    "f16 student, bf16 values": case(3, WHOLE, 5, dtypes=(F16, BF16)),
    "f32 student, f16 weights": case(3, SHORT, 5, "sampled", dtypes=(F32, F16)),
    "uniform, XLM-R": case(1, 250_002, 32, "uniform", dtypes=(BF16, BF16), temperature=2.0),
    "XLM-R": case(1, 250_002, 64, dtypes=(BF16, BF16), temperature=2.0),
    # temperatures, scales and weights
    "two temperatures": case(3, SHORT, 5, temperature=3.0, teacher_temperature=0.7),
    "cold": case(3, SHORT, 5, temperature=0.1),
    "hot": case(3, SHORT, 5, temperature=20.0),
    "logit scales": case(3, SHORT, 5, temperature=2.0, logit_scale=-0.3, teacher_logit_scale=1.7),
    "softcap": case(3, SHORT, 5, temperature=2.0, softcap=4.0, logit_scale=0.7),
    "uniform, softcap": case(3, SHORT, 5, "uniform", temperature=2.0, softcap=4.0),
    "softcap of either side": case(3, SHIFTED, 5, softcap=4.0, teacher_softcap=2.5),
    "softcap of the student alone": case(3, SHORT, 5, softcap=4.0, teacher_softcap=None),
    "no T^2": case(3, SHORT, 5, temperature=2.0, temperature_squared=False),
    "logits of 1e4": case(3, SHIFTED, 5, size=1e4),
    "no labels": case(3, SHORT, 5, has_labels=False),
    "labels only to ignore": case(3, SHORT, 5, ce_weight=0.0),
    "labels are kept ids": case(9, 20, 18, temperature=2.0),
    "cross-entropy alone": case(3, SHORT, 5, kd_weight=0.0, temperature=2.0),
    **{f"{tail}, impossible columns": with_impossible_columns(tail) for tail in KINDS[:3]},
    # memory
    "padded columns": case(3, 72, 5, vocab_size=61),
    "uniform, padded columns": case(9, 72, 5, "uniform", vocab_size=61),
    "padded columns, off 16 bytes": case(4, SHIFTED, 5, vocab_size=1024),
    "uniform, padded columns, off 16 bytes": case(4, SHIFTED, 5, "uniform", vocab_size=1024),
    **{f"{kind}, rows of wider matrices": strided(kind) for kind in KINDS},
    # reductions and who counts
    "mean": case(7, SHORT, 5, reduction="mean"),
    "mean of all": case(3, SHORT, 5, has_labels=False, reduction="mean"),
    "mean over given tokens": case(7, SHORT, 5, reduction="mean", num_tokens=17.0),
    "sum with a mask": case(4, SHORT, 5, reduction="sum", mask=MASK),
    "mask": case(4, SHIFTED, 5, mask=MASK, has_labels=False),
    "nothing counts": case(4, SHORT, 5, reduction="mean", mask=torch.zeros_like(MASK)),
    "no rows": case(0, SHORT, 5, reduction="mean"),
    # hidden states
    "hidden states": case(3, SHORT, 4) | HIDDEN,
    "hidden states, packed, a mean": case(3, SHORT, 4, "packed", reduction="mean") | HIDDEN,
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_within_budget_of_float64(name: str, device: str) -> None:
    actual = evaluate(CASES[name], "fused", device)
    assert_all_within_budget(actual, *exact_and_plain(CASES[name], device))


@pytest.mark.parametrize("divergence", ["reverse_kl", "jeffreys"])
@pytest.mark.parametrize("tail", ["renormalize", "drop"])
def test_a_teacher_without_a_tail_is_infinitely_far_by_reverse_kl(
    tail: str, divergence: str, device: str
) -> None:
    arguments = case(3, SHORT, 5, tail, has_labels=False, divergence=divergence)
    arguments = {name: converted(value, device) for name, value in arguments.items()}
    assert (kd_loss(**arguments, impl="fused").loss == INF).all()


@pytest.mark.parametrize("kind", ["bucket", "sampled"])
def test_an_id_that_names_no_column_makes_its_token_nan_and_writes_nowhere_else(
    kind: str, device: str
) -> None:
    arguments = case(3, SHORT, 5, kind, has_labels=False, id_dtype=torch.int64)
    expected = evaluate(arguments, "fused", device)
    arguments["teacher"].ids[1, 2] = 2**40
    actual = evaluate(arguments, "fused", device)
    assert actual["loss"].isnan().tolist() == [False, True, False]
    for row in (0, 2):
        for what in ("loss", GRADIENT):
            assert torch.equal(actual[what][row], expected[what][row])


@pytest.mark.parametrize("part", ["student_logits", "logits", "log_z"])
def test_nan_reaches_the_loss_of_its_token_alone(part: str, device: str) -> None:
    arguments = case(3, SHIFTED, 5, has_labels=False)
    holder = arguments["teacher"]
    tensor = arguments[part] if part == "student_logits" else getattr(holder, part)
    tensor[1] = float("nan")
    result = evaluate(arguments, "fused", device)
    assert result["loss"].isnan().tolist() == [False, True, False]
    assert result[GRADIENT][[0, 2]].isfinite().all()


def test_tokens_that_do_not_count_may_hold_anything(device: str) -> None:
    arguments = case(3, SHIFTED, 5)  # the last label is ignored
    arguments["student_logits"][2] = float("nan")
    arguments["teacher"].logits[2] = float("nan")
    arguments["teacher"].ids[2] = 2**31 - 1
    result = evaluate(arguments, "fused", device)
    assert result["loss"][2] == 0.0
    assert (result[GRADIENT][2] == 0.0).all()
    assert result["loss"][:2].isfinite().all()


@pytest.mark.parametrize("kind", ["bucket", "sampled"])
def test_an_empty_slot_may_hold_anything(kind: str, device: str) -> None:
    arguments = case(2, SHORT, 5, kind)
    teacher = arguments["teacher"]
    assert isinstance(teacher, SparseTeacher | SampledTeacher)
    expected = evaluate(arguments, "fused", device)
    values = (teacher.logits if isinstance(teacher, SparseTeacher) else teacher.weights).clone()
    values[teacher.ids < 0] = float("nan")
    name = "logits" if kind == "bucket" else "weights"
    actual = evaluate(arguments | {"teacher": replace(teacher, **{name: values})}, "fused", device)
    assert (teacher.ids < 0).any()
    assert torch.equal(actual["loss"], expected["loss"])


def test_value_without_gradient(device: str) -> None:
    arguments = {n: converted(v, device) for n, v in case(3, SHIFTED, 5, temperature=2.0).items()}
    with torch.no_grad():
        value = kd_loss(**arguments, impl="fused").loss
    assert torch.equal(value, evaluate(arguments, "fused", device)["loss"])


def test_the_same_input_gives_the_same_bits(device: str) -> None:
    arguments = case(3, SHORT, 4, reduction="mean") | HIDDEN
    first, second = (evaluate(arguments, "fused", device) for _ in range(2))
    for what, value in first.items():
        assert torch.equal(value, second[what]), what


def test_traffic_is_four_bytes_a_logit_and_two_that_the_cache_may_hold() -> None:
    cost = traffic(8, 128_256, 64, student_bytes=2, entry_bytes=6)
    per_logit = cost.num_bytes / (8 * 128_256)
    assert 6 <= per_logit < 6.02
    uniform = traffic(8, 128_256, 64, student_bytes=2, entry_bytes=6, tail="uniform")
    assert uniform.num_bytes == pytest.approx(cost.num_bytes * 8 / 6, rel=1e-2)
    value_alone = traffic(8, 128_256, 64, student_bytes=2, entry_bytes=6, has_gradient=False)
    assert 2 <= value_alone.num_bytes / (8 * 128_256) < 2.01
