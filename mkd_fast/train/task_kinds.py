"""What a recipe's task decides: how its text is read and tokenised, its models, and its scores.

``[task] kind`` names one; stages ask it and do not look at its name.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
from mkd_fast.data.tagged import OUTSIDE
from mkd_fast.evaluate.metrics import Predictions, score_languages
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.evaluate.spans import score_spans
from mkd_fast.train.config import Config, DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TaskKind(Protocol):
    """A task of classification, of whole texts or of words in them."""

    @property
    def auto_class(self) -> str:
        """The class of ``transformers`` whose ``from_pretrained`` loads a model of the task."""
        ...

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> Text:
        """Text of the task; without ``label_names`` it is training text, which defines them."""
        ...

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> TokenisedText:
        """The text in a model's token ids, as long as ``[data]`` allows."""
        ...

    def what_is_lost(self, tokens: TokenisedText) -> str | None:
        """A line for people about labels that the tokens do not have; None where all are there."""
        ...

    def score(
        self,
        model: str,
        found: Predictions,
        text: Text,
        tokens: TokenisedText,
        seen_languages: Collection[str],
    ) -> ModelScores:
        """Scores for each language of what a model predicted for a tokenised text."""
        ...


@dataclass(frozen=True)
class SequenceClassification:
    """A label for each text; accuracy and macro-F1."""

    data: DataConfig
    auto_class = "AutoModelForSequenceClassification"

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

    def score(
        self,
        model: str,
        found: Predictions,
        text: Text,
        tokens: TokenisedText,
        seen_languages: Collection[str],
    ) -> ModelScores:
        """Of every sample's class."""
        return score_languages(
            model, found.predicted, found.true, text.languages, seen_languages=seen_languages
        )


@dataclass(frozen=True)
class TokenClassification:
    """A tag in IOB2 for each word, learnt at its first piece; span F1."""

    data: DataConfig
    auto_class = "AutoModelForTokenClassification"

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

    def score(
        self,
        model: str,
        found: Predictions,
        text: Text,
        tokens: TokenisedText,
        seen_languages: Collection[str],
    ) -> ModelScores:
        """Of all words of every sentence, those that have no piece included."""
        assert isinstance(text, TaggedText), "read() made it"
        assert isinstance(tokens, TokenisedWords), "tokenise() made them"
        predicted = [[OUTSIDE] * len(words) for words in text.sentences]
        tags = iter(found.predicted.tolist())
        for row, names in enumerate(predicted):
            for word in tokens.word_numbers(row).tolist():
                names[word] = text.label_names[next(tags)]
        return score_spans(
            model, predicted, text.tag_rows, text.languages, seen_languages=seen_languages
        )


_KINDS: dict[str, type[SequenceClassification] | type[TokenClassification]] = {
    "sequence_classification": SequenceClassification,
    "token_classification": TokenClassification,
}


def kind_of(config: Config) -> TaskKind:
    """The task of a recipe."""
    return _KINDS[config.task.kind](config.data)
