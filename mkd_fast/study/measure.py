"""How well a model does on a part of the text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn
from torch.nn import functional

from mkd_fast.checks import study as checks
from mkd_fast.data import LabelledText, TaggedText
from mkd_fast.data.batches import Batch, EvaluationBatches
from mkd_fast.data.plain import RunningText
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.evaluate.metrics import Predictions, predict
from mkd_fast.evaluate.scores import LanguageScore
from mkd_fast.study.shared import Part, Shared
from mkd_fast.study.spoken import METRICS, listen
from mkd_fast.train.classification import Classification
from mkd_fast.train.device import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Measured(Protocol):
    """What a model said of a part of the text; ``Classified``, or ``spoken.Spoken``."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy with the labels, in nats."""

    @property
    def score(self) -> float:
        """The headline score, all languages taken together."""

    def by_language(self) -> dict[str, dict[str, float]]:
        """Scores of each language, and how many samples it has."""

    def correct(self) -> dict[str, Any]:
        """For each language what each of its samples adds to the score, in their order."""


@dataclass(frozen=True, eq=False)
class Classified:
    """What a classifier said of a part of the text.

    Args:
        found: predicted and true classes.
        loss: mean cross-entropy with the labels, in nats.
        part: the text.
        task: its task.
    """

    found: Predictions
    loss: float
    part: Part
    task: Classification

    @property
    def score(self) -> float:
        """The headline score, all languages taken together."""
        (whole,) = self._scores(replace(self._text, languages=["all"] * len(self.part)))
        return next(iter(whole.values.values()))

    def by_language(self) -> dict[str, dict[str, float]]:
        """Scores of each language, and how many samples it has."""
        return {
            score.language: {**score.values, "n": score.num_samples}
            for score in self._scores(self._text)
        }

    def correct(self) -> dict[str, Any]:
        """For each language what each of its samples adds to the score, in their order.

        Where that is a bit, whether a class was right, they are written as hexadecimal digits, the
        first sample in the highest bit of the first byte; else as lists of counts by name.
        """
        outcomes = self.task.outcomes(self.found, self.part.text, self.part.tokens)
        written: dict[str, Any] = {}
        for language, rows in self.part.rows_by_language().items():
            if "correct" in outcomes:
                bits = outcomes["correct"][rows].astype(bool)
                written[language] = np.packbits(bits).tobytes().hex()
            else:
                written[language] = {name: of[rows].tolist() for name, of in outcomes.items()}
        return written

    @property
    def _text(self) -> LabelledText | TaggedText:
        text = self.part.text
        assert not isinstance(text, RunningText), "it has classes"
        return text

    def _scores(self, text: LabelledText | TaggedText) -> tuple[LanguageScore, ...]:
        scored = self.task.score_predictions(
            "", self.found, text, self.part.tokens, text.languages_present
        )
        return scored.seen


def headline(shared: Shared) -> str:
    """The name of the score that a study is about."""
    if isinstance(shared.kind, Classification):
        return shared.kind.measures[0].name
    return METRICS[shared.config.task.kind]


def chance(shared: Shared) -> float:
    """What a model scores that reads nothing.

    Classes guessed all alike; or, of tokens, always the one that training text has most often to be
    said: a mean over languages.
    """
    if headline(shared) == "accuracy":
        return 1 / len(shared.corpus.train.label_names)
    if isinstance(shared.kind, Classification):
        return 0.0
    labels, part = shared.train_part.tokens.labels, shared.test_part
    commonest = np.bincount(labels[labels != NO_LABEL]).argmax()
    return float(np.mean([(of == commonest).mean() for of in part.labels_by_language().values()]))


class _Summing(nn.Module):
    """A model that adds up its cross-entropy with the labels of what it is shown."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model, self.training = model, model.training
        self._loss, self._num_labels = 0.0, 0

    @property
    def mean_loss(self) -> float:
        return self._loss / max(self._num_labels, 1)

    def noting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the labels of the one that was handed out last count."""
        for batch in batches:
            self._labels = batch.labels.flatten()
            yield batch

    def forward(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        logits = out.logits.float().flatten(0, -2)
        labels = self._labels.to(logits.device)
        loss = float(functional.cross_entropy(logits, labels, reduction="sum"))
        if not np.isfinite(loss):
            raise checks.logits_not_finite()
        self._loss += loss
        self._num_labels += int((self._labels != NO_LABEL).sum())
        return out


def measure(model: "PreTrainedModel", part: Part, shared: Shared) -> Measured:
    """Run a model over a part of the text, in the precision of the training.

    Training mode and random state are as they were afterwards.

    Raises:
        FloatingPointError: its logits are not finite.
    """
    recipe, batch_size = shared.recipe, shared.recipe.evaluate.batch_size
    with autocast(shared.device, recipe.train.precision):
        if not isinstance(shared.kind, Classification):
            return listen(model, part, headline(shared), batch_size, shared.token_map)
        summing = _Summing(model)
        batches = EvaluationBatches(part.tokens, batch_size)
        found = predict(summing, summing.noting(batches), shared.device)
    return Classified(found, summing.mean_loss, part, shared.kind)


def size_of(model: "PreTrainedModel") -> dict[str, int]:
    """Parameters, tied ones once, and their bytes."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "bytes": sum(parameter.nbytes for parameter in parameters),
    }
