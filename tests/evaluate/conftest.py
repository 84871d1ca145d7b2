from collections.abc import Callable

import pytest

from mkd_fast.evaluate.metrics import LanguageScore, ModelScores
from mkd_fast.evaluate.report import ModelResult, ParameterCounts

SEEN = ("en", "de", "es", "ru", "zh-CN")
UNSEEN = ("fr", "it", "nl", "pl", "ro", "hu", "el", "th", "ko")


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
            tuple(LanguageScore(name, 200, seen_accuracy, seen_accuracy / 2) for name in seen),
            tuple(LanguageScore(name, 80, unseen_accuracy, unseen_accuracy / 2) for name in unseen),
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
