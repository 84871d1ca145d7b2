import math
import re

import numpy as np
import pytest

from mkd_fast.evaluate.language_model import score_language_model

# KL, cross-entropy and number of tokens of four samples
SUMS = np.array([[1.0, 4.0, 2.0], [2.0, 8.0, 4.0], [0.5, 3.0, 1.0], [0.0, 0.0, 0.0]])


def test_means_are_over_the_tokens_of_a_language() -> None:
    scores = score_language_model("m", SUMS, ["en", "en", "sw", "fi"], seen_languages=["en"])
    (en,), (sw,) = scores.seen, scores.unseen
    assert (en.language, en.num_samples, sw.language) == ("en", 2, "sw")
    assert en.values == {"kl_to_teacher": 0.5, "perplexity": math.exp(2.0)}
    assert sw.values == {"kl_to_teacher": 0.5, "perplexity": math.exp(3.0)}
    assert en.interval == sw.interval == (0.5, 0.5)


def test_the_interval_is_of_the_samples() -> None:
    sums = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]] * 50)
    (score,) = score_language_model("m", sums, ["en"] * 100, seen_languages=["en"]).seen
    low, high = score.interval
    assert low < score.values["kl_to_teacher"] == 0.5 < high
    assert score_language_model("m", sums, ["en"] * 100, seen_languages=["en"]).seen == (score,)


@pytest.mark.parametrize("sums", [SUMS[3:], SUMS[:0]], ids=["no token", "no sample"])
def test_nothing_to_score_is_an_error(sums: np.ndarray) -> None:
    words = "must have a token to be found that the student's vocabulary has, got none for 'm'."
    with pytest.raises(ValueError, match=re.escape(words)):
        score_language_model("m", sums, ["en"] * len(sums), seen_languages=["en"])
