"""Span F1 for each language: an entity counts if its type and both its ends are right.

Entities are those of strict IOB2, as ``seqeval`` finds them: one begins with B-, and an I- that
continues none of its type belongs to none. Precision, recall and F1 are of all entities of a
language together; of nothing found and nothing to be found they are 0.

Shapes: N sentences, R resamples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import evaluate as checks
from mkd_fast.evaluate.metrics import bootstrap_interval
from mkd_fast.evaluate.scores import LanguageScore, ModelScores, grouped

Tags = Sequence[Sequence[str]]
FloatArray = npt.NDArray[np.float64]


def score_spans(
    model: str,
    predicted: Tags,
    true: Tags,
    languages: Sequence[str],
    *,
    seen_languages: Collection[str],
) -> ModelScores:
    """Span F1, precision, recall and the share of right tags for each language, sorted by name.

    Args:
        model: Name under which the scores are reported.
        predicted: A tag for each word, N sentences.
        true: Likewise.
        languages: Language of each sentence, length N.
        seen_languages: Languages of the training data. One without a test sentence has no score.

    Raises:
        ValueError: Numbers of sentences or words differ, or there are no sentences.
    """
    lengths = [[len(tags) for tags in rows] for rows in (predicted, true)]
    if lengths[0] != lengths[1] or len(true) != len(languages):
        raise checks.tags_differ_in_number(len(predicted), len(true), len(languages))
    if not languages:
        raise checks.nothing_to_score(model)
    counts_N3 = span_counts(predicted, true)
    scores = []
    for language in sorted(set(languages)):
        rows = [row for row, name in enumerate(languages) if name == language]
        pairs = [(a, b) for row in rows for a, b in zip(predicted[row], true[row], strict=True)]
        precision, recall, f1 = _shares(counts_N3[rows].sum(0)).tolist()
        values = {
            "span_f1": f1,
            "token_accuracy": sum(a == b for a, b in pairs) / max(len(pairs), 1),
            "span_precision": precision,
            "span_recall": recall,
        }
        interval = bootstrap_interval(counts_N3[rows], lambda sums_R3: _shares(sums_R3)[:, 2])
        scores.append(LanguageScore(language, len(rows), values, interval))
    return grouped(model, scores, seen_languages)


def span_counts(predicted: Tags, true: Tags) -> npt.NDArray[np.int64]:
    """Entities that are right, predicted, and true, in each sentence; int64 [N, 3]."""
    from seqeval.scheme import IOB2, Entities

    of_both = (Entities([list(tags) for tags in rows], IOB2).entities for rows in (predicted, true))
    counts = []
    for found, wanted in zip(*of_both, strict=True):
        ours, theirs = ({entity.to_tuple()[1:] for entity in side} for side in (found, wanted))
        counts.append((len(ours & theirs), len(ours), len(theirs)))
    return np.array(counts, np.int64).reshape(-1, 3)


def _shares(counts_R3: npt.NDArray[np.int64]) -> FloatArray:
    """Precision, recall and F1, [..., 3], of the numbers right, predicted and true, [..., 3]."""
    right, predicted, true = (counts_R3[..., part].astype(np.float64) for part in range(3))
    of_both = np.stack([right / np.maximum(predicted, 1), right / np.maximum(true, 1)], -1)
    f1 = 2 * right / np.maximum(predicted + true, 1)
    shares: FloatArray = np.concatenate([of_both, f1[..., None]], -1)
    return shares
