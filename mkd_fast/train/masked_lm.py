"""Masked language models: running text of which some tokens are hidden."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mkd_fast.data import HubSource, Text, TokenisedText
from mkd_fast.data.masked import MaskedText, mask_text
from mkd_fast.data.plain import RunningText, load_running
from mkd_fast.data.tokens import Pieces
from mkd_fast.evaluate.language_model import score_language_model
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.train.examiner import TOKENS
from mkd_fast.train.language_model import LanguageModel, languages_of
from mkd_fast.train.task_kinds import Examined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class MaskedLanguageModel(LanguageModel):
    """Running text of which some tokens are hidden; KL to the teacher and perplexity.

    Args:
        data: its ``num_maskings`` inputs of every piece of text are captured once.
        seed: of what is masked.
    """

    seed: int
    auto_class = "AutoModelForMaskedLM"

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> RunningText:
        """Columns ``text`` and ``language``, or lines."""
        return load_running(source)

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> MaskedText:
        """Pieces of the text, each ``num_maskings`` times."""
        return self._masked(text, tokenizer, self.data.num_maskings)

    def examined(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> MaskedText:
        """One masking."""
        return self._masked(text, tokenizer, 1)

    def _masked(
        self, text: Text, tokenizer: "PreTrainedTokenizerFast", num_maskings: int
    ) -> MaskedText:
        assert isinstance(text, RunningText), "read() made it"
        return mask_text(
            text,
            tokenizer,
            max_length=self.data.max_length,
            text_prefix=self.data.text_prefix,
            num_maskings=num_maskings,
            mask_share=self.data.mask_share,
            seed=self.seed,
        )

    def what_is_lost(self, tokens: TokenisedText) -> None:
        """Nothing: a text that is too long makes several pieces."""

    def score_sums(
        self, examined: Examined, text: Pieces, sums: npt.NDArray[np.float64]
    ) -> ModelScores:
        """KL to the teacher and perplexity."""
        return score_language_model(
            examined.name,
            sums[:, : TOKENS + 1],
            languages_of(examined, text),
            seen_languages=examined.seen,
        )
