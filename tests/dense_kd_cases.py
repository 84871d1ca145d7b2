"""Cases of dense_kd on the CPU, each named after the reason it exists."""

from typing import Any

import hidden_cases
import torch
from dense_kd_input import BF16, COMMON_DIVERGENCES, F16, F32, case, normal

LONG_BLOCK = 1024  # columns of long rows that refer to the same logits: kLongBlock


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


def without_some_columns(num_columns: int = 1500, **options: Any) -> dict[str, Any]:
    fields = case(6, num_columns, has_labels=False, **options)
    fields["teacher"][:, 3::2] = -torch.inf
    fields["teacher"][:, 1024:] = -torch.inf  # nothing at all in a whole block
    if options["divergence"] in ("reverse_kl", "jeffreys", "alpha_beta"):
        # elsewhere the student may have more columns than the teacher
        fields["student_logits"].masked_fill_(fields["teacher"] == -torch.inf, -torch.inf)
    return fields


def far_below_nothing(num_columns: int = 3000, **options: Any) -> dict[str, Any]:
    """Blocks without any probability, before and after logits far below 0."""
    fields = case(4, num_columns, **options)
    for side in ("student_logits", "teacher"):
        fields[side] -= 400.0
        fields[side][:, :1100] = fields[side][:, -700:] = -torch.inf
    return fields | {"labels": torch.tensor([1100, 1101, 1555, 2299])}


def masked_with_the_least_float(**options: Any) -> dict[str, Any]:
    """What some models put in place of -inf; the row begins with it, or has nothing else."""
    fields = case(4, 3000, **options)
    least = torch.finfo(fields["student_logits"].dtype).min
    for side in ("student_logits", "teacher"):
        fields[side][:3, :1500] = fields[side][3] = least
    return fields | {"labels": torch.tensor([1500, 1600, -100, 7])}


def rising_maximum(temperature: float = 3.0, **options: Any) -> dict[str, Any]:
    fields = case(4, 5000, ce_weight=0.5, temperature=temperature, **options)
    fields["student_logits"] += torch.linspace(0, 60, 5000)
    fields["teacher"] += torch.linspace(80, 0, 5000)
    return fields


def one_exponent_apart(side: str, **options: Any) -> dict[str, Any]:
    """A logit of a long row's second block as far from the largest one as exponents may be.

    They are taken without looking for the largest one in between; in powers of two. Rows of each,
    for the largest error of a few may be small by chance.
    """
    apart = torch.tensor([2.9, 3.1, 7.9, 8.1, -119.0, -120.0, -121.0, -126.5, -149.0, -151.0])
    apart = apart.repeat(4)
    fields = case(len(apart), LONG_BLOCK + 600, **options)
    nats = apart / 1.442695 * options.get("temperature", 1.0)
    fields[side][:, LONG_BLOCK + 200] = fields[side][:, :LONG_BLOCK].amax(1) + nats
    return fields


def far_by_a_power_of_two() -> dict[str, Any]:
    """Logits are in powers of two, and some 2^18 and 2^20 below the largest.

    What the exponents of long_rows.h are rounded with is then exactly 0.
    """
    fields = case(3, LONG_BLOCK + 600, temperature=1.4426950408889634, has_labels=False)
    for side in ("student_logits", "teacher"):
        fields[side].clamp_(max=4.0)[:, 0] = 4.0
        far = 4.0 - 120.0 - torch.tensor([2.0**18, 2.0**20])
        fields[side][:2, LONG_BLOCK + 200 : LONG_BLOCK + 202] = far
    return fields


def one_hot_teacher(
    logit: float = 1000.0,
    num_columns: int = 300,
    step: float = 0.0,
    num_rows: int = 60,
    **fields: Any,
) -> dict[str, Any]:
    """Many rows: rounding of a divergence of thousands is all that is seen in some gradients.

    All other columns of a teacher are alike, and one rounding is made in all of them; with a step
    from row to row it is not the same in all rows.
    """
    arguments = case(num_rows, num_columns, **fields)
    row = torch.arange(num_rows)
    arguments["teacher"] = torch.zeros(num_rows, num_columns)
    arguments["teacher"][row, row * 5] = logit + step * row
    return arguments


def ratios_of_thousands(num_rows: int) -> dict[str, dict[str, Any]]:
    """log(q / p) is 2e4 in all columns but one, to within a rounding of 1e-3.

    The gradient of reverse KL is how far each is from their mean.
    """
    return {
        f"{name}, one-hot teacher of logit 1e4, temperature 0.5": one_hot_teacher(
            1e4, 1031, step=20.0, num_rows=num_rows, temperature=0.5, divergence=name
        )
        for name in ("reverse_kl", "jeffreys")
    }


def alpha_beta(alpha: float, beta: float) -> dict[str, Any]:
    options = {"divergence": "alpha_beta", "alpha_beta": (alpha, beta)}
    return options | ({"size": 1.0} if min(alpha, beta, alpha + beta - 1e-9) < 0.0 else {})


def teacher_without_some(alpha: float, beta: float) -> dict[str, Any]:
    fields = case(6, 60, **alpha_beta(alpha, beta))
    fields["teacher"][:, 3::2] = -torch.inf
    return fields


def tied_columns() -> dict[str, Any]:
    """All columns but two are exactly as likely on either side."""
    fields = case(6, 50, divergence="tvd")
    fields |= {"student_logits": torch.zeros(6, 50), "teacher": torch.zeros(6, 50)}
    fields["student_logits"][:, 3] = fields["teacher"][:, 4] = -torch.inf
    return fields


def sides_apart(**options: Any) -> dict[str, Any]:
    """The teacher's logits far above the student's, which is nothing to either softmax."""
    fields = case(6, 2100, **options)
    return fields | {"teacher": fields["teacher"] + 40.0}


def equal_sides(**options: Any) -> dict[str, Any]:
    fields = case(6, 700, has_labels=False, **options)
    return fields | {"teacher": fields["student_logits"].clone()}


# No limit; each limit; then powers that grow as probabilities fall, of smaller logits: where one
# column is nearly all of the sum, errors are a matter of luck.
ALPHA_BETAS = (
    (0.2, 0.7), (1.0, 0.0), (0.4, 0.0), (0.0, 1.0), (0.0, 0.4), (0.5, -0.5), (0.0, 0.0),
    (0.6, -0.3), (-0.3, 0.6), (-0.3, -0.2),
)  # fmt: skip
DIVERGENCES = {
    **COMMON_DIVERGENCES,
    **{f"alpha_beta{pair}": alpha_beta(*pair) for pair in ALPHA_BETAS},
    "logit_mse": {"divergence": "logit_mse"},
}
# Those whose terms stay within float32 where probabilities do not.
FLAT = {name: fields for name, fields in DIVERGENCES.items() if "size" not in fields}
# Powers of the least probabilities leave float32 past these.
ONE_HOT_LOGITS = {
    "alpha_beta(-0.3, 0.6)": (10.0, 30.0, 100.0),
    "alpha_beta(-0.3, -0.2)": (10.0, 30.0),
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
        f"{name} at temperature {t}": case(20, 60, temperature=t, **fields)
        for name, fields in DIVERGENCES.items()
        for t in (0.1, 1.0, 2.0, 7.3, 20.0)
    },
    **{f"{name} over several blocks": case(5, 2777, **f) for name, f in DIVERGENCES.items()},
    **{f"{name} of equal sides": equal_sides(**f) for name, f in DIVERGENCES.items()},
    **{
        f"forward_kl of sides apart, temperatures {t} and {teacher_t}": sides_apart(
            temperature=t, teacher_temperature=teacher_t, ce_weight=0.5
        )
        for t, teacher_t in ((1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (0.5, 3.0))
    },
    **{f"{name}, maximum rises": rising_maximum(**f) for name, f in DIVERGENCES.items()},
    **{
        f"{name}{length}, -inf columns": without_some_columns(num_columns, **fields)
        for name, fields in DIVERGENCES.items()
        if name != "logit_mse"  # infinite
        for length, num_columns in (("", 1500), (" of short rows", 50))
    },
    **{
        f"{student} student, {teacher} teacher": case(6, 1055, dtypes=(student, teacher))
        for student in (F32, BF16, F16)
        for teacher in (F32, BF16, F16)
    },
    **{f"{name} of one column": case(6, 1, **fields) for name, fields in DIVERGENCES.items()},
    **{f"{name}, 250,002 columns": case(2, 250_002, **fields) for name, fields in FLAT.items()},
    **{
        f"{name}, huge logits, temperature {t}": case(6, 999, size=1e4, temperature=t, **fields)
        for name, fields in FLAT.items()
        for t in (0.1, 0.5, 2.0, 20.0)
    },
    **{
        f"{name}, one-hot teacher of logit {logit:g}": one_hot_teacher(
            logit, **fields | {"size": 3.0}
        )
        for name, fields in DIVERGENCES.items()
        for logit in ONE_HOT_LOGITS.get(name, (10.0, 30.0, 1e3, 1e4))
    },
    # What rounds alike in every column adds up, and is multiplied by T squared.
    **{
        f"{name}, one-hot teacher of logit {logit:g}, temperature {t}": one_hot_teacher(
            logit, num_columns=1031, temperature=t, **fields | {"size": 3.0}
        )
        for name, fields in DIVERGENCES.items()
        for logit in (10.0, 55.0)
        for t in (2.0, 20.0)
    },
    **{
        f"jeffreys, one-hot teachers from {logit:g} on, {num_columns} columns": one_hot_teacher(
            logit, num_columns, step=logit / 500, temperature=20.0, divergence="jeffreys"
        )
        for logit in (7.0, 30.0)
        for num_columns in (300, 1031)
    },
    **ratios_of_thousands(60),
    **{  # powers of probabilities as small as e^-200 leave float32, those of others do not
        f"alpha_beta(-0.3, -0.2) at temperature 0.1, {num_columns} columns": case(
            20, num_columns, temperature=0.1, **alpha_beta(-0.3, -0.2) | {"size": 3.0}
        )
        for num_columns in (60, 300)
    },
    "alpha_beta(-0.3, -0.2) of a one-hot teacher at temperature 0.1": one_hot_teacher(
        30.0, temperature=0.1, **alpha_beta(-0.3, -0.2) | {"size": 3.0}
    ),
    **{  # one column is all of q, in a block's last register, which is not full
        f"{name}, huge logits, {num_columns} columns": case(
            40, num_columns, size=1e4, temperature=0.5, **fields
        )
        for name, fields in FLAT.items()
        for num_columns in (60, 1031)
    },
    **{
        f"{name}, unaligned past the caches, T of its own exponentials": case(
            9, 131_075, temperature=3.0, **fields
        )
        for name, fields in DIVERGENCES.items()
        if name in ("reverse_kl", "jeffreys", "jsd")
    },
    **{
        f"{name}, logits of 3, temperature {t}": case(
            20, 60, temperature=t, **fields | {"size": 3.0}
        )
        for name, fields in DIVERGENCES.items()
        if name not in FLAT
        for t in (0.5, 1.0, 2.0, 20.0)
    },
    **{
        f"{name}, both sides capped": case(20, 77, softcap=5.0, temperature=2.0, **fields)
        for name, fields in FLAT.items()
    },
    **{
        f"alpha_beta{pair}, -inf columns of the teacher alone": teacher_without_some(*pair)
        for pair in ((0.2, 0.7), (1.0, 0.0), (0.4, 0.0), (0.6, -0.3))
    },
    **{
        f"skew_{side}_kl at beta {beta}": case(20, 60, divergence=f"skew_{side}_kl", beta=beta)
        for side in ("forward", "reverse")
        for beta in (0.0, 1e-3, 0.999, 1.0)
    },
    "tvd, ties": tied_columns(),
    "jsd at beta 0": case(6, 60, divergence="jsd", beta=0.0),
    "jsd at beta 1": case(6, 60, divergence="jsd", beta=1.0),
    "jsd close to beta 0": case(6, 60, divergence="jsd", beta=1e-3),
    "fewer columns than a register": case(6, 3),
    "odd number of columns": case(6, 1031),
    "exactly one block": case(6, 1024),
    "one row": case(1, 500),
    **{
        f"{side}: an exponent far from the others{own}": one_exponent_apart(side, **fields)
        for side in ("student_logits", "teacher")
        for own, fields in {
            "": {},
            ", T = 2": {"temperature": 2.0},
            ", T of its own exponentials": {"temperature": 3.0},
        }.items()
    },
    "an exponent far by a power of two": far_by_a_power_of_two(),
    **{
        f"maximum rises, temperature {t}, {dtype}": rising_maximum(t, dtypes=(dtype, dtype))
        for t in (1.0, 2.0)
        for dtype in (F32, BF16)
    },
    **{
        f"a gradient written while the next row is read, temperature {t}, {dtype}": case(
            5, 6 * LONG_BLOCK - 100, temperature=t, dtypes=(dtype, dtype)
        )
        for t in (1.0, 2.0, 3.0)
        for dtype in (F32, BF16, F16)
    },
    **{
        f"a gradient written while the next row is read, {why}": case(
            5, 6 * LONG_BLOCK - 100, temperature=2.0, **fields
        )
        for why, fields in {
            "no labels": {"has_labels": False},
            "labels only mark tokens": {"ce_weight": 0.0},
            "no kd weight": {"kd_weight": 0.0},
            "mask": {"mask": MASK[:5]},
            "padded vocabulary": {"vocab_size": 5 * LONG_BLOCK + 300},
        }.items()
    },
    "nothing in the last block": case(6, 1100, has_labels=False)
    | {"teacher": normal(6, 1100, seed=1).masked_fill(torch.arange(1100) > 1050, -torch.inf)},
    "more short rows than go together": case(70, 60),
    "widest rows that go together": case(40, 64),
    "narrowest rows that go alone": case(40, 65),
    **{
        f"short rows, {student} student, {teacher} teacher": case(20, 37, dtypes=(student, teacher))
        for student in (F32, BF16, F16)
        for teacher in (F32, BF16, F16)
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
    "gradient past the caches, unaligned": case(9, 131_075, dtypes=(F32, BF16)),
    "gradient past the caches, unaligned, bfloat16": case(18, 131_075, dtypes=(BF16, BF16)),
    **{
        f"blocks of no probability{own}, {dtype}": far_below_nothing(
            dtypes=(dtype, dtype), **fields
        )
        for dtype in (F32, BF16)
        for own, fields in {"": {}, ", T of its own exponentials": {"temperature": 3.0}}.items()
    },
    "finfo.min in place of -inf": masked_with_the_least_float(),
    "logits too large for long rows": case(6, 999, size=1e7),
    "strided rows": padded_rows(),
    "strided columns": transposed(),
    "teacher rows that are one row": expanded_teacher(),
    "huge logits": case(6, 999, size=1e4),
    **{
        f"alpha_beta(0.0, 0.0), huge logits, temperature {t}": case(
            6, 999, temperature=t, **alpha_beta(0.0, 0.0) | {"size": 1e4}
        )
        for t in (0.1, 2.0)
    },
    "one-hot teacher, low temperature": one_hot_teacher(temperature=0.1),
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
    "softcap, -inf columns": without_some_columns(divergence="reverse_kl", softcap=8.0),
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
