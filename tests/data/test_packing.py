"""Rows of several samples: every sample once and whole, and the rows nearly full."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkd_fast.data.batches import collate
from mkd_fast.data.packing import first_fit_decreasing, packed_batches
from mkd_fast.data.tokens import TokenisedText, flat_rows

LENGTHS = [random.Random(0).randint(1, 40) for _ in range(3000)]


def text_of(lengths):
    rows = [np.arange(1, length + 1, dtype=np.int32) + 100 * n for n, length in enumerate(lengths)]
    return TokenisedText(*flat_rows(rows), np.zeros(len(rows), np.int64), pad_id=7)


def dealt(lengths=LENGTHS, **changes):
    settings = {"batch_size": 16, "row_tokens": 128, "seed": 0, "epoch": 0} | changes
    return packed_batches(lengths, **settings)


def test_every_sample_is_in_one_step():
    assert sorted(sample for step in dealt() for sample in step) == list(range(len(LENGTHS)))


def test_steps_depend_on_seed_and_epoch_only():
    assert dealt() == dealt()
    assert dealt() != dealt(epoch=1) != dealt(seed=1) != dealt()


@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_a_step_has_batch_size_samples_on_average(batch_size):
    steps = dealt(batch_size=batch_size)
    per_row = 128 / np.mean(LENGTHS)
    assert np.mean([len(step) for step in steps]) == pytest.approx(
        max(batch_size, per_row), rel=0.1
    )


def test_rows_are_nearly_full():
    text = text_of(LENGTHS)
    num_places = sum(
        collate(text, step, row_tokens=128).packed.input_ids.numel() for step in dealt()
    )
    assert sum(LENGTHS) / num_places > 0.98


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([3, 1, 2], [[0, 1], [2]]),
        ([4, 4, 4], [[0], [1], [2]]),
        ([1, 1, 1, 1, 1], [[0, 1, 2, 3], [4]]),
        ([1, 3, 3, 1], [[1, 0], [2, 3]]),
        ([], []),
    ],
)
def test_the_longest_goes_first_into_the_first_row_with_room(lengths, rows):
    assert first_fit_decreasing(range(len(lengths)), lengths, 4) == rows


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(9, 20))
def test_a_packed_batch_is_the_padded_one_elsewhere(lengths, row_tokens):
    text = text_of(lengths)
    batch = collate(text, range(len(lengths)), row_tokens=row_tokens)
    packed, real = batch.packed, batch.attention_mask.bool()
    assert packed.input_ids.shape[1] <= row_tokens
    places = packed.places[real]
    assert len(set(places.tolist())) == sum(lengths)
    assert (packed.input_ids.flatten()[places] == batch.input_ids[real]).all()
    assert (packed.position_ids.flatten()[places] == real.cumsum(1)[real] - 1).all()
    is_filled = np.ones(packed.input_ids.numel(), bool)
    is_filled[places] = False
    assert (packed.input_ids.flatten()[is_filled] == 7).all()
    assert (packed.segments.flatten()[is_filled] == -1).all()
    assert (packed.position_ids.flatten()[is_filled] == 0).all()
    for row, places in enumerate(packed.places):
        found = packed.segments.flatten()[places[real[row]]]
        assert len(set(found.tolist())) == min(lengths[row], 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(9, 20))
def test_what_was_dealt_out_by_rows_needs_no_more_rows(lengths, row_tokens):
    rows = first_fit_decreasing(range(len(lengths)), lengths, row_tokens)
    batch = collate(text_of(lengths), [n for row in rows for n in row], row_tokens=row_tokens)
    assert len(batch.packed.input_ids) <= len(rows)


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="max_tokens must be at least the longest row's 41"):
        dealt([41], row_tokens=40)
