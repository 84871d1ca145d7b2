"""The budget itself: what it forgives, and what it does not."""

import pytest
import torch
from budget import assert_within_budget


def judge(actual, exact, plain):
    assert_within_budget(
        torch.tensor(actual), torch.tensor(exact, dtype=torch.float64), torch.tensor(plain)
    )


def test_twice_the_error_of_plain_torch_and_a_rounding():
    judge([1.0, 2.0003], [1.0, 2.0], [1.0, 2.0002])
    with pytest.raises(AssertionError, match=r"value: 5\.0"):
        judge([1.0, 2.0005], [1.0, 2.0], [1.0, 2.0002])


@pytest.mark.parametrize("actual", [torch.inf, torch.nan, 3e38])
def test_where_plain_torch_leaves_its_range_nothing_is_asked(actual):
    judge([1.0, actual], [1.0, 3e38], [1.0, torch.inf])


def test_but_no_finite_number_stands_for_what_overflows():
    judge([1.0, torch.inf], [1.0, 1e39], [1.0, torch.inf])
    with pytest.raises(AssertionError, match="finite where the truth overflows"):
        judge([1.0, 3e38], [1.0, 1e39], [1.0, torch.inf])


@pytest.mark.parametrize("actual", [torch.inf, torch.nan])
def test_what_plain_torch_can_say_must_be_said(actual):
    with pytest.raises(AssertionError, match="finite in one and not in the other"):
        judge([1.0, actual], [1.0, 2.0], [1.0, 2.0])


def test_what_lies_below_normal_numbers_is_nothing():
    judge([0.0], [8e-37], [8e-37])
    with pytest.raises(AssertionError):
        judge([0.0], [1e-30], [1e-30])
