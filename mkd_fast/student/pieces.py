"""The part of a `tokenizers` model that a set of kept pieces needs.

Each kind of model splits a word by a search over its vocabulary. A smaller vocabulary gives the
same split wherever the old split is still there to be found and nothing new can beat it:

    WordPiece  takes the longest piece that fits. The piece it took is kept, and no piece is new.
    Unigram    takes the split of the highest score. Scores stay. A character without a piece of
               its own scores as unknown, 10 below the vocabulary's lowest: one piece of that score
               is kept, so that no split through an unknown scores higher than it did.
    BPE        applies the first merge in its list that fits, again and again. Every merge on the
               way to a kept piece is kept, and no merge is new, so each step takes the same one.

So a text whose split uses kept pieces only is split as before. (WordPiece has one exception: a
word that was unknown as a whole may find a split once a longer piece is gone.) Text outside the
kept pieces falls back to single characters: those that occur in a kept piece stay, and in
byte-level BPE all 256.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from mkd_fast.checks import student as checks

Model = dict[str, Any]  # the "model" object of a tokenizer.json


def needed_pieces(model: Model, kept: set[str]) -> set[str]:
    """kept, and the pieces of the model that must stay with them.

    Raises:
        ValueError: a model other than Unigram, WordPiece and BPE, or a BPE with affixes.
    """
    kind, pieces = model["type"], _pieces(model)
    characters = {character for piece in kept for character in piece}
    if kind == "Unigram":
        lowest, _ = min(model["vocab"], key=lambda entry: entry[1])
        return kept | (pieces & (characters | _byte_pieces() | {lowest}))
    if kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return kept | (pieces & (characters | {prefix + character for character in characters}))
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if kind != "BPE" or affixes:
        raise checks.tokenizer_model_unsupported(f"{kind} with {affixes!r}" if affixes else kind)
    fallback = characters | _byte_pieces() | set(ByteLevel.alphabet())
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    steps = {part for piece in kept for part in _merge_steps(piece, ranks)}
    return kept | (pieces & (fallback | steps))


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
    merges = [
        [left, right]
        for left, right in model["merges"]
        if left in vocab and right in vocab and left + right in vocab
    ]
    return {**model, "vocab": vocab, "merges": merges}


def _pieces(model: Model) -> set[str]:
    return {entry if isinstance(entry, str) else entry[0] for entry in model["vocab"]}


def _byte_pieces() -> set[str]:
    """The pieces that stand for bytes where a model has byte_fallback."""
    return {f"<0x{byte:02X}>" for byte in range(256)}


def _merge_steps(piece: str, ranks: Mapping[tuple[str, ...], int]) -> Iterable[str]:
    """Every piece that occurs while BPE builds this one from its characters."""
    parts = list(piece)
    while True:
        yield from parts
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)), default=None)
        if best not in ranks:
            return
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
