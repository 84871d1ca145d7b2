"""How well a model does on a part of the text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from mkd_fast.checks import study as checks
from mkd_fast.data import LabelledText, TaggedText
from mkd_fast.data.batches import Batch, EvaluationBatches
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.evaluate.metrics import Predictions, predict
from mkd_fast.evaluate.scores import LanguageScore
from mkd_fast.study.shared import Part, Shared
from mkd_fast.train.classification import Classification
from mkd_fast.train.device import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Measured:
    """What a model said of a part of the text.

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
        together: Any = self.part.text
        together = replace(together, languages=["all"] * len(self.part))
        (whole,) = self._scores(together)
        return next(iter(whole.values.values()))

    def by_language(self) -> dict[str, dict[str, float]]:
        """Scores of each language, and how many samples it has."""
        return {
            score.language: {**score.values, "n": score.num_samples}
            for score in self._scores(self.part.text)
        }

    def correct(self) -> dict[str, Any]:
        """For each language what each of its samples adds to the score, in their order.

        Where that is a bit, whether a class was right, they are written as hexadecimal digits, the
        first sample in the highest bit of the first byte; else as lists of counts by name.
        """
        outcomes = self.task.outcomes(self.found, self.part.text, self.part.tokens)
        written: dict[str, Any] = {}
        for language, rows in rows_by_language(self.part.text).items():
            if "correct" in outcomes:
                bits = outcomes["correct"][rows].astype(bool)
                written[language] = np.packbits(bits).tobytes().hex()
            else:
                written[language] = {name: of[rows].tolist() for name, of in outcomes.items()}
        return written

    def _scores(self, text: LabelledText | TaggedText) -> tuple[LanguageScore, ...]:
        scored = self.task.score_predictions(
            "", self.found, text, self.part.tokens, text.languages_present
        )
        return scored.seen


def headline(shared: Shared) -> str:
    """The name of the score that a study is about."""
    return shared.task.measures[0].name


def rows_by_language(text: LabelledText | TaggedText) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each language, in the order of the text."""
    languages = np.array(text.languages)
    return {name: np.flatnonzero(languages == name) for name in text.languages_present}


def groups_by_language(text: LabelledText | TaggedText) -> dict[str, list[str]]:
    """For each language, what each sample is not independent of; itself where nothing is known."""
    groups = text.groups
    return {
        language: [str(row) if groups is None else groups[row] for row in rows.tolist()]
        for language, rows in rows_by_language(text).items()
    }


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
    recipe, summing = shared.recipe, _Summing(model)
    batches = EvaluationBatches(part.tokens, recipe.evaluate.batch_size)
    with autocast(shared.device, recipe.train.precision):
        found = predict(summing, summing.noting(batches), shared.device)
    return Measured(found, summing.mean_loss, part, shared.task)


def size_of(model: "PreTrainedModel") -> dict[str, int]:
    """Parameters, tied ones once, and their bytes."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "bytes": sum(parameter.nbytes for parameter in parameters),
    }
