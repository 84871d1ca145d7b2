from collections.abc import Callable
from dataclasses import replace

import pytest

from mkd_fast.evaluate.metrics import wilson_interval
from mkd_fast.evaluate.report import ModelResult, ParameterCounts
from mkd_fast.evaluate.scores import LanguageScore, ModelScores

SEEN = ("en", "de", "es", "ru", "zh-CN")
UNSEEN = ("fr", "it", "nl", "pl", "ro", "hu", "el", "th", "ko")


def classified(language: str, num_samples: int, accuracy: float) -> LanguageScore:
    values = {"accuracy": accuracy, "macro_f1": accuracy / 2}
    return LanguageScore(language, num_samples, values, wilson_interval(accuracy, num_samples))


@pytest.fixture
def make_result() -> Callable[..., ModelResult]:
    """One model's result; every language of a group has the group's accuracy."""

    def make(
        model: str,
        seen_accuracy: float = 0.75,
        unseen_accuracy: float = 0.5,
        *,
        seen: tuple[str, ...] = SEEN,
        unseen: tuple[str, ...] = UNSEEN,
        train_seconds: float | None = 61.24,
    ) -> ModelResult:
        scores = ModelScores(
            model,
            tuple(classified(name, 200, seen_accuracy) for name in seen),
            tuple(classified(name, 80, unseen_accuracy) for name in unseen),
        )
        counts = ParameterCounts(embeddings=7_000_000, layers=10_600_000, head=40_000)
        return ModelResult(scores, counts, size_bytes=72_340_000, train_seconds=train_seconds)

    return make


@pytest.fixture
def four_results(make_result: Callable[..., ModelResult]) -> list[ModelResult]:
    return [
        make_result("teacher", 0.86, 0.655),
        make_result("copied, untrained", 0.05, 0.0, train_seconds=None),
        make_result("trained student", 1.0, 0.49),
        make_result("scratch", 0.75, 0.14),
    ]


@pytest.fixture
def tagged_result(make_result: Callable[..., ModelResult]) -> ModelResult:
    """One model's result on a task of token classification."""
    values = {"span_f1": 0.7, "token_accuracy": 0.95, "span_precision": 0.8, "span_recall": 0.62}
    score = LanguageScore("da", 40, values, (0.65, 0.75))
    return replace(make_result("tagger"), scores=ModelScores("tagger", (score,), ()))
