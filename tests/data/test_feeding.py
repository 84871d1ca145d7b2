"""Which samples an epoch has: all of them, or as many drawn by language."""

import math
from collections import Counter

import numpy as np
import pytest

from mkd_fast.data.batches import length_grouped_batches
from mkd_fast.data.feeding import PLAIN, LanguageSampling, feeding
from mkd_fast.data.masked import MaskedText
from mkd_fast.data.tokens import TokenisedText, flat_rows

LANGUAGES = ["en"] * 80 + ["de"] * 15 + ["sw"] * 5


def text_of(num_samples):
    rows = [np.ones(1 + n % 7, np.int32) for n in range(num_samples)]
    return TokenisedText(*flat_rows(rows), np.zeros(num_samples, np.int64), pad_id=0)


@pytest.mark.parametrize(
    ("temperature", "quotas"),
    [
        (1.0, {"de": 15, "en": 80, "sw": 5}),
        (2.0, {"de": 26, "en": 59, "sw": 15}),  # 100 sqrt(n) / (sqrt 80 + sqrt 15 + sqrt 5)
        (math.inf, {"de": 34, "en": 33, "sw": 33}),
    ],
)
def test_shares_are_those_of_the_temperature(temperature, quotas):
    sampling = LanguageSampling(LANGUAGES, temperature)
    assert sampling.quotas() == quotas
    for epoch in (0, 3):
        drawn = Counter(LANGUAGES[row] for row in sampling.rows(0, epoch))
        assert drawn == quotas


def test_no_sample_is_repeated_before_its_language_is_through():
    sampling = LanguageSampling(LANGUAGES, math.inf)
    drawn = [row for epoch in range(7) for row in sampling.rows(3, epoch).tolist()]
    for language, num_samples in Counter(LANGUAGES).items():
        times = Counter(row for row in drawn if LANGUAGES[row] == language)
        assert len(times) == num_samples
        assert max(times.values()) - min(times.values()) <= 1


def test_an_epoch_depends_on_seed_and_epoch_only():
    sampling = LanguageSampling(LANGUAGES, 2.0)
    first = sampling.rows(0, 0).tolist()
    assert sampling.rows(0, 0).tolist() == first
    assert sampling.rows(0, 1).tolist() != first != sampling.rows(1, 0).tolist()


def test_without_a_temperature_the_order_is_as_ever():
    text = text_of(100)
    assert feeding(0, 1.0, LANGUAGES, text) == PLAIN
    found = PLAIN.batches(text, batch_size=8, seed=5, epoch=2)
    assert found == length_grouped_batches(text.lengths, batch_size=8, seed=5, epoch=2)


@pytest.mark.parametrize("row_tokens", [0, 20])
def test_batches_are_of_the_samples_that_were_drawn(row_tokens):
    fed = feeding(row_tokens, 2.0, LANGUAGES, text_of(100))
    batches = fed.batches(text_of(100), batch_size=8, seed=0, epoch=1)
    drawn = LanguageSampling(LANGUAGES, 2.0).rows(0, 1)
    assert sorted(row for batch in batches for row in batch) == sorted(drawn.tolist())
    packed = fed.collate(text_of(100), batches[0]).packed
    assert (packed is None) == (row_tokens == 0)


def test_pieces_of_a_masking_are_drawn_by_the_languages_of_their_texts():
    rows = [np.full(3, n, np.int32) for n in range(12)]  # two maskings of six pieces of two texts
    labels = np.zeros(36, np.int64)
    texts = np.array([0, 0, 0, 0, 0, 1] * 2)
    text = MaskedText(*flat_rows(rows), labels, 0, texts=texts, num_maskings=2)
    fed = feeding(0, math.inf, ["en", "sw"], text)
    for epoch, pieces in ((0, range(6)), (1, range(6, 12)), (2, range(6))):
        rows = [
            row for batch in fed.batches(text, batch_size=2, seed=0, epoch=epoch) for row in batch
        ]
        assert len(rows) == 6
        assert set(rows) <= set(pieces)
        assert rows.count(pieces[5]) == 3
