"""Labelled text as token ids, ragged in one flat array."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import data as checks
from mkd_fast.data.text import LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Texts tokenised at a time: enough for all of the tokenizer's threads, little memory.
_TEXTS_PER_CALL = 4096


@dataclass(frozen=True, eq=False)
class TokenisedText:
    """N samples; sample n is ``ids[offsets[n] : offsets[n + 1]]``, and its sample id is n.

    ``ids`` int32 [total], ``offsets`` int64 [N + 1], ``labels`` int64 [N], ``pad_id`` what
    ``collate`` fills up with. A sample id is stable under (``fingerprint``, row).
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pad_id: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, special ones included; int64 [N]."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of token ids, offsets and labels."""
        digest = hashlib.sha256()
        for array in (
            self.ids.astype("<i4"),
            self.offsets.astype("<i8"),
            self.labels.astype("<i8"),
        ):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def row(self, row: int) -> npt.NDArray[np.int32]:
        """Return the token ids of one sample, int32 [length]."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def token_hash(self, row: int) -> int:
        """Return the 64-bit blake2b of a sample's token ids as little-endian int32, unsigned."""
        data = self.row(row).astype("<i4").tobytes()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def tokenise(
    text: LabelledText,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int,
    text_prefix: str = "",
) -> TokenisedText:
    """Tokenise every text with its prefix and the tokenizer's special tokens.

    Args:
        text: N labelled texts.
        tokenizer: a fast tokenizer with a pad token.
        max_length: tokens kept of a sample, special ones included.
        text_prefix: put before every text (``"query: "`` for E5).

    Raises:
        ValueError: max_length leaves no room for a token of the text, or there is no pad token.
    """
    num_special = tokenizer.num_special_tokens_to_add()
    if max_length <= num_special:
        raise checks.no_room_for_tokens(max_length, num_special)
    if tokenizer.pad_token_id is None:
        raise checks.no_pad_token(tokenizer.name_or_path)
    rows = list(_token_rows(text.texts, tokenizer, max_length, text_prefix))
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.concatenate([np.empty(0, np.int32), *rows])
    return TokenisedText(ids, offsets, np.array(text.labels, np.int64), tokenizer.pad_token_id)


def _token_rows(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", max_length: int, text_prefix: str
) -> Iterator[npt.NDArray[np.int32]]:
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        encoded = tokenizer(
            [text_prefix + text for text in texts[start : start + _TEXTS_PER_CALL]],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        for row in encoded["input_ids"]:
            yield np.array(row, dtype=np.int32)
