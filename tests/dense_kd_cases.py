"""Cases of dense_kd on the CPU, each named after the reason it exists."""

from typing import Any

import hidden_cases
import torch
from dense_kd_input import BF16, F16, F32, case


def padded_rows() -> dict[str, Any]:
    fields = case(6, 90)
    return (
        fields
        | {name: fields[name][:, :77] for name in ("student_logits", "teacher")}
        | {"labels": fields["labels"] % 77}
    )


def transposed() -> dict[str, Any]:
    fields = case(33, 33)
    return fields | {name: fields[name].T for name in ("student_logits", "teacher")}


def expanded_teacher() -> dict[str, Any]:
    fields = case(50, 40)  # many rows: the largest error of a few may be small by chance
    return fields | {"teacher": fields["teacher"][:1].expand(50, 40)}


def without_some_columns(divergence: str, num_columns: int = 1500) -> dict[str, Any]:
    fields = case(6, num_columns, divergence=divergence, has_labels=False)
    fields["teacher"][:, 3::2] = -torch.inf
    fields["teacher"][:, 1024:] = -torch.inf  # nothing at all in a whole block
    if divergence in ("reverse_kl", "jeffreys"):  # elsewhere they may have more than the teacher
        fields["student_logits"].masked_fill_(fields["teacher"] == -torch.inf, -torch.inf)
    return fields


def rising_maximum(divergence: str) -> dict[str, Any]:
    fields = case(4, 5000, divergence=divergence, ce_weight=0.5, temperature=3.0)
    fields["student_logits"] += torch.linspace(0, 60, 5000)
    fields["teacher"] += torch.linspace(80, 0, 5000)
    return fields


def one_hot_teacher(**fields: Any) -> dict[str, Any]:
    arguments = case(6, 300, **fields)
    arguments["teacher"] = torch.zeros(6, 300)
    arguments["teacher"][torch.arange(6), torch.arange(6) * 50] = 1000.0
    return arguments


def equal_sides(divergence: str) -> dict[str, Any]:
    fields = case(6, 700, divergence=divergence, has_labels=False)
    return fields | {"teacher": fields["student_logits"].clone()}


DIVERGENCES = {
    "forward_kl": {"divergence": "forward_kl"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jeffreys": {"divergence": "jeffreys"},
    "jsd": {"divergence": "jsd", "beta": 0.3},
}
SOFTCAPS = {
    "both sides": {"softcap": 30.0},
    "student's": {"softcap": 30.0, "teacher_softcap": None},
    "teacher's": {"teacher_softcap": 30.0},
}
MASK = torch.tensor([True, False, True, True, False, True])

# A case is named after the reason it exists.
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name} at temperature {t}": case(6, 60, temperature=t, **fields)
        for name, fields in DIVERGENCES.items()
        for t in (0.1, 1.0, 2.0, 7.3)
    },
    **{f"{name} over several blocks": case(5, 2777, **f) for name, f in DIVERGENCES.items()},
    **{f"{name} of equal sides": equal_sides(name) for name in DIVERGENCES},
    **{f"{name}, maximum rises": rising_maximum(name) for name in DIVERGENCES},
    **{f"{name}, -inf columns": without_some_columns(name) for name in DIVERGENCES},
    **{
        f"{student} student, {teacher} teacher": case(6, 1055, dtypes=(student, teacher))
        for student in (F32, BF16, F16)
        for teacher in (F32, BF16, F16)
    },
    "jsd at beta 0": case(6, 60, divergence="jsd", beta=0.0),
    "jsd at beta 1": case(6, 60, divergence="jsd", beta=1.0),
    "jsd close to beta 0": case(6, 60, divergence="jsd", beta=1e-3),
    "one column": case(6, 1),
    "fewer columns than a register": case(6, 3),
    "odd number of columns": case(6, 1031),
    "exactly one block": case(6, 1024),
    "one row": case(1, 500),
    "more short rows than go together": case(70, 60),
    "widest rows that go together": case(40, 64),
    "narrowest rows that go alone": case(40, 65),
    **{
        f"short rows, {student} student, {teacher} teacher": case(20, 37, dtypes=(student, teacher))
        for student in (F32, BF16, F16)
        for teacher in (F32, BF16, F16)
    },
    **{
        f"{name} of short rows, -inf columns": without_some_columns(name, 50)
        for name in DIVERGENCES
    },
    "short rows, huge logits": case(20, 50, size=1e4, temperature=0.1),
    "short rows, logit scales": case(
        20, 50, temperature=2.0, logit_scale=0.3, teacher_logit_scale=-1.7
    ),
    "short rows, padded vocabulary": case(20, 80, vocab_size=50, dtypes=(BF16, F32)),
    "short rows, no labels": case(20, 50, has_labels=False),
    "short rows, labels only mark tokens": case(20, 50, ce_weight=0.0, temperature=3.0),
    "short rows, no kd weight": case(20, 50, kd_weight=0.0),
    "short rows, mask": case(6, 50, mask=MASK),
    "250,002 columns": case(2, 250_002, dtypes=(BF16, BF16)),
    "250,002 columns in float32": case(2, 250_002, ce_weight=0.5),
    "gradient past the caches, unaligned": case(9, 131_075, dtypes=(F32, BF16)),
    "strided rows": padded_rows(),
    "strided columns": transposed(),
    "teacher rows that are one row": expanded_teacher(),
    "huge logits": case(6, 999, size=1e4),
    "huge logits, low temperature": case(6, 999, size=1e4, temperature=0.1),
    "one-hot teacher": one_hot_teacher(),
    "one-hot teacher, low temperature": one_hot_teacher(temperature=0.1),
    "one-hot teacher, jsd": one_hot_teacher(divergence="jsd"),
    "teacher's own temperature": case(6, 77, temperature=2.0, teacher_temperature=0.7),
    "no T squared": case(6, 77, temperature=3.0, temperature_squared=False),
    "logit scales": case(6, 77, temperature=2.0, logit_scale=0.3, teacher_logit_scale=-1.7),
    **{
        f"softcap, {name}, {num_columns} columns, logits of {size}": case(
            6, num_columns, size=size, temperature=2.0, logit_scale=1.3, **fields
        )
        for name, fields in SOFTCAPS.items()
        for num_columns in (60, 1500)
        for size in (0.1, 10.0, 1e4)
    },
    "softcap, -inf columns": without_some_columns("reverse_kl") | {"softcap": 8.0},
    "softcap, T of its own exponentials": case(6, 77, softcap=5.0, temperature=3.0),
    "padded vocabulary": case(6, 80, vocab_size=70),
    "no labels": case(6, 77, has_labels=False),
    "labels only mark tokens": case(6, 77, ce_weight=0.0, temperature=3.0),
    "no kd weight": case(6, 77, kd_weight=0.0),
    "mean": case(40, 77, reduction="mean"),
    "sum": case(40, 77, reduction="sum"),
    "mean over other tokens": case(6, 77, reduction="mean", num_tokens=100.0),
    "mask": case(6, 77, mask=MASK),
    "mean over a mask": case(6, 77, mask=MASK, has_labels=False, reduction="mean"),
    "nothing counts": case(6, 77, mask=torch.zeros(6, dtype=torch.bool), reduction="mean"),
    "no rows": case(0, 77, reduction="mean"),
    **hidden_cases.CASES,
    **hidden_cases.LARGE_CASES,
}
