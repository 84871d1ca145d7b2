import json
import re

import pytest

from mkd_fast.evaluate.scores import (
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    LanguageScore,
    ModelScores,
    grouped,
    mean_score,
    measures_of,
)


def score(language: str, num_samples: int, accuracy: float) -> LanguageScore:
    values = {"accuracy": accuracy, "macro_f1": accuracy / 2}
    return LanguageScore(language, num_samples, values, (0.0, 1.0))


def test_a_mean_counts_each_language_once() -> None:
    mean = mean_score([score("en", 999, 1.0), score("de", 1, 0.0)])
    assert mean is not None
    assert (mean.num_languages, mean.values) == (2, {"accuracy": 0.5, "macro_f1": 0.25})


def test_a_group_without_languages_has_no_mean() -> None:
    scores = grouped("teacher", [score("en", 1, 1.0)], seen_languages=["en", "fr"])
    assert (scores.unseen, scores.unseen_mean) == ((), None)
    assert scores.seen_mean is not None


def test_measures_are_known_by_their_names() -> None:
    assert measures_of(["language", "accuracy", "macro_f1"]) == SEQUENCE_CLASSIFICATION
    names = [measure.name for measure in TOKEN_CLASSIFICATION]
    assert measures_of(names) == TOKEN_CLASSIFICATION
    assert measures_of(["accuracy"]) == ()
    assert ModelScores("x", (score("en", 1, 1.0),), ()).measures == SEQUENCE_CLASSIFICATION


def test_scores_survive_json() -> None:
    scores = ModelScores("trained", (score("en", 3, 0.5),), (score("zh-CN", 1, 1 / 3),))
    assert ModelScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        pytest.param({"model": "x", "seen": []}, "KeyError: 'unseen'", id="field missing"),
        pytest.param(
            {
                "model": "x",
                "seen": [{"language": "en", "interval": [0, 1], "f2": 1.0}],
                "unseen": [],
            },
            "unexpected keyword argument 'f2'",
            id="field unknown",
        ),
        pytest.param(
            {"model": "x", "seen": [{"language": "en", "accuracy": 1.0}], "unseen": []},
            "KeyError: 'interval'",
            id="as an older version wrote them",
        ),
        pytest.param([], "TypeError: list indices must be", id="another kind of JSON"),
    ],
)
def test_malformed_scores_are_refused(fields: dict[str, object], fault: str) -> None:
    expected = "^ModelScores.from_dict: scores must have the fields model, seen and unseen .*got .*"
    with pytest.raises(ValueError, match=expected + re.escape(fault)) as error:
        ModelScores.from_dict(fields)
    assert str(error.value).endswith("Delete the scores file and evaluate again.")
