"""Schedules: what each is at every step of a short training, and what all have in common."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkd_fast import LossSpec
from mkd_fast.train.schedule import CONSTANT, SHAPES, LossSchedule, share_of_peak

FOUR_UP = [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("shape", "after"),
    [
        ("constant", [1.0] * 6),
        ("linear", [6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
        ("cosine", [(1 - math.cos(math.pi * left / 7)) / 2 for left in (6, 5, 4, 3, 2, 1)]),
        ("wsd", [1.0, 1.0, 1.0, 3 / 4, 2 / 4, 1 / 4]),
    ],
)
def test_ten_steps(shape, after):
    found = [share_of_peak(step, 10, shape, warmup=0.4, decay=0.3) for step in range(1, 11)]
    assert found == pytest.approx(FOUR_UP + after, rel=1e-15)


@given(
    st.sampled_from(SHAPES),
    st.integers(1, 300),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_up_to_the_peak_then_never_up_again_and_never_0(shape, num_steps, warmup, decay):
    shares = [
        share_of_peak(step, num_steps, shape, warmup=warmup, decay=decay)
        for step in range(1, num_steps + 1)
    ]
    assert max(shares) == 1.0
    peak = shares.index(1.0)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert min(shares) > 0.0


SPEC = LossSpec(kd_weight=2.0, ce_weight=0.25, hidden_weight=1.0)


def weights(schedule, num_steps=4):
    return [schedule.weights_at(SPEC, step, num_steps) for step in range(1, num_steps + 1)]


def test_weights_go_from_the_losss_to_their_ends():
    schedule = LossSchedule(hidden_weight=("linear", 0.0), ce_weight=("linear", 1.25))
    assert weights(schedule) == [
        {"ce_weight": 0.25, "hidden_weight": 1.0},
        {"ce_weight": 0.5, "hidden_weight": 0.75},
        {"ce_weight": 0.75, "hidden_weight": 0.5},
        {"ce_weight": 1.0, "hidden_weight": 0.25},
    ]


def test_under_a_warmup_a_weight_comes_from_its_end_first():
    schedule = LossSchedule(kd_weight=("wsd", 0.0), warmup=0.5, decay=0.25)
    found = [found["kd_weight"] for found in weights(schedule, 8)]
    assert found == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2 * 2 / 3, 2 * 1 / 3]


def test_what_is_not_named_stays():
    assert weights(CONSTANT) == [{}] * 4


@pytest.mark.parametrize(
    ("start", "end", "most"), [(0.0, None, 0.0), (0.5, None, 0.5), (0.0, 2.0, 2.0), (1.0, 0.0, 1.0)]
)
def test_the_most_that_hidden_states_ever_weigh(start, end, most):
    schedule = LossSchedule(hidden_weight=None if end is None else ("cosine", end))
    assert schedule.most_hidden_weight(LossSpec(hidden_weight=start)) == most
