"""KL to the teacher and perplexity for each language, in nats per token that was to be found.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import evaluate as checks
from mkd_fast.evaluate.metrics import bootstrap_interval
from mkd_fast.evaluate.scores import LanguageScore, ModelScores, grouped

FloatArray = npt.NDArray[np.float64]


def score_language_model(
    model: str,
    sums_N3: FloatArray,
    languages: Sequence[str],
    *,
    seen_languages: Collection[str],
) -> ModelScores:
    """KL to the teacher and perplexity, exp of the mean cross-entropy, sorted by language.

    A language without a token is left out.

    Args:
        model: Name under which the scores are reported.
        sums_N3: Of each sample, over its tokens: KL to the teacher, cross-entropy, and how many.
        languages: Of each sample, length N.
        seen_languages: Languages of the training data. One without a test sample has no score.

    Raises:
        ValueError: There is no token in any language.
    """
    scores = []
    for language in sorted(set(languages)):
        rows_N3 = sums_N3[[row for row, name in enumerate(languages) if name == language]]
        kl, cross_entropy, num_tokens = rows_N3.sum(0).tolist()
        if not num_tokens:
            continue
        values = {
            "kl_to_teacher": kl / num_tokens,
            "perplexity": float(np.exp(cross_entropy / num_tokens)),
        }
        interval = bootstrap_interval(rows_N3, _mean_kl)
        scores.append(LanguageScore(language, len(rows_N3), values, interval))
    if not scores:
        raise checks.no_token_to_score(model)
    return grouped(model, scores, seen_languages)


def _mean_kl(sums_R3: FloatArray) -> FloatArray:
    mean: FloatArray = sums_R3[:, 0] / np.maximum(sums_R3[:, 2], 1)
    return mean
