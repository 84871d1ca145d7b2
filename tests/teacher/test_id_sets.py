"""Sets of ids as bytes: what comes back, how many bytes, and bytes that no capture wrote."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast.teacher.cache.kinds import Sampled
from mkd_fast.teacher.cache.kinds.id_sets import MOST_IDS, IdSets

NUM_COLUMNS = st.sampled_from([1, 2, 3, 60, 61, 255, 256, 257, 32_000, 49_152, 250_037, 2**24])


def ends_and_sizes(sets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids end to end, and how many each set has."""
    ids = np.array([number for ids in sets for number in ids], np.int64)
    return ids, np.array([len(ids) for ids in sets], np.int64)


@settings(max_examples=300, deadline=None)
@given(num_columns=NUM_COLUMNS, data=st.data())
def test_any_sets_come_back(num_columns, data):
    one = st.sets(st.integers(0, num_columns - 1), max_size=min(num_columns, 40)).map(sorted)
    ids, num_ids = ends_and_sizes(data.draw(st.lists(one, max_size=6)))
    code = IdSets(num_columns)
    coded = code.encode(ids, num_ids)
    assert len(coded) == code.num_bytes(num_ids).sum()
    assert code.decode(coded, num_ids).tolist() == ids.tolist()


@pytest.mark.parametrize("num_columns", [255, 256, 1000, 2**24])
def test_as_many_ids_as_there_may_be(num_columns):
    spread = np.linspace(0, num_columns - 1, MOST_IDS).astype(np.int64)
    ids = np.concatenate(
        [np.arange(MOST_IDS), num_columns - MOST_IDS + np.arange(MOST_IDS), spread]
    )
    num_ids = np.full(3, MOST_IDS)
    code = IdSets(num_columns)
    assert code.decode(code.encode(ids, num_ids), num_ids).tolist() == ids.tolist()


@pytest.mark.parametrize(("num_columns", "num_ids"), [(49_152, 16), (250_037, 30), (32_000, 1)])
def test_a_set_takes_hardly_more_bits_than_the_best_code(num_columns, num_ids):
    """Of all sets of that size, each as likely: log2 of their number."""
    best = math.log2(math.comb(num_columns, num_ids))
    bits = 8 * IdSets(num_columns).num_bytes(np.array([num_ids]))[0]
    assert best <= bits <= best + 0.6 * num_ids + 9  # whole bytes, and a bit to end the high part


@settings(max_examples=300, deadline=None)
@given(
    num_columns=NUM_COLUMNS,
    rows=st.binary(max_size=60),
    num_ids=st.lists(st.integers(0, MOST_IDS), max_size=6),
)
def test_any_bytes_are_sets_or_refused(num_columns, rows, num_ids):
    numbers = np.array(num_ids, np.int64)
    ids = IdSets(num_columns).decode(np.frombuffer(rows, np.uint8), numbers)
    require_sets(ids, numbers, num_columns)


@settings(max_examples=300, deadline=None)
@given(num_columns=NUM_COLUMNS, data=st.data())
def test_changed_bytes_of_sets_are_sets_or_refused(num_columns, data):
    one = st.sets(st.integers(0, num_columns - 1), min_size=1, max_size=min(num_columns, 20))
    ids, num_ids = ends_and_sizes(data.draw(st.lists(one.map(sorted), min_size=1, max_size=4)))
    code = IdSets(num_columns)
    coded = code.encode(ids, num_ids)
    at = data.draw(st.integers(0, 8 * len(coded) - 1)) if len(coded) else None
    if at is not None:
        coded[at // 8] ^= 1 << at % 8
        require_sets(code.decode(coded, num_ids), num_ids, num_columns)
    num_ids[data.draw(st.integers(0, len(num_ids) - 1))] += data.draw(st.integers(1, MOST_IDS))
    require_sets(code.decode(coded, num_ids), num_ids, num_columns)


def require_sets(ids: np.ndarray | None, num_ids: np.ndarray, num_columns: int) -> None:
    """Rising ids of the vocabulary, as many as there are to be, if any came back."""
    if ids is not None:
        assert len(ids) == num_ids.sum()
        for row in np.split(ids, np.cumsum(num_ids)[:-1]):
            assert ((row >= 0) & (row < num_columns)).all()
            assert (np.diff(row) > 0).all()


@settings(max_examples=300, deadline=None)
@given(
    num_draws=st.sampled_from([1, 7, 8, 9, 50]),
    exponent=st.sampled_from([1.0, 0.5]),
    num_columns=st.sampled_from([1, 61, 250_037, 2**24]),
    data=st.data(),
)
def test_any_bytes_in_place_of_draws_are_draws_or_refused_in_words(
    num_draws, exponent, num_columns, data
):
    kind = Sampled(num_draws, num_columns, 1.0, exponent)
    width = kind.specs("token")[-1].width
    runs = data.draw(st.binary(min_size=2 * width, max_size=2 * width))
    ids = data.draw(st.binary(max_size=80))
    read = {
        f"{kind.name}.runs": np.frombuffer(runs, np.uint8).reshape(2, width),
        f"{kind.name}.ids": np.frombuffer(ids, np.uint8)[:, None],
        f"{kind.name}.weights": np.zeros((data.draw(st.integers(0, 60)), 1), np.float32),
    }
    try:
        teacher = kind.target(lambda name, _: read[name], 1.0)
    except ValueError as error:
        assert "must be runs of draws and rising ids" in str(error)  # noqa: PT017
        return
    drawn = teacher if hasattr(teacher, "ids") else teacher.unpacked()
    assert drawn.ids.shape == drawn.weights.shape
    assert ((drawn.ids >= -1) & (drawn.ids < num_columns)).all()


def test_a_row_by_hand():
    """As docs/cache.md describes it: ids 3 and 20 of 64 columns, five low bits each."""
    code, ids, num_ids = IdSets(64), np.array([3, 20]), np.array([2])
    # high: 2 + (63 >> 5) = 3 bits, set at (3 >> 5) + 0 and (20 >> 5) + 1; low: 3 and 20
    bits = [*(1, 1, 0), *(1, 1, 0, 0, 0), *(0, 0, 1, 0, 1)]
    expected = np.packbits(np.array(bits, np.uint8), bitorder="little")
    assert code.encode(ids, num_ids).tolist() == expected.tolist()
