"""Running text and chats for causal language models.

**The label of a token is the one behind it. That shift is made here and nowhere else**: labels, the
logits of a model and what a cache holds of a teacher then lie at the same place. Of running text
every token but the first is to be said, of a chat those of the assistant's answers, and the token
that ends each.

Running text is cut into samples after its labels were made, so that each of its tokens is said
once. A chat that is too long is cut off: what is left of it would lack its beginning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import chats as chat_checks
from mkd_fast.checks import data as checks
from mkd_fast.data.chats import Chats, write_chats
from mkd_fast.data.plain import RunningText
from mkd_fast.data.tokens import IDS_ONLY, NO_LABEL, IntArray, Pieces, blocks, flat_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


T = TypeVar("T", np.int32, np.int64)


@dataclass(frozen=True, eq=False)
class CausalText(Pieces):
    """Samples whose tokens have the next one for a label, where that is to be said.

    ``label_bytes`` int32 [total] are the bytes of UTF-8 that each label stands for, 0 where there
    is none. ``num_lost`` of the tokens to be said lie beyond the longest sample, and ``num_said``
    do not.
    """

    label_bytes: npt.NDArray[np.int32]
    num_lost: int

    @property
    def num_said(self) -> int:
        """Labels."""
        return int((self.labels != NO_LABEL).sum())


def causal_text(
    text: RunningText | Chats,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int,
    text_prefix: str = "",
) -> CausalText:
    """Tokenise texts, and cut them into samples of at most ``max_length`` tokens.

    Args:
        text: what is read. Running text gets the tokenizer's special tokens, a chat those of its
            template.
        tokenizer: a fast tokenizer. Without a pad token, any other serves for it.
        max_length: tokens of a sample.
        text_prefix: put before every running text.

    Raises:
        ValueError: nothing is to be said within max_length, or as ``write_chats``.
    """
    checks.positive("causal_text", "max_length", max_length)
    if is_chat := isinstance(text, Chats):
        said = _chats(text, tokenizer)
    else:
        said = _running(text, tokenizer, text_prefix)
    ids: list[npt.NDArray[np.int32]] = []
    labels: list[IntArray] = []
    label_bytes: list[npt.NDArray[np.int32]] = []
    texts: list[int] = []
    num_lost = 0
    for number, tokens in enumerate(said):
        labels_S = of_the_next(tokens.ids.astype(np.int64), tokens.is_said, NO_LABEL)
        bytes_S = of_the_next(tokens.num_bytes, tokens.is_said, 0)
        for begin in range(0, len(tokens.ids), max_length):
            part = slice(begin, begin + max_length)
            num_labels = int((labels_S[part] != NO_LABEL).sum())
            if is_chat and begin:
                num_lost += num_labels
            elif num_labels:
                ids.append(tokens.ids[part])
                labels.append(labels_S[part])
                label_bytes.append(bytes_S[part])
                texts.append(number)
    if not ids:
        raise chat_checks.nothing_to_say(max_length)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return CausalText(
        *flat_rows(ids),
        np.concatenate(labels),
        next(token_id for token_id in known if token_id is not None),
        np.array(texts, np.int64),
        np.concatenate(label_bytes),
        num_lost,
    )


def of_the_next(
    values_S: npt.NDArray[T], is_said_S: npt.NDArray[np.bool_], otherwise: int
) -> npt.NDArray[T]:
    """At each token of a text the value of the next, where that is to be said."""
    shifted = np.full_like(values_S, otherwise)
    shifted[:-1] = np.where(is_said_S[1:], values_S[1:], otherwise)
    return shifted


@dataclass(frozen=True)
class _Said:
    """S tokens of a text: ids, whether each is to be said, and the bytes of text it stands for."""

    ids: npt.NDArray[np.int32]
    is_said: npt.NDArray[np.bool_]
    num_bytes: npt.NDArray[np.int32]


def _running(
    text: RunningText, tokenizer: "PreTrainedTokenizerFast", prefix: str
) -> Iterator[_Said]:
    """Everything is to be said but the prefix."""
    for texts in blocks(text.texts):
        prefixed = [prefix + one for one in texts]
        for written, ids, spans_S2 in _tokens(prefixed, tokenizer, add_special_tokens=True):
            is_said_S = spans_S2[:, 1] > len(prefix) if prefix else np.ones(len(ids), np.bool_)
            yield _Said(ids, is_said_S, _num_bytes(written, spans_S2))


def _chats(text: Chats, tokenizer: "PreTrainedTokenizerFast") -> Iterator[_Said]:
    """The answers are to be said, each up to its last special token, where it has one.

    Most templates end a turn with one, and then a line. A token that reaches over an end of an
    answer is not the assistant's.
    """
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    special += tokenizer.all_special_ids
    for chats in blocks(write_chats(text.chats, tokenizer)):
        texts = [chat.text for chat in chats]
        tokens = _tokens(texts, tokenizer, add_special_tokens=False)
        for chat, (written, ids, spans_S2) in zip(chats, tokens, strict=True):
            is_said_S = np.zeros(len(ids), np.bool_)
            for begin, end in chat.answers:
                inside = (spans_S2[:, 0] >= begin) & (spans_S2[:, 1] <= end)
                ends = np.flatnonzero(inside & np.isin(ids, special))
                if len(ends):
                    inside[ends[-1] + 1 :] = False
                is_said_S |= inside
            yield _Said(ids, is_said_S, _num_bytes(written, spans_S2))


def _tokens(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", *, add_special_tokens: bool
) -> Iterator[tuple[str, npt.NDArray[np.int32], IntArray]]:
    """Each text, its token ids [S] and their characters, from and up to, [S, 2]."""
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        verbose=False,  # texts may be longer than the model: they are cut
        **IDS_ONLY,
    )
    for text, ids, spans in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        yield text, np.array(ids, np.int32), np.array(spans, np.int64).reshape(-1, 2)


def _num_bytes(text: str, spans_S2: IntArray) -> npt.NDArray[np.int32]:
    """The bytes of UTF-8 from the end of one token to that of the next, which add up to the text's.

    Of the tokens that a character is split into, the first has all of its bytes.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    places = np.concatenate([[0], np.cumsum(sizes)])
    ends_S = places[np.maximum.accumulate(spans_S2[:, 1])]
    return np.diff(ends_S, prepend=0).astype(np.int32)
