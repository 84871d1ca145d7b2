"""Batches: every row once, limits kept, the order fixed by seed and epoch; collate pads right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast.data.batches import (
    EvaluationBatches,
    collate,
    evaluation_batches,
    length_grouped_batches,
)
from mkd_fast.data.tokens import TokenisedText

LENGTHS = st.lists(st.integers(1, 40), max_size=200)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_rows_by_count(lengths, batch_size, seed, epoch):
    batches = length_grouped_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sum(len(batch) != batch_size for batch in batches) <= 1
    assert all(len(batch) <= batch_size for batch in batches)


@settings(deadline=None)
@given(LENGTHS, st.integers(40, 90), st.integers(0, 3))
def test_rows_by_tokens(lengths, max_tokens, epoch):
    batches = length_grouped_batches(lengths, max_tokens=max_tokens, seed=0, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(b) * max(lengths[row] for row in b) <= max_tokens for b in batches)


@settings(deadline=None)
@given(LENGTHS, st.integers(40, 90))
def test_evaluation_is_longest_first(lengths, max_tokens):
    batches = evaluation_batches(lengths, max_tokens=max_tokens)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)


def test_seed_and_epoch_decide():
    lengths = np.arange(1, 101)

    def batches(seed, epoch):
        return length_grouped_batches(lengths, batch_size=8, seed=seed, epoch=epoch)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3)
    assert batches(1, 2) != batches(2, 2)


def test_lengths_of_a_batch_are_alike():
    lengths = np.random.default_rng(0).integers(1, 100, 1024)

    def padded(batches):
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    grouped = length_grouped_batches(lengths, batch_size=16, seed=0, epoch=0)
    in_order = [list(range(start, start + 16)) for start in range(0, 1024, 16)]
    waste, plain_waste = padded(grouped) - lengths.sum(), padded(in_order) - lengths.sum()
    assert waste < plain_waste / 4


def test_collate_pads_right():
    tokenised = TokenisedText(
        ids=np.array([5, 6, 7, 8, 9, 4], dtype=np.int32),
        offsets=np.array([0, 1, 4, 6]),
        labels=np.array([2, 0, 1]),
        pad_id=1,
    )
    batch = collate(tokenised, [2, 1])
    assert batch.input_ids.tolist() == [[9, 4, 1], [6, 7, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [1, 0]
    assert batch.sample_ids.tolist() == [2, 1]
    for tensor in (batch.input_ids, batch.attention_mask, batch.labels, batch.sample_ids):
        assert tensor.dtype == torch.int64


@pytest.mark.parametrize(
    ("max_rows", "rows"), [(None, range(7)), (9, range(7)), (3, [0, 2, 4]), (1, [0])]
)
def test_rows_at_equal_distances_as_often_as_asked(max_rows, rows):
    lengths = np.array([1, 3, 2, 2, 5, 1, 4])
    text = TokenisedText(
        ids=np.arange(lengths.sum(), dtype=np.int32),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        labels=np.zeros(7, dtype=np.int64),
        pad_id=0,
    )
    batches = EvaluationBatches(text, batch_size=2, max_rows=max_rows)
    assert batches.rows == list(rows)
    for _ in range(2):
        found = [batch.sample_ids.tolist() for batch in batches]
        assert sorted(row for batch in found for row in batch) == list(rows)
        assert [lengths[row] for batch in found for row in batch] == sorted(
            lengths[list(rows)], reverse=True
        )


@pytest.mark.parametrize("limits", [{}, {"batch_size": 4, "max_tokens": 64}])
def test_one_limit_is_needed(limits):
    with pytest.raises(ValueError, match="one of batch_size and max_tokens must be given"):
        length_grouped_batches([3], seed=0, epoch=0, **limits)


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="evaluation_batches: batch_size must be at least 1"):
        evaluation_batches([3], batch_size=0)


def test_the_longest_row_must_fit():
    with pytest.raises(ValueError, match="at least the longest row's 30 and 1, got 29"):
        evaluation_batches([3, 30], max_tokens=29)
