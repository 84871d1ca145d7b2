"""Text as token ids, ragged in one flat array."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import data as checks
from mkd_fast.data.tagged import TaggedText
from mkd_fast.data.text import LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What cross-entropy and ``kd_loss`` leave out.
NO_LABEL = -100
# Texts tokenised at a time: enough for all of the tokenizer's threads, little memory.
_TEXTS_PER_CALL = 4096
IDS_ONLY = {"return_attention_mask": False, "return_token_type_ids": False}
T = TypeVar("T")
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenisedText:
    """N samples; sample n is ``ids[offsets[n] : offsets[n + 1]]``, and its sample id is n.

    ``ids`` int32 [total], ``offsets`` int64 [N + 1], ``labels`` int64 [N], ``pad_id`` what
    ``collate`` fills up with. A sample id is stable under (``fingerprint``, row).
    """

    ids: npt.NDArray[np.int32]
    offsets: IntArray
    labels: IntArray
    pad_id: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, special ones included; int64 [N]."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of token ids, offsets and labels."""
        digest = hashlib.sha256()
        for array, dtype in ((self.ids, "<i4"), (self.offsets, "<i8"), (self.labels, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype).data)  # no copy where it is so already
        return digest.hexdigest()

    def row(self, row: int) -> npt.NDArray[np.int32]:
        """Return the token ids of one sample, int32 [length]."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def rows_of_epoch(self, epoch: int) -> IntArray:
        """The samples that an epoch is made of: here all of them."""
        return np.arange(len(self))

    def texts_of_epoch(self) -> IntArray:
        """The text that each of these is made of."""
        return self.rows_of_epoch(0)

    def batch_labels(self, rows: Sequence[int], mask: npt.NDArray[np.bool_]) -> IntArray:
        """Labels of a batch: [B] here, one a sample.

        Args:
            rows: the samples.
            mask: bool [B, S], the tokens of each.
        """
        return self.labels[list(rows)]

    def token_hash(self, row: int) -> int:
        """Return the 64-bit blake2b of a sample's token ids as little-endian int32, unsigned."""
        data = self.row(row).astype("<i4").tobytes()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class LabelledTokens(TokenisedText):
    """``labels`` int64 [total], one a token, ``NO_LABEL`` where there is none."""

    def batch_labels(self, rows: Sequence[int], mask: npt.NDArray[np.bool_]) -> IntArray:
        """Labels of a batch, [B, S]: one a token."""
        labels = np.full(mask.shape, NO_LABEL, np.int64)
        parts = (self.labels[self.offsets[row] : self.offsets[row + 1]] for row in rows)
        labels[mask] = np.concatenate([np.empty(0, np.int64), *parts])
        return labels


@dataclass(frozen=True, eq=False)
class Pieces(LabelledTokens):
    """Samples cut out of texts; ``texts`` int64 [N] is the text that each is a piece of."""

    texts: IntArray

    def texts_of_epoch(self) -> IntArray:
        """The text that each sample of an epoch is a piece of."""
        return self.texts[self.rows_of_epoch(0)]


@dataclass(frozen=True, eq=False)
class TokenisedWords(LabelledTokens):
    """Sentences of words; a word's tag is the label of its first piece.

    ``words`` int64 [total] is the number of the
    word in its sentence at its first piece, else -1. ``num_words`` counts the words of the text:
    a word that lies beyond the longest sequence, or is nothing to the tokenizer, has no piece.
    """

    words: IntArray
    num_words: int

    @property
    def num_lost(self) -> int:
        """Words without a piece: nothing is learnt of their tags or predicted for them."""
        return self.num_words - int((self.words >= 0).sum())

    def word_numbers(self, row: int) -> IntArray:
        """The words of a sentence that have a piece, in their order."""
        words = self.words[self.offsets[row] : self.offsets[row + 1]]
        return words[words >= 0]


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
    check_tokenizer(tokenizer, max_length)
    rows = []
    for texts in blocks(text.texts):
        prefixed = [text_prefix + sentence for sentence in texts]
        encoded = tokenizer(prefixed, truncation=True, max_length=max_length, **IDS_ONLY)
        rows += [np.array(row, np.int32) for row in encoded["input_ids"]]
    labels = np.array(text.labels, np.int64)
    return TokenisedText(*flat_rows(rows), labels, tokenizer.pad_token_id)


def tokenise_words(
    text: TaggedText,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int,
    text_prefix: str = "",
) -> TokenisedWords:
    """Tokenise sentences as ``tokenise`` does their words with spaces between them.

    A word's first piece is the first that holds any of its characters. Arguments and errors as
    ``tokenise``.
    """
    check_tokenizer(tokenizer, max_length)
    rows, words = [], []
    for sentences in blocks(text.sentences):
        encoded = tokenizer(
            [text_prefix + " ".join(sentence) for sentence in sentences],
            truncation=True,
            max_length=max_length,
            return_offsets_mapping=True,
            **IDS_ONLY,
        )
        rows += [np.array(row, np.int32) for row in encoded["input_ids"]]
        for sentence, spans in zip(sentences, encoded["offset_mapping"], strict=True):
            words.append(_at_first_pieces(sentence, len(text_prefix), np.array(spans, np.int64)))
    labels = [
        np.where(numbers < 0, NO_LABEL, np.array(tags, np.int64)[numbers])
        for numbers, tags in zip(words, text.tags, strict=True)
    ]
    nothing = np.empty(0, np.int64)
    return TokenisedWords(
        *flat_rows(rows),
        np.concatenate([nothing, *labels]),
        tokenizer.pad_token_id,
        np.concatenate([nothing, *words]),
        sum(map(len, text.sentences)),
    )


def _at_first_pieces(words: Sequence[str], num_before: int, spans_S2: IntArray) -> IntArray:
    """The number of the word that begins at each piece, -1 elsewhere; int64 [S].

    Args:
        words: those of a sentence.
        num_before: characters before the first.
        spans_S2: characters of each piece, from and up to; none of a special token.
    """
    lengths = np.array([len(word) for word in words], np.int64)
    ends = num_before + np.cumsum(lengths + 1) - 1
    real = np.flatnonzero(spans_S2[:, 1] > spans_S2[:, 0])
    pieces = np.searchsorted(spans_S2[real, 1], ends - lengths, side="right")
    has_piece = pieces < len(real)
    has_piece[has_piece] &= spans_S2[real[pieces[has_piece]], 0] < ends[has_piece]
    numbers = np.flatnonzero(has_piece)
    first, chosen = np.unique(pieces[numbers], return_index=True)  # two words may share a piece
    found = np.full(len(spans_S2), -1, np.int64)
    found[real[first]] = numbers[chosen]
    return found


def check_tokenizer(tokenizer: "PreTrainedTokenizerFast", max_length: int) -> None:
    """Raise ValueError if there is no room for a token of the text, or no pad token."""
    num_special = tokenizer.num_special_tokens_to_add()
    if max_length <= num_special:
        raise checks.no_room_for_tokens(max_length, num_special)
    if tokenizer.pad_token_id is None:
        raise checks.no_pad_token(tokenizer.name_or_path)


def blocks(samples: Sequence[T]) -> Iterator[Sequence[T]]:
    """Samples as many at a time as are tokenised together."""
    for start in range(0, len(samples), _TEXTS_PER_CALL):
        yield samples[start : start + _TEXTS_PER_CALL]


def flat_rows(rows: list[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Token ids end to end, and where each sample's begin."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate([np.empty(0, np.int32), *rows]), offsets
