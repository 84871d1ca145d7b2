"""Splits: whole groups, fixed by the seed whatever the order, and the leak check."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast.data.splits import (
    balanced_order,
    check_no_overlap,
    split_by_group,
    split_by_row,
    split_names,
)

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


# 5 labels in 3 languages, 4 rows each, shuffled.
TABLE = [(label, language) for label in range(5) for language in ("de", "en", "fr")] * 4
random.Random(1).shuffle(TABLE)
LABELS, LANGUAGES = [label for label, _ in TABLE], [language for _, language in TABLE]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_beginning_of_a_balanced_order_is_balanced(seed):
    order = balanced_order(LABELS, LANGUAGES, seed=seed)
    assert sorted(order) == list(range(len(TABLE)))
    for size in range(1, len(order) + 1):
        begun = order[:size]
        labels = Counter({label: 0 for label in range(5)})
        labels.update(LABELS[row] for row in begun)
        assert max(labels.values()) - min(labels.values()) <= 1
        for label in range(5):
            languages = Counter({"de": 0, "en": 0, "fr": 0})
            languages.update(LANGUAGES[row] for row in begun if LABELS[row] == label)
            assert max(languages.values()) - min(languages.values()) <= 1
        languages = Counter(LANGUAGES[row] for row in begun)
        if size % 5 == 0:  # whole rounds of the labels
            assert max(languages.values()) - min(languages[name] for name in LANGUAGES) <= 2


def test_a_balanced_order_depends_on_its_seed_and_not_on_chance():
    first = balanced_order(LABELS, LANGUAGES, seed=0)
    assert first == balanced_order(LABELS, LANGUAGES, seed=0)
    assert first[:5] != balanced_order(LABELS, LANGUAGES, seed=1)[:5]


def test_a_label_that_runs_out_leaves_its_turns_to_others():
    order = balanced_order([0, 0, 0, 0, 1], ["en"] * 5, seed=0)
    assert sorted(order) == list(range(5))
    assert {0, 1} == {[0, 0, 0, 0, 1][row] for row in order[:2]}
