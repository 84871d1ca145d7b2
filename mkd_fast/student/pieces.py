"""The part of a `tokenizers` model that a set of kept pieces needs.

Each kind of model splits a word by a search over its vocabulary. A smaller vocabulary gives the
same split wherever the old split is still there to be found and nothing new can beat it:

    WordPiece  takes the longest piece that fits. The piece it took is kept, and no piece is new.
    Unigram    takes the split of the highest score. Scores stay. A character without a piece of
               its own scores as unknown, 10 below the vocabulary's lowest: one piece of that score
               is kept, so that no split through an unknown scores higher than it did.
    BPE        applies the first merge in its list that fits, again and again. Every merge on the
               way to a kept piece is kept, and no merge is new, so each step takes the same one.
               That way is the same within a longer word: no merge crossed the piece's ends, and
               the first in the list of all is also the first of those inside. (A piece that no
               merges lead to is taken as a whole word where the model ignores merges, or never.)

So a text whose split uses kept pieces only is split as before. (WordPiece has one exception: a
word that was unknown as a whole may find a split once a longer piece is gone. It finds none if the
`pieces_before_unknown` of that word are kept.) Text outside the kept pieces falls back to single
characters: those that occur in a kept piece stay, and in byte-level BPE all 256.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from mkd_fast.checks import student as checks

Model = dict[str, Any]  # the "model" object of a tokenizer.json


def needed_pieces(model: Model, kept: set[str]) -> set[str]:
    """kept, and the pieces of the model that must stay with them.

    Raises:
        ValueError: a model other than Unigram, WordPiece and BPE, or a BPE with dropout.
    """
    kind, pieces = model["type"], _pieces(model)
    characters = {character for piece in kept for character in piece}
    if kind == "Unigram":
        lowest, _ = min(model["vocab"], key=lambda entry: entry[1])
        return kept | (pieces & (characters | _byte_pieces() | {lowest}))
    if kind == "WordPiece":
        return kept | (pieces & _forms(characters, model["continuing_subword_prefix"], ""))
    if kind != "BPE":
        raise checks.tokenizer_model_unsupported(kind)
    if model["dropout"]:
        raise checks.tokenizer_drops_merges(model["dropout"])
    prefix, suffix = _affixes(model)
    fallback = _forms(characters | set(ByteLevel.alphabet()), prefix, suffix)
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    steps = {
        step
        for piece in kept
        for symbols in _readings(piece, prefix, suffix)
        for step in _merge_steps(symbols, ranks, prefix)
    }
    return kept | (pieces & (fallback | steps | _byte_pieces()))


def trimmed_model(model: Model, new_ids: Mapping[str, int]) -> Model:
    """The model with the pieces in new_ids only, under those ids."""
    if model["type"] == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        entries = [entry for entry in model["vocab"] if entry[0] in new_ids]
        entries.sort(key=lambda entry: new_ids[entry[0]])
        return {**model, "vocab": entries, "unk_id": unknown and new_ids[unknown]}
    vocab = {piece: new_ids[piece] for piece in model["vocab"] if piece in new_ids}
    if model["type"] == "WordPiece":
        return {**model, "vocab": vocab}
    prefix, _ = _affixes(model)
    merges = [
        [left, right]
        for left, right in model["merges"]
        if left in vocab and right in vocab and left + right.removeprefix(prefix) in vocab
    ]
    return {**model, "vocab": vocab, "merges": merges}


def pieces_before_unknown(model: Model, word: str) -> Iterator[str]:
    """What WordPiece takes of a word before it gives it up as unknown."""
    pieces, prefix, start = model["vocab"], "", 0
    while len(word) <= model["max_input_chars_per_word"]:
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in pieces)
        if (end := next(ends, None)) is None:
            return
        yield prefix + word[start:end]
        prefix, start = model["continuing_subword_prefix"], end


def _pieces(model: Model) -> set[str]:
    return {entry if isinstance(entry, str) else entry[0] for entry in model["vocab"]}


def _byte_pieces() -> set[str]:
    """The pieces that stand for bytes where a model has byte_fallback."""
    return {f"<0x{byte:02X}>" for byte in range(256)}


def _affixes(model: Model) -> tuple[str, str]:
    """What a BPE writes before every character but a word's first, and behind its last."""
    return model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""


def _forms(characters: Iterable[str], prefix: str, suffix: str) -> set[str]:
    """Each character as a piece, wherever in a word it stands."""
    around = [(before, after) for before in ("", prefix) for after in ("", suffix)]
    return {before + character + after for character in characters for before, after in around}


def _readings(piece: str, prefix: str, suffix: str) -> Iterable[list[str]]:
    """The symbols that BPE may begin with on its way to a piece: one a character, with affixes.

    A piece that begins as a continuing one does may also begin a word whose text is like that,
    and so may one end: each is read in all ways.
    """
    for before in {prefix, ""} if piece.startswith(prefix) else {""}:
        for after in {suffix, ""} if piece.endswith(suffix) else {""}:
            symbols = list(piece.removeprefix(before).removesuffix(after))
            if symbols:
                symbols = [before + symbols[0], *(prefix + symbol for symbol in symbols[1:])]
                symbols[-1] += after
                yield symbols


def _merge_steps(
    symbols: Sequence[str], ranks: Mapping[tuple[str, ...], int], prefix: str
) -> list[str]:
    """Every piece that occurs while BPE merges these into one; none if it does not.

    It merges one pair at a time, the first in the list of merges, the leftmost of equal ones.
    """
    parts, steps = list(symbols), list(symbols)
    while len(parts) > 1:
        pairs = ((ranks.get(pair, math.inf), at) for at, pair in enumerate(pairwise(parts)))
        rank, at = min(pairs)
        if rank == math.inf:
            return []
        parts[at : at + 2] = [parts[at] + parts[at + 1].removeprefix(prefix)]
        steps.append(parts[at])
    return steps
