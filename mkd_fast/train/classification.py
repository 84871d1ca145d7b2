"""Tasks of classification: of whole texts, and of the words in them."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from mkd_fast import progress
from mkd_fast.data import (
    HubSource,
    LabelledText,
    TaggedText,
    Text,
    TokenisedText,
    TokenisedWords,
    load_tagged,
    load_text,
    tokenise,
    tokenise_words,
)
from mkd_fast.data.batches import EvaluationBatches
from mkd_fast.data.feeding import PLAIN, Feeding
from mkd_fast.data.tagged import OUTSIDE
from mkd_fast.evaluate.metrics import Predictions, predict, score_languages
from mkd_fast.evaluate.scores import (
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Measure,
    ModelScores,
)
from mkd_fast.evaluate.spans import score_spans, span_counts
from mkd_fast.student import TokenMap
from mkd_fast.train import models
from mkd_fast.train.task_kinds import Examined, KindOfModel, Teaching
from mkd_fast.train.tasks import DistillTask, LabelTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Classification(KindOfModel):
    """A task whose models are classifiers of ``label_names``; what they classify is a subclass's.

    Args:
        data: as of ``KindOfModel``.
    """

    measures: ClassVar[tuple[Measure, ...]]

    @abstractmethod
    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> Text:
        """The text of the task."""

    @abstractmethod
    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> TokenisedText:
        """The text with its labels."""

    @abstractmethod
    def what_is_lost(self, tokens: TokenisedText) -> str | None:
        """Labels that no token has."""

    @abstractmethod
    def score_predictions(
        self,
        name: str,
        found: Predictions,
        text: Text,
        tokens: TokenisedText,
        seen_languages: Collection[str],
    ) -> ModelScores:
        """Scores for each language of what was predicted for a tokenised text."""

    @abstractmethod
    def outcomes(
        self, found: Predictions, text: Text, tokens: TokenisedText
    ) -> dict[str, npt.NDArray[np.int64]]:
        """What each sample adds to the headline score, by name; [N] each."""

    def labels_of(self, name: str) -> tuple[str, ...]:
        """The labels that a classifier's config names."""
        return models.labels_of(name)

    def load(
        self, name: str, label_names: tuple[str, ...], *, new_head_seed: int | None = None
    ) -> "PreTrainedModel":
        """A classifier of these labels."""
        return models.load_classifier(
            name, label_names, seed=new_head_seed or 0, auto_class=self.auto_class
        )

    def student_text(
        self,
        text: Text,
        teacher_text: TokenisedText,
        tokenizer: "PreTrainedTokenizerFast",
        token_map: TokenMap | None,
    ) -> TokenisedText:
        """The text by the student's own tokenizer."""
        return self.tokenise(text, tokenizer)

    def label_task(
        self, tokens: TokenisedText, batch_size: int, seed: int, feeding: Feeding = PLAIN
    ) -> LabelTask:
        """Cross-entropy."""
        return LabelTask(tokens, batch_size, seed, feeding=feeding)

    def distill_task(
        self,
        tokens: TokenisedText,
        batch_size: int,
        seed: int,
        teaching: Teaching,
        feeding: Feeding = PLAIN,
    ) -> DistillTask:
        """``kd_loss``."""
        return DistillTask(
            tokens,
            batch_size,
            seed,
            teacher_text=teaching.teacher_text,
            cache=teaching.cache,
            spec=teaching.spec,
            matched_layers=teaching.matched_layers,
            schedule=teaching.schedule,
            feeding=feeding,
        )

    def score(self, examined: Examined) -> ModelScores:
        """What the model predicts for the text by its own tokenizer."""
        tokens = self.tokenise(examined.text, models.load_tokenizer(examined.folder))
        lost = self.what_is_lost(tokens)
        if lost and examined.folder == examined.teacher_folder:
            progress.say(f"data: in the test, {lost}")
        batches = EvaluationBatches(tokens, examined.batch_size)
        with progress.bar(f"evaluate {examined.name}", len(tokens)) as bar:
            shown = bar.over(batches, lambda batch: len(batch.labels))
            found = predict(examined.model, shown, examined.device)
        text, seen = examined.text, examined.seen
        return self.score_predictions(examined.name, found, text, tokens, seen)


@dataclass(frozen=True)
class SequenceClassification(Classification):
    """A label for each text; accuracy and macro-F1."""

    auto_class = "AutoModelForSequenceClassification"
    measures = SEQUENCE_CLASSIFICATION

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> LabelledText:
        """Columns ``text``, ``label``, ``language``."""
        return load_text(source, label_names=label_names)

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> TokenisedText:
        """A label a sample."""
        assert isinstance(text, LabelledText), "read() made it"
        data = self.data
        return tokenise(text, tokenizer, max_length=data.max_length, text_prefix=data.text_prefix)

    def what_is_lost(self, tokens: TokenisedText) -> None:
        """Nothing: a text that is cut keeps its label."""

    def score_predictions(
        self,
        name: str,
        found: Predictions,
        text: Text,
        tokens: TokenisedText,
        seen_languages: Collection[str],
    ) -> ModelScores:
        """Of every sample's class."""
        return score_languages(
            name, found.predicted, found.true, text.languages, seen_languages=seen_languages
        )

    def outcomes(
        self, found: Predictions, text: Text, tokens: TokenisedText
    ) -> dict[str, npt.NDArray[np.int64]]:
        """One name, "correct": 1 where the class is right, else 0."""
        return {"correct": (found.predicted == found.true).astype(np.int64)}


@dataclass(frozen=True)
class TokenClassification(Classification):
    """A tag in IOB2 for each word, learnt at its first piece; span F1."""

    auto_class = "AutoModelForTokenClassification"
    measures = TOKEN_CLASSIFICATION
    starts_at_label_shares = True  # most words are in no entity

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> TaggedText:
        """Columns ``tokens``, ``tags``, ``language``."""
        text = load_tagged(source, label_names=label_names, entity_types=self.data.entity_types)
        if text.num_other_types:
            types = " ".join(self.data.entity_types)
            progress.say(
                f"data: {text.num_other_types:,} words in entities of other types than {types} "
                f"count as {OUTSIDE}"
            )
        if text.num_stray:
            progress.say(
                f"data: WARNING, {text.num_stray:,} tags I- continue no entity: in strict IOB2, "
                "by which models are scored, they belong to none"
            )
        return text

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> TokenisedWords:
        """A label at the first piece of each word."""
        assert isinstance(text, TaggedText), "read() made it"
        data = self.data
        return tokenise_words(
            text, tokenizer, max_length=data.max_length, text_prefix=data.text_prefix
        )

    def what_is_lost(self, tokens: TokenisedText) -> str | None:
        """How many words have no piece within ``max_length``."""
        assert isinstance(tokens, TokenisedWords), "tokenise() made them"
        if not tokens.num_lost:
            return None
        return (
            f"{tokens.num_lost:,} of {tokens.num_words:,} words have no piece within "
            f"data.max_length = {self.data.max_length}: no tag of theirs is learnt, and "
            f"{OUTSIDE} is what is predicted for them"
        )

    def score_predictions(
        self,
        name: str,
        found: Predictions,
        text: Text,
        tokens: TokenisedText,
        seen_languages: Collection[str],
    ) -> ModelScores:
        """Of all words of every sentence, those that have no piece included."""
        assert isinstance(text, TaggedText), "read() made it"
        predicted = self._tags(found, text, tokens)
        return score_spans(
            name, predicted, text.tag_rows, text.languages, seen_languages=seen_languages
        )

    def outcomes(
        self, found: Predictions, text: Text, tokens: TokenisedText
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Entities that were found, made up and missed: "tp", "fp", "fn"."""
        assert isinstance(text, TaggedText), "read() made it"
        right, predicted, true = span_counts(self._tags(found, text, tokens), text.tag_rows).T
        return {"tp": right, "fp": predicted - right, "fn": true - right}

    def _tags(self, found: Predictions, text: TaggedText, tokens: TokenisedText) -> list[list[str]]:
        """The tag predicted for each word."""
        assert isinstance(tokens, TokenisedWords), "tokenise() made them"
        predicted = [[OUTSIDE] * len(words) for words in text.sentences]
        tags = iter(found.predicted.tolist())
        for row, names in enumerate(predicted):
            for word in tokens.word_numbers(row).tolist():
                names[word] = text.label_names[next(tags)]
        return predicted
