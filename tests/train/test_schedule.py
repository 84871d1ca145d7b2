"""Schedules: what each is at every step of a short training, and what all have in common."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkd_fast.train.schedule import SHAPES, share_of_peak

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
