"""Cutting a tokenizer down to the tokens that a text uses, without changing how it splits.

The `tokenizers` JSON is edited: model vocabulary, scores and merges, added tokens, and the ids that
the post-processor inserts. What must stay with the kept tokens, and why the split is then the same,
is in `pieces`; `check_same_splits` proves it on a corpus.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mkd_fast.checks import student as checks
from mkd_fast.student.pieces import needed_pieces, pieces_before_unknown, trimmed_model
from mkd_fast.student.vocabulary import TokenMap

TEXTS_AT_A_TIME = 1_000
SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "chat_template",
)


def used_token_ids(
    token_id_arrays: Iterable[ArrayLike], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The ids that occur in a tokenised text, and those that every text needs.

    These are the ids of special tokens and of those that the chat template writes.

    Args:
        token_id_arrays: int arrays, tensors or lists of any shape, one text each or many.
        tokenizer: a fast tokenizer, the one that made them.

    Returns:
        Distinct ids, rising.
    """
    used = set(_needed_tokens(tokenizer, _backend_state(tokenizer)).values())
    for ids in token_id_arrays:
        used.update(np.unique(np.asarray(ids)).tolist())
    return sorted(used)


def token_ids_of_text(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, coverage: float = 1.0
) -> list[int]:
    """The ids that a text uses, such as a language's corpus, or the most frequent of them.

    Args:
        texts: lines, sentences or documents, read once.
        tokenizer: a fast tokenizer.
        coverage: the share of the text's tokens, in (0, 1], that the ids must make up; special
            tokens count neither here nor there. At 1 each text splits as before under a tokenizer
            trimmed to these ids. Below, the rarest pieces are left out, and what they stood for
            splits into smaller ones.

    Returns:
        Distinct ids, rising; those of `used_token_ids` among them.

    Raises:
        TypeError: tokenizer is not a fast one.
        ValueError: coverage out of its range.
    """
    if not 0.0 < coverage <= 1.0:
        raise checks.coverage_out_of_range(coverage)
    state = _backend_state(tokenizer)
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    also = set()
    for some in _some_at_a_time(texts):
        encodings = tokenizer(some, add_special_tokens=False, verbose=False).encodings
        assert encodings is not None, "fast tokenizers give them"
        ids = np.concatenate([np.array(encoding.ids, np.int64) for encoding in encodings])
        counts += np.bincount(ids, minlength=len(counts))
        if state["model"]["type"] == "WordPiece":
            also |= _before_unknown(tokenizer.backend_tokenizer, state["model"], some, encodings)
    counts[list(_needed_tokens(tokenizer, state).values())] = 0
    frequent = np.argsort(-counts, kind="stable")  # of two as frequent the first id
    upto = np.cumsum(counts[frequent])
    num_kept = np.searchsorted(upto, coverage * upto[-1]) + 1
    kept = [token_id for token_id in frequent[:num_kept].tolist() if counts[token_id]]
    return used_token_ids([kept, sorted(also)], tokenizer)


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, keep_token_ids: Sequence[int] | Tensor
) -> tuple[PreTrainedTokenizerFast, TokenMap]:
    """A tokenizer with some of the tokens, which splits text over them as before.

    Pieces that the kept ones need stay as well, so pass the map's keep_token_ids, not the
    ones given here, to `copy_init`. These are the merges that lead to a kept piece, and the
    single characters of kept pieces, so that an unseen word falls back to pieces of the words that
    were seen rather than to the unknown token.

    Args:
        tokenizer: a fast tokenizer with a Unigram, WordPiece or BPE model. It is left as it is.
        keep_token_ids: distinct ids, all special tokens among them, in any order.

    Returns:
        The tokenizer, whose saved form loads through AutoTokenizer anywhere, and the map between
        old and new ids. New ids have the order of the old ones, so those of the special tokens
        that a vocabulary begins with do not change.

    Raises:
        TypeError: tokenizer is not a fast one.
        ValueError: ids outside the vocabulary, repeated, or without a special token; or a
            tokenizer that cannot be cut without changing how it splits.
    """
    state = _backend_state(tokenizer)
    id_of = tokenizer.get_vocab()
    token_of = {token_id: token for token, token_id in id_of.items()}
    asked = TokenMap.of(keep_token_ids, max(token_of) + 1).keep_token_ids
    kept = {token_of[token_id] for token_id in asked if token_id in token_of}
    missing = [token for token in _needed_tokens(tokenizer, state) if token not in kept]
    if missing:
        raise checks.special_tokens_dropped("trim_tokenizer", missing)

    # Added tokens too: the model makes them of text that an added one may not match.
    kept |= needed_pieces(state["model"], kept)
    token_map = TokenMap.of(sorted(id_of[token] for token in kept), max(token_of) + 1)
    new_ids = {token_of[old]: new for new, old in enumerate(token_map.keep_token_ids)}
    trimmed = _rewrap(tokenizer, _renumbered(state, new_ids))
    got = trimmed.get_vocab()
    for token in sorted(new_ids.keys() | got.keys()):
        if new_ids.get(token) != got.get(token):
            raise checks.trimmed_ids_differ(token, new_ids.get(token), got.get(token))
    return trimmed, token_map


def check_same_splits(
    full: PreTrainedTokenizerBase, trimmed: PreTrainedTokenizerBase, texts: Iterable[str]
) -> None:
    """Prove on a corpus that trimming changed nothing: the same tokens for every text.

    Args:
        full: the tokenizer before.
        trimmed: the one that `trim_tokenizer` made of it.
        texts: every text that the student will see.

    Raises:
        ValueError: names the first text that splits differently, and both splits.
    """
    new_ids = trimmed.get_vocab()
    new_of_old = {old: new_ids.get(token, -1) for token, old in full.get_vocab().items()}
    for some in _some_at_a_time(texts):
        splits = [tokenizer(some, verbose=False)["input_ids"] for tokenizer in (full, trimmed)]
        for text, before, after in zip(some, *splits, strict=True):
            if [new_of_old[token_id] for token_id in before] != after:
                raise checks.splits_differ(
                    text, full.convert_ids_to_tokens(before), trimmed.convert_ids_to_tokens(after)
                )


def _backend_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise checks.tokenizer_without_backend(type(tokenizer).__name__)
    state: dict[str, Any] = json.loads(backend.to_str())
    return state


def _some_at_a_time(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while some := list(islice(remaining, TEXTS_AT_A_TIME)):
        yield some


def _before_unknown(
    backend: Tokenizer, model: Mapping[str, Any], texts: Sequence[str], encodings: Sequence[Any]
) -> set[int]:
    """The ids of what WordPiece takes of words that it then gives up as unknown."""
    unknown = model["vocab"].get(model["unk_token"])
    places = {
        text[slice(*offsets)]
        for text, encoding in zip(texts, encodings, strict=True)
        if unknown in encoding.ids
        for token_id, offsets in zip(encoding.ids, encoding.offsets, strict=True)
        if token_id == unknown
    }
    if backend.normalizer is not None:
        places = {backend.normalizer.normalize_str(place) for place in places}
    words = places
    if backend.pre_tokenizer is not None:
        split = backend.pre_tokenizer.pre_tokenize_str
        words = {word for place in places for word, _ in split(place)}
    pieces = (piece for word in words for piece in pieces_before_unknown(dict(model), word))
    return {model["vocab"][piece] for piece in pieces}


def _needed_tokens(tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]) -> dict[str, int]:
    """Tokens that are named or marked as special, that mean unknown, or that are put into a text.

    Around it the post-processor puts them, and between its parts the chat template.
    """
    model, id_of = state["model"], tokenizer.get_vocab()
    template = str(getattr(tokenizer, "chat_template", None) or "")  # of several, the dict of them
    tokens = {
        token["content"]
        for token in state["added_tokens"]
        if token["special"] or token["content"] in template
    }
    tokens.update(tokenizer.all_special_tokens, _inserted_tokens(state["post_processor"]))
    if model.get("unk_id") is not None:
        tokens.add(model["vocab"][model["unk_id"]][0])
    if model.get("unk_token") is not None:
        tokens.add(model["unk_token"])
    return {token: id_of[token] for token in sorted(tokens) if token in id_of}


def _inserted_tokens(processor: Mapping[str, Any] | None) -> set[str]:
    """The tokens that a post-processor puts around a text."""
    if processor is None:
        return set()
    inner = [_inserted_tokens(part) for part in processor.get("processors", ())]
    templates = [special["tokens"] for special in processor.get("special_tokens", {}).values()]
    ends = [processor[end][:1] for end in ("cls", "sep") if end in processor]
    return set().union(*inner, *templates, *ends)


def _renumbered_processor(
    processor: dict[str, Any] | None, new_ids: Mapping[str, int]
) -> dict[str, Any] | None:
    """The post-processor with new ids for the tokens that it inserts."""
    if processor is None:
        return None
    changed: dict[str, Any] = {}
    if "processors" in processor:
        inner = [_renumbered_processor(part, new_ids) for part in processor["processors"]]
        changed["processors"] = inner
    if "special_tokens" in processor:
        changed["special_tokens"] = {
            name: {**special, "ids": [new_ids[token] for token in special["tokens"]]}
            for name, special in processor["special_tokens"].items()
        }
    for end in ("cls", "sep"):
        if end in processor:
            changed[end] = [processor[end][0], new_ids[processor[end][0]]]
    return {**processor, **changed}


def _renumbered(state: Mapping[str, Any], new_ids: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of a JSON state, cut to the tokens in new_ids."""
    added = [
        {**token, "id": new_ids[token["content"]]}
        for token in state["added_tokens"]
        if token["content"] in new_ids
    ]
    trimmed = {
        **state,
        "model": trimmed_model(state["model"], new_ids),
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": _renumbered_processor(state["post_processor"], new_ids),
        "truncation": None,  # set anew by every call of the tokenizer, as padding is
        "padding": None,
    }
    return Tokenizer.from_str(json.dumps(trimmed))


def _rewrap(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with the settings of another, around a backend that is loaded as it stands.

    The generic class is used because the classes of single models rebuild their backend when they
    are loaded, with ids that are fixed in their code.
    """
    named = tokenizer.special_tokens_map
    settings = {name: getattr(tokenizer, name) for name in SETTINGS if hasattr(tokenizer, name)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=[
            token for token in tokenizer.all_special_tokens if token not in named.values()
        ],
        **named,
        **settings,
    )
