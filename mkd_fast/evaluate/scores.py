"""Scores: what a task is measured by, a model's values for each language, and their means.

A task is scored by several measures, the first of which is its headline: it has an interval, and
plots show it. A mean over languages is unweighted: a language counts once, however many test
samples it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mkd_fast.checks import evaluate as checks


@dataclass(frozen=True)
class Measure:
    """A number by which a task is scored.

    Attributes:
        name: Its column in CSV files and its key in JSON.
        title: What tables and plots call it.
        is_share: 0 to 1, and shown in per cent; else shown as it is, and lower is better.
    """

    name: str
    title: str
    is_share: bool = True


SEQUENCE_CLASSIFICATION = (Measure("accuracy", "accuracy"), Measure("macro_f1", "macro-F1"))
TOKEN_CLASSIFICATION = (
    Measure("span_f1", "span F1"),
    Measure("token_accuracy", "token accuracy"),
    Measure("span_precision", "span precision"),
    Measure("span_recall", "span recall"),
)
LANGUAGE_MODEL = (
    Measure("kl_to_teacher", "KL to the teacher in nats", is_share=False),
    Measure("perplexity", "perplexity", is_share=False),
)
CAUSAL_LANGUAGE_MODEL = (
    *LANGUAGE_MODEL,
    Measure("nats_per_byte", "nats per byte", is_share=False),
    Measure("top1_agreement", "agreement with the teacher"),
)
# one whose measures are some of another's stands behind it
TASKS = (
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    CAUSAL_LANGUAGE_MODEL,
    LANGUAGE_MODEL,
)


@dataclass(frozen=True)
class LanguageScore:
    """One model's values on the test samples of one language.

    Attributes:
        language: Its name.
        num_samples: Test samples in it.
        values: By the names of the task's measures, in their order.
        interval: The 95 % interval of the first of them.
    """

    language: str
    num_samples: int
    values: Mapping[str, float]
    interval: tuple[float, float]


@dataclass(frozen=True)
class MeanScore:
    """Unweighted means over languages, by the names of the measures."""

    num_languages: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class ModelScores:
    """One model's scores: languages it had training data for, and languages it had none for."""

    model: str
    seen: tuple[LanguageScore, ...]
    unseen: tuple[LanguageScore, ...]

    @property
    def seen_mean(self) -> MeanScore | None:
        """Mean over the seen languages; None where there are none."""
        return mean_score(self.seen)

    @property
    def unseen_mean(self) -> MeanScore | None:
        """Mean over the unseen languages; None where there are none."""
        return mean_score(self.unseen)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What the model was scored by; the headline first."""
        return measures_of(name for score in (*self.seen, *self.unseen) for name in score.values)

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain values that `json` writes and `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelScores:
        """The scores that `to_dict` wrote.

        Raises:
            ValueError: A field is missing or unknown.
        """
        try:
            seen, unseen = (tuple(map(_language_score, fields[g])) for g in ("seen", "unseen"))
            return cls(fields["model"], seen, unseen)
        except (KeyError, TypeError) as error:
            raise checks.malformed_scores(error) from error


def measures_of(names: Iterable[str]) -> tuple[Measure, ...]:
    """The measures of the task whose measures' names these are, whatever stands between them."""
    found = set(names)
    return next((task for task in TASKS if found.issuperset(m.name for m in task)), ())


def grouped(
    model: str, scores: Sequence[LanguageScore], seen_languages: Collection[str]
) -> ModelScores:
    """One model's scores, with the languages that it was trained on apart."""
    return ModelScores(
        model,
        seen=tuple(score for score in scores if score.language in seen_languages),
        unseen=tuple(score for score in scores if score.language not in seen_languages),
    )


def mean_score(scores: Sequence[LanguageScore]) -> MeanScore | None:
    """Mean over languages, each counted once; None where there are no languages."""
    if not scores:
        return None
    return MeanScore(
        len(scores), {name: fmean(s.values[name] for s in scores) for name in scores[0].values}
    )


def _language_score(fields: Mapping[str, Any]) -> LanguageScore:
    low, high = fields["interval"]
    return LanguageScore(**{**fields, "interval": (low, high)})
