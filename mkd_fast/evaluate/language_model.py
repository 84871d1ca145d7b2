"""Language models for each language: KL to the teacher, perplexity, and more of causal ones.

Perplexity is of tokens, so it compares models of one vocabulary. Nats per byte, the same sum over
the bytes of UTF-8 that the tokens stand for, compare models of any.

Shapes: N samples, C columns of sums.
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
    sums_NC: FloatArray,
    languages: Sequence[str],
    *,
    seen_languages: Collection[str],
) -> ModelScores:
    """KL to the teacher and perplexity, exp of the mean cross-entropy, sorted by language.

    A language without a token is left out.

    Args:
        model: Name under which the scores are reported.
        sums_NC: Of each sample, over its tokens: KL to the teacher, cross-entropy, and how many;
            of causal models also how often the teacher finds the same token likeliest, and bytes.
        languages: Of each sample, length N.
        seen_languages: Languages of the training data. One without a test sample has no score.

    Raises:
        ValueError: There is no token in any language.
    """
    scores = []
    for language in sorted(set(languages)):
        rows_NC = sums_NC[[row for row, name in enumerate(languages) if name == language]]
        kl, cross_entropy, num_tokens, *of_causal = rows_NC.sum(0).tolist()
        if not num_tokens:
            continue
        values = {
            "kl_to_teacher": kl / num_tokens,
            "perplexity": float(np.exp(cross_entropy / num_tokens)),
        }
        if of_causal:
            num_agreed, num_bytes = of_causal
            values["nats_per_byte"] = cross_entropy / max(num_bytes, 1)
            values["top1_agreement"] = num_agreed / num_tokens
        interval = bootstrap_interval(rows_NC, _mean_kl)
        scores.append(LanguageScore(language, len(rows_NC), values, interval))
    if not scores:
        raise checks.no_token_to_score(model)
    return grouped(model, scores, seen_languages)


def _mean_kl(sums_RC: FloatArray) -> FloatArray:
    mean: FloatArray = sums_RC[:, 0] / np.maximum(sums_RC[:, 2], 1)
    return mean
