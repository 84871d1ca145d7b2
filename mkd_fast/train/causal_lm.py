"""Causal language models: running text, or chats of which the assistant's answers are learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mkd_fast.data import HubSource, Text, TokenisedText
from mkd_fast.data.causal import CausalText, causal_text
from mkd_fast.data.chats import Chats, has_chats, load_chats, write_chats
from mkd_fast.data.plain import RunningText, load_running
from mkd_fast.data.tokens import Pieces
from mkd_fast.evaluate.language_model import score_language_model
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.train.examiner import AGREED
from mkd_fast.train.language_model import LanguageModel, languages_of
from mkd_fast.train.task_kinds import Examined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class CausalLanguageModel(LanguageModel):
    """Each token from those before it; KL to the teacher, perplexity, nats per byte, agreement."""

    auto_class = "AutoModelForCausalLM"

    def read(
        self, source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
    ) -> RunningText | Chats:
        """Columns ``text`` or ``messages``, and ``language``; or lines."""
        return load_chats(source) if has_chats(source) else load_running(source)

    def written(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> list[str]:
        """Chats as the tokenizer's template writes them."""
        if isinstance(text, Chats):
            return [chat.text for chat in write_chats(text.chats, tokenizer)]
        return super().written(text, tokenizer)

    def tokenise(self, text: Text, tokenizer: "PreTrainedTokenizerFast") -> CausalText:
        """Samples with the next token of each for a label."""
        assert isinstance(text, (RunningText, Chats)), "read() made it"
        data = self.data
        return causal_text(
            text, tokenizer, max_length=data.max_length, text_prefix=data.text_prefix
        )

    examined = tokenise

    def what_is_lost(self, tokens: TokenisedText) -> str | None:
        """How much of the answers is cut off."""
        assert isinstance(tokens, CausalText), "tokenise() made it"
        if not tokens.num_lost:
            return None
        return (
            f"{tokens.num_lost:,} of {tokens.num_lost + tokens.num_said:,} tokens of answers lie "
            f"beyond data.max_length = {self.data.max_length}: nothing is learnt of them"
        )

    def score_sums(
        self, examined: Examined, text: Pieces, sums: npt.NDArray[np.float64]
    ) -> ModelScores:
        """All measures."""
        assert isinstance(text, CausalText), "tokenise() made it"
        of_labels = np.where(text.labels >= 0, text.label_bytes, 0)
        num_bytes = np.add.reduceat(of_labels, text.offsets[:-1])
        return score_language_model(
            examined.name,
            np.column_stack([sums[:, : AGREED + 1], num_bytes]),
            languages_of(examined, text),
            seen_languages=examined.seen,
        )
