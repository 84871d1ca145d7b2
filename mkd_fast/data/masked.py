"""Running text with some of its tokens hidden, for masked language models.

A sample's masked inputs are made once, ``num_maskings`` of them, each a sample of its own: sample
id k * N + n is the k-th masking of the n-th of N. An epoch trains on one of them, the next on the
next. So whatever the order, the batch size or the moment of a restart, an input of the student is
one that the teacher has seen and a cache holds, and the teacher reads the text ``num_maskings``
times in all.

What is hidden is drawn by place, not by token: a token is exchanged for that at a place of the text
drawn at random. So two vocabularies over which the text splits alike are masked alike.

Source: BERT (arXiv 1810.04805), 15 % of the tokens, of which 80 % hidden, 10 % exchanged, 10 %
left as they are; here a fixed share of each sample's tokens, at least one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import data as checks
from mkd_fast.data.plain import RunningText
from mkd_fast.data.tokens import (
    IDS_ONLY,
    NO_LABEL,
    IntArray,
    Pieces,
    blocks,
    check_tokenizer,
    flat_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_HIDDEN, _EXCHANGED = 0.8, 0.1


@dataclass(frozen=True, eq=False)
class MaskedText(Pieces):
    """Masked samples; a token's label is what stood there, where it is to be found.

    ``num_maskings`` is how often every piece of text is there.
    """

    num_maskings: int

    @property
    def num_pieces(self) -> int:
        """Samples of one masking."""
        return len(self) // self.num_maskings

    def rows_of_epoch(self, epoch: int) -> IntArray:
        """Those of one masking."""
        first = epoch % self.num_maskings * self.num_pieces
        return np.arange(first, first + self.num_pieces)


def mask_text(
    text: RunningText,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int,
    text_prefix: str = "",
    num_maskings: int = 1,
    mask_share: float = 0.15,
    seed: int = 0,
) -> MaskedText:
    """Tokenise texts, cut them into pieces of at most ``max_length`` tokens, and mask these.

    Args:
        text: what is read.
        tokenizer: a fast tokenizer with a pad and a mask token.
        max_length: tokens of a sample, special ones included.
        text_prefix: put before every text.
        num_maskings: samples made of each piece.
        mask_share: of a piece's tokens, special ones left out, that are to be found.
        seed: of what is masked, with the number of the masking and of the piece.

    Raises:
        ValueError: max_length leaves no room for a token of the text, or there is no pad or mask
            token.
    """
    check_tokenizer(tokenizer, max_length)
    if tokenizer.mask_token_id is None:
        raise checks.no_mask_token(tokenizer.name_or_path)
    pieces: list[npt.NDArray[np.int32]] = []
    texts: list[int] = []
    for part in blocks(text.texts):
        encoded = tokenizer(
            [text_prefix + one for one in part],
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            **IDS_ONLY,
        )
        first = texts[-1] + 1 if texts else 0
        pieces += [np.array(row, np.int32) for row in encoded["input_ids"]]
        texts += [first + number for number in encoded["overflow_to_sample_mapping"]]
    draw = _Masking(pieces, set(tokenizer.all_special_ids), tokenizer.mask_token_id, mask_share)
    made = [
        draw(number, np.random.default_rng([seed, masking, number]))
        for masking in range(num_maskings)
        for number in range(len(pieces))
    ]
    nothing = np.empty(0, np.int64)
    return MaskedText(
        *flat_rows([ids for ids, _ in made]),
        np.concatenate([nothing, *(labels for _, labels in made)]),
        tokenizer.pad_token_id,
        np.tile(np.array(texts, np.int64), num_maskings),
        num_maskings,
    )


class _Masking:
    """How pieces are masked: which of their tokens can be, and what they are exchanged for."""

    def __init__(
        self,
        pieces: list[npt.NDArray[np.int32]],
        special_ids: Collection[int],
        mask_id: int,
        share: float,
    ) -> None:
        self._pieces, self._mask_id, self._share = pieces, mask_id, share
        self._special = np.array(sorted(special_ids))
        all_ids = np.concatenate([np.empty(0, np.int32), *pieces])
        self._tokens = all_ids[~np.isin(all_ids, self._special)]

    def __call__(
        self, number: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int32], IntArray]:
        """Masked ids of a piece, and its labels."""
        ids = self._pieces[number].copy()
        places = np.flatnonzero(~np.isin(ids, self._special))
        count = min(len(places), max(1, round(self._share * len(places))))
        chosen = rng.choice(places, count, replace=False)
        labels = np.full(len(ids), NO_LABEL, np.int64)
        labels[chosen] = ids[chosen]
        lot = rng.random(count)
        exchanged = chosen[(lot >= _HIDDEN) & (lot < _HIDDEN + _EXCHANGED)]
        ids[chosen[lot < _HIDDEN]] = self._mask_id
        if len(exchanged):
            ids[exchanged] = self._tokens[rng.integers(len(self._tokens), size=len(exchanged))]
        return ids, labels
