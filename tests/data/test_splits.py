"""Splits: whole groups, fixed by the seed whatever the order, and the leak check."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast.data.splits import check_no_overlap, split_by_group, split_by_row, split_names

NAMES = [f"t{number}" for number in range(20)]


def test_sizes_follow_the_shares():
    sizes = [len(part) for part in split_names(NAMES, (0.25, 0.10), seed=0)]
    assert sizes == [5, 2, 13]


@pytest.mark.parametrize(
    ("num_names", "sizes"),
    [(0, [0, 0, 0]), (1, [0, 0, 1]), (2, [1, 0, 1]), (3, [1, 0, 2]), (5, [1, 0, 4])],
)
def test_few_names_leave_one_to_train_on(num_names, sizes):
    parts = split_names(NAMES[:num_names], (0.25, 0.10), seed=1)
    assert [len(part) for part in parts] == sizes


def test_the_seed_decides_and_the_order_does_not():
    shuffled = random.Random(7).sample(NAMES, len(NAMES))
    assert split_names(shuffled * 2, (0.5,), seed=3) == split_names(NAMES, (0.5,), seed=3)
    assert split_names(NAMES, (0.5,), seed=4) != split_names(NAMES, (0.5,), seed=3)


def test_a_pinned_split_is_the_same_in_any_process():
    assert split_names("abcdef", (0.34,), seed=0)[0] == ["d", "e"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(NAMES)), st.integers(0, 5))
def test_groups_stay_whole_and_no_row_is_lost(groups, seed):
    parts = split_by_group(groups, (0.3, 0.2), seed=seed)
    assert sorted(row for part in parts for row in part) == list(range(len(groups)))
    held = [{groups[row] for row in part} for part in parts]
    assert sum(len(names) for names in held) == len(set(groups))


def test_rows_split_one_by_one():
    test, train = split_by_row(100, (0.25,), seed=0)
    assert len(test) == 25
    assert sorted(test + train) == list(range(100))


@pytest.mark.parametrize("shares", [(-0.1,), (0.5, 0.5)])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="shares must be zero or positive, together below 1"):
        split_names(NAMES, shares, seed=0)


def test_no_overlap_passes():
    check_no_overlap(["turn it on"], ["turn it off"])


def test_overlap_is_found_behind_case_space_and_punctuation():
    with pytest.raises(ValueError, match=r"no test sentence .* got 'Turn  it ON!' in both"):
        check_no_overlap(["turn it on"], ["off", "Turn  it ON!"])
