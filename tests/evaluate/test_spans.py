"""Span scores are seqeval's own, strict and in IOB2, language by language."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from mkd_fast.evaluate.spans import score_spans, span_counts

EPS = np.finfo(np.float64).eps
TAGS = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])
PAIRS = st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=8)


@given(PAIRS)
def test_scores_are_seqeval_s(pairs: list[list[tuple[str, str]]]) -> None:
    predicted, true = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
    (score,) = score_spans("m", predicted, true, ["da"] * len(true), seen_languages=["da"]).seen
    for name, by_seqeval in (
        ("span_f1", f1_score),
        ("span_precision", precision_score),
        ("span_recall", recall_score),
    ):
        wanted = by_seqeval(true, predicted, mode="strict", scheme=IOB2, zero_division=0)
        assert score.values[name] == pytest.approx(wanted, rel=4 * EPS, abs=0)
    low, high = score.interval
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize(
    ("predicted", "true", "counts"),
    [
        pytest.param(["B-A", "I-A"], ["B-A", "I-A"], (1, 1, 1), id="right"),
        pytest.param(["B-A", "O"], ["B-A", "I-A"], (0, 1, 1), id="another end"),
        pytest.param(["B-B", "I-B"], ["B-A", "I-A"], (0, 1, 1), id="another type"),
        pytest.param(["I-A", "I-A"], ["B-A", "I-A"], (0, 0, 1), id="it never began"),
        pytest.param(["B-A", "B-A"], ["B-A", "I-A"], (0, 2, 1), id="begun twice"),
        pytest.param(["O", "O"], ["O", "O"], (0, 0, 0), id="nothing"),
    ],
)
def test_counts_by_hand(predicted: list[str], true: list[str], counts: tuple[int, ...]) -> None:
    assert span_counts([predicted], [true]).tolist() == [list(counts)]


def test_languages_are_scored_apart() -> None:
    true = [["B-A", "I-A", "O"], ["B-A"], ["O", "O"], ["B-B"]]
    predicted = [["B-A", "I-A", "O"], ["O"], ["B-A", "O"], ["B-B"]]
    scores = score_spans("m", predicted, true, ["da", "da", "da", "sw"], seen_languages=["da"])
    (da,), (sw,) = scores.seen, scores.unseen
    assert (da.language, da.num_samples, sw.language, sw.num_samples) == ("da", 3, "sw", 1)
    # one right of two predicted and two true; four tags of six
    assert list(da.values.values()) == [0.5, 4 / 6, 0.5, 0.5]
    assert list(sw.values.values()) == [1.0, 1.0, 1.0, 1.0]
    assert sw.interval == (1.0, 1.0)


def test_the_interval_covers_what_resampling_gives() -> None:
    """Half of 400 sentences are right: F1 of a resample is its share of these, nearly normal."""
    true = [["B-A"]] * 400
    predicted = [["B-A"] if row % 2 else ["B-B"] for row in range(400)]
    (score,) = score_spans("m", predicted, true, ["da"] * 400, seen_languages=["da"]).seen
    assert score.values["span_f1"] == 0.5
    low, high = score.interval
    spread = 1.96 * np.sqrt(0.25 / 400)
    # a percentile of 1000 draws has a standard error of about an eighth of this spread
    assert abs(low - (0.5 - spread)) < spread / 2
    assert abs(high - (0.5 + spread)) < spread / 2
    assert score_spans("m", predicted, true, ["da"] * 400, seen_languages=["da"]).seen == (score,)


@pytest.mark.parametrize(
    ("predicted", "true", "languages", "words"),
    [
        ([["O"]], [["O", "O"]], ["da"], "got 1 and 1 sentences, 1 languages, or other lengths"),
        ([["O"]], [["O"]], ["da", "da"], "got 1 and 1 sentences, 2 languages"),
        ([], [], [], "score_languages: there must be at least one test sample, got none for 'm'"),
    ],
)
def test_bad_input(
    predicted: list[list[str]], true: list[list[str]], languages: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        score_spans("m", predicted, true, languages, seen_languages=["da"])
