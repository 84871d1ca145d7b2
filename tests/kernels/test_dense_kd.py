"""The Triton kernels of dense_kd against float64: compiled on a GPU, interpreted elsewhere."""

from typing import Any

import pytest
import torch
from dense_kd_cases import alpha_beta, one_hot_teacher, ratios_of_thousands
from dense_kd_input import BF16, COMMON_DIVERGENCES, F16, F32, case, normal
from hidden_cases import hidden_states
from kd_evaluation import GRADIENT, assert_all_within_budget, evaluate, exact_and_plain
from torch import Tensor

from mkd_fast.kernels.dense_kd import traffic

INF = float("inf")

# Widths and the kernel they take: 60 tile; 1031 rows, off the 16-byte units; 9000 rows, on them.
TILE, SHIFTED, WHOLE = 60, 1031, 9000


def changed(arguments: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Arguments of which columns are overwritten: side=(columns, value)."""
    for side, (columns, value) in values.items():
        arguments[side][:, columns] = value
    return arguments


def both_without_some_columns(num_columns: int, **fields: Any) -> dict[str, Any]:
    """-inf in 7 columns of both sides."""
    arguments = case(6, num_columns, has_labels=False, **fields)
    return changed(arguments, teacher=(slice(0, 7), -INF), student_logits=(slice(0, 7), -INF))


def padded(rows: Tensor, num_extra: int) -> Tensor:
    """The same rows in memory whose rows are wider, with NaN between them."""
    wide = torch.full((len(rows), rows.shape[1] + num_extra), float("nan"), dtype=rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


def strided(num_columns: int, *num_extra: int) -> dict[str, Any]:
    arguments = case(3, num_columns)
    for side, extra in zip(("student_logits", "teacher"), num_extra, strict=True):
        arguments[side] = padded(arguments[side], extra)
    return arguments


# Every formula of pointwise.py, and the ends and limits that are resolved before the launch.
DIVERGENCES: dict[str, dict[str, Any]] = {
    **COMMON_DIVERGENCES,
    "logit_mse": {"divergence": "logit_mse"},
} | {
    f"alpha_beta{pair}": {"divergence": "alpha_beta", "alpha_beta": pair}
    for pair in ((0.2, 0.7), (0.0, 0.6), (0.6, 0.0), (0.6, -0.6), (0.0, 0.0), (-0.3, 1.0))
}
# Powers that grow as probabilities fall.
STEEP = {
    pair: alpha_beta(*pair) | {"size": 3.0}
    for pair in ((-0.3, -0.2), (-0.3, 0.6), (0.6, -0.3), (0.5, -0.5))
}
ENDS = {
    f"{name}, beta {beta:g}": {"divergence": name, "beta": beta}
    for name in ("jsd", "skew_forward_kl", "skew_reverse_kl")
    for beta in (0.0, 1.0)
}
NEW = {name: DIVERGENCES[name] for name in list(DIVERGENCES)[4:]}
# They stay finite where the teacher has a zero; the others are infinite, or know no zero.
FINITE = ("forward_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd")
FINITE += ("alpha_beta(0.2, 0.7)", "alpha_beta(0.6, 0.0)")

CASES: dict[str, dict[str, Any]] = {
    # each divergence in either kernel and on either path through a row
    "forward, tile": case(5, TILE),
    "reverse, tile": case(5, TILE, divergence="reverse_kl"),
    "jeffreys, tile": case(5, TILE, divergence="jeffreys", temperature=2.0),
    "jsd, tile": case(5, TILE, divergence="jsd", beta=0.3, temperature=2.0),
    "forward, rows off 16 bytes": case(6, SHIFTED, temperature=2.0),
    "reverse, rows off 16 bytes": case(6, SHIFTED, divergence="reverse_kl", temperature=2.0),
    "jeffreys, rows off 16 bytes": case(6, SHIFTED, divergence="jeffreys"),
    "jsd, rows off 16 bytes": case(6, SHIFTED, divergence="jsd", beta=0.7),
    "forward, several blocks": case(2, WHOLE),
    "reverse, several blocks": case(2, WHOLE, divergence="reverse_kl", temperature=0.5),
    "jeffreys, several blocks": case(2, WHOLE, divergence="jeffreys", temperature=2.0),
    "jsd, several blocks": case(2, WHOLE, divergence="jsd", temperature=2.0),
    **{f"{name}, tile": case(5, TILE, temperature=2.0, **NEW[name]) for name in NEW},
    **{f"{name}, rows off 16 bytes": case(6, SHIFTED, **NEW[name]) for name in NEW},
    "logit_mse, several blocks": case(2, WHOLE, divergence="logit_mse", temperature=2.0),
    "logit_mse without labels": case(2, WHOLE, divergence="logit_mse", has_labels=False),
    # the ends of a range are defined, not computed
    **{name: case(2, TILE, **fields) for name, fields in ENDS.items()},
    "skew_reverse_kl, beta 1, rows": case(
        2, SHIFTED, divergence="skew_reverse_kl", beta=1.0, temperature=2.0
    ),
    # widths
    "one column": case(2, 1),
    "one row": case(1, TILE),
    "rows not a multiple of a program's": case(35, 17),
    "power of two": case(3, 64, dtypes=(BF16, BF16)),
    "XLM-R": case(1, 250_002, dtypes=(BF16, BF16), temperature=2.0),
    # dtypes, and with them vector widths
    "bf16 of both, rows": case(3, 1032 * 8, dtypes=(BF16, BF16)),
    "bf16 of both, rows off 16 bytes": case(9, SHIFTED, dtypes=(BF16, BF16)),
    "f16 student, f32 teacher": case(3, SHIFTED, dtypes=(F16, F32), divergence="jsd"),
    "f32 student, bf16 teacher": case(3, WHOLE, dtypes=(F32, BF16)),
    "bf16 student, f16 teacher": case(5, TILE, dtypes=(BF16, F16), divergence="reverse_kl"),
    # temperatures and scales
    "two temperatures": case(3, TILE, temperature=3.0, teacher_temperature=0.7),
    "cold": case(9, SHIFTED, temperature=0.1),
    "hot": case(3, TILE, temperature=20.0),
    **{  # but for negative powers of probabilities that are next to nothing
        f"{name}, cold": case(9, TILE, temperature=0.1, **NEW[name])
        for name in NEW
        if "-" not in name
    },
    **{f"{name}, hot": case(9, TILE, temperature=20.0, **NEW[name]) for name in NEW},
    "logit scales": case(3, TILE, logit_scale=0.25, teacher_logit_scale=2.0, temperature=2.0),
    "negative logit scale": case(3, SHIFTED, logit_scale=-0.5, teacher_logit_scale=-1.0),
    "no T^2": case(3, TILE, temperature=2.0, temperature_squared=False),
    # softcaps
    **{
        f"{name}, capped": case(5, TILE, softcap=5.0, logit_scale=1.3, temperature=2.0, **fields)
        for name, fields in DIVERGENCES.items()
    },
    "capped, rows": case(4, SHIFTED, softcap=5.0, temperature=2.0),
    "capped, centre swept": case(4, SHIFTED, softcap=5.0, divergence="tvd"),
    "student capped alone": case(5, TILE, softcap=5.0, teacher_softcap=None),
    "teacher capped alone, rows": case(4, SHIFTED, teacher_softcap=5.0),
    "two softcaps, bf16": case(5, TILE, softcap=5.0, teacher_softcap=30.0, dtypes=(BF16, BF16)),
    "logits far below the cap": case(9, TILE, softcap=30.0, size=0.1),
    # many rows: of the little gradient that is left, a few rows' largest error is a matter of luck
    "logits far above the cap": case(50, TILE, softcap=5.0, size=1e4),
    "capped, both without some columns": both_without_some_columns(TILE, softcap=5.0),
    # weights
    "labels only to ignore": case(3, TILE, ce_weight=0.0),
    "no labels": case(3, SHIFTED, has_labels=False),
    "cross-entropy alone": case(3, SHIFTED, kd_weight=0.0, temperature=2.0),
    # huge and impossible logits
    "logits of 1e4": case(3, SHIFTED, size=1e4),
    "logits of 1e4, reverse": case(3, SHIFTED, size=1e4, divergence="reverse_kl"),
    **{
        f"{name}, logits of 1e4": case(40, TILE, size=1e4, **fields)
        for name, fields in DIVERGENCES.items()
        if "-" not in name  # infinite
    },
    **ratios_of_thousands(6),
    **{  # one column is all of q: the gradient is 0, as is what its ratio differs from their mean
        f"{name}, logits of 1e4, temperature 0.5, rows": case(
            6, SHIFTED, size=1e4, temperature=0.5, has_labels=False, divergence=name
        )
        for name in ("reverse_kl", "jeffreys")
    },
    **{  # powers of probabilities as small as e^-60 are wrong by what their exponents are
        f"alpha_beta{pair}, one-hot teacher of logit 30{rows}": one_hot_teacher(
            30.0, num_columns, 0.06, num_rows, temperature=0.5, has_labels=False, **STEEP[pair]
        )
        for pair in STEEP
        for rows, num_columns, num_rows in (("", TILE, 12), (", rows", SHIFTED, 3))
    },
    # e^100 times T^2 is a float32 number, and has to be one before T^2 is known of
    "alpha_beta(-0.3, -0.2), cold": case(
        20, TILE, temperature=0.1, has_labels=False, **STEEP[(-0.3, -0.2)]
    ),
    # the terms' difference has no digit left where the sides are as good as tied
    **{
        f"alpha_beta(0.6, -0.3), hot, {num_columns} columns": case(
            12, num_columns, temperature=20.0, has_labels=False, **STEEP[(0.6, -0.3)]
        )
        for num_columns in (TILE, 300)
    },
    # as good as one column, whose q and the others' sum to 1 only within a rounding
    "jsd, cold": case(6, SHIFTED, temperature=0.1, has_labels=False, **COMMON_DIVERGENCES["jsd"]),
    **{
        f"{name}, one-hot teacher": changed(
            case(40, TILE, **fields),
            teacher=([7], 30.0 if name == "alpha_beta(-0.3, 1.0)" else 1e4),
        )
        for name, fields in DIVERGENCES.items()
    },
    **{
        f"{name}, teacher without some columns": changed(
            case(5, TILE, **DIVERGENCES[name]), teacher=(slice(3, 30), -INF)
        )
        for name in FINITE
    },
    **{
        f"{name}, both without some columns": both_without_some_columns(TILE, **fields)
        for name, fields in DIVERGENCES.items()
        if name != "logit_mse"
    },
    "teacher without some columns": changed(case(3, SHIFTED), teacher=(slice(3, 700), -INF)),
    "reverse, both without some columns, rows": both_without_some_columns(
        SHIFTED, divergence="reverse_kl"
    ),
    "jsd, what both flush to zero": case(3, SHIFTED, divergence="jsd", size=15.0, temperature=0.5),
    "masked with the lowest number": changed(
        case(3, SHIFTED),
        teacher=(slice(0, 700), torch.finfo(F32).min),
        student_logits=(slice(0, 700), torch.finfo(F32).min),
    ),
    # columns that are not real, and NaN where nothing may be read
    "padded columns, tile": case(5, TILE, vocab_size=50),
    "padded columns, rows": case(3, WHOLE, vocab_size=8201),
    "logit_mse, padded columns": case(5, TILE, vocab_size=50, divergence="logit_mse"),
    "logit_mse, padded columns, rows": case(3, WHOLE, vocab_size=8201, divergence="logit_mse"),
    "alpha_beta, padded columns": case(5, TILE, vocab_size=50, **NEW["alpha_beta(0.0, 0.6)"]),
    "padded columns, off 16 bytes": case(3, SHIFTED, vocab_size=1024, divergence="jeffreys"),
    "strided rows": strided(TILE, 4, 8),
    "strided rows off 16 bytes": strided(SHIFTED, 8, 16),
    "sides off 16 bytes unlike each other": strided(SHIFTED, 1, 6),
    # reductions and who counts
    "mean": case(5, TILE, reduction="mean"),
    "sum": case(3, SHIFTED, reduction="sum"),
    "mean with a mask alone": case(
        4, TILE, has_labels=False, reduction="mean", mask=torch.tensor([True, False, True, True])
    ),
    "mean of all": case(3, TILE, has_labels=False, reduction="mean"),
    "mean over given tokens": case(5, TILE, reduction="mean", num_tokens=17.0),
    "another ignore_index": case(5, TILE, reduction="mean", ignore_index=3),
    "nothing counts": case(2, SHIFTED, reduction="mean", mask=torch.zeros(2, dtype=torch.bool)),
    "no rows": case(0, TILE, reduction="mean"),
    # hidden states
    "hidden, token by token": case(7, TILE) | hidden_states((7, 40), (7, 40)),
    "hidden, a mean": case(5, TILE, reduction="mean") | hidden_states((5, 3, 40), (5, 3, 200)),
    "hidden, masked positions": case(
        3,
        TILE,
        reduction="mean",
        hidden_mask=torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool),
    )
    | hidden_states((3, 4, 33), (3, 4, 16), dtypes=(BF16, F32)),
    "hidden, more positions than a program takes": case(
        2, TILE, hidden_mask=torch.arange(100).view(2, 50) % 3 > 0
    )
    | hidden_states((2, 50, 8), (2, 50, 24), dtypes=(F16, BF16)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_within_budget_of_float64(name: str, device: str) -> None:
    actual = evaluate(CASES[name], "fused", device)
    assert_all_within_budget(actual, *exact_and_plain(CASES[name], device))


def loss_of(device: str, **arguments: Any) -> tuple[Tensor, Tensor]:
    out = evaluate(arguments, "fused", device)
    return out["loss"], out[GRADIENT]


@pytest.mark.parametrize("num_columns", [TILE, SHIFTED])
@pytest.mark.parametrize("divergence", [*DIVERGENCES, "skew_forward_kl, beta 1"])
@pytest.mark.parametrize("side", ["student_logits", "teacher"])
@pytest.mark.parametrize("value", [INF, float("nan")])
def test_nan_and_infinity_reach_the_loss_of_their_token_alone(
    num_columns: int, divergence: str, side: str, value: float, device: str
) -> None:
    arguments = case(4, num_columns, **(DIVERGENCES | ENDS)[divergence])
    arguments[side][1, num_columns - 1] = value
    loss, gradient = loss_of(device, **arguments)
    if divergence == "logit_mse" and value == INF:  # an infinite error
        loss = torch.where(loss == INF, torch.nan, loss)
    assert loss.isnan().tolist() == [False, True, False, False]
    assert gradient[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("num_columns", [TILE, SHIFTED, WHOLE])
def test_tokens_that_do_not_count_may_hold_anything(num_columns: int, device: str) -> None:
    arguments = case(3, num_columns, divergence="jsd")
    for side in ("student_logits", "teacher"):
        arguments[side][2] = float("nan")
    loss, gradient = loss_of(device, **arguments)
    assert loss[2] == 0.0
    assert (gradient[2] == 0.0).all()
    assert loss[:2].isfinite().all()


@pytest.mark.parametrize("num_columns", [TILE, SHIFTED])
def test_a_label_that_names_no_column_makes_its_token_nan(num_columns: int, device: str) -> None:
    arguments = case(3, num_columns, vocab_size=num_columns - 1)
    arguments["labels"] = torch.tensor([0, num_columns - 1, -3])
    loss, _ = loss_of(device, **arguments)
    assert loss.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("num_columns", [TILE, SHIFTED])
def test_a_term_of_weight_zero_is_left_out_whatever_it_is(num_columns: int, device: str) -> None:
    arguments = case(3, num_columns, kd_weight=0.0)
    arguments["teacher"][:] = float("nan")
    loss, gradient = loss_of(device, **arguments)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("num_columns", [TILE, SHIFTED])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    num_columns: int, name: str, device: str
) -> None:
    logits = normal(3, num_columns, seed=0)
    loss, gradient = loss_of(
        device, student_logits=logits, teacher=logits.clone(), **DIVERGENCES[name]
    )
    rounding = torch.finfo(F32).eps
    assert loss.abs() <= 8 * rounding
    assert gradient.abs().max() <= 8 * rounding


def test_the_same_input_gives_the_same_bits(device: str) -> None:
    arguments = case(9, TILE, reduction="mean") | hidden_states((9, 3, 40), (9, 3, 24))
    first, second = (evaluate(arguments, "fused", device) for _ in range(2))
    for what, value in first.items():
        assert torch.equal(value, second[what]), what


def test_traffic_is_six_bytes_a_logit_on_chip_and_ten_in_two_sweeps() -> None:
    def bytes_per_logit(num_columns: int, divergence: str = "forward_kl") -> float:
        cost = traffic(8, num_columns, student_bytes=2, teacher_bytes=2, divergence=divergence)
        return cost.num_bytes / (8 * num_columns)

    assert bytes_per_logit(60, "jsd") == 6
    assert bytes_per_logit(8192, "jsd") == 6
    assert bytes_per_logit(128_256) == 10
    assert bytes_per_logit(128_256, "jsd") == 14
    assert bytes_per_logit(128_256, "logit_mse") == 6
