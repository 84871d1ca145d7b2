"""A trimmed tokenizer splits text over its tokens as the full one does, whatever its model."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from trained_tokenizers import CORPUS, KINDS, byte_level_bpe, edited
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from mkd_fast.student import (
    check_same_splits,
    token_ids_of_text,
    trim_tokenizer,
    used_token_ids,
)

WORDS = sorted({word for line in CORPUS for word in line.split()})
CHARACTERS = sorted(set("".join(WORDS)))
TEXT = st.lists(
    st.one_of(st.sampled_from(WORDS), st.text(CHARACTERS, min_size=1, max_size=6)), max_size=5
).map(" ".join)


@pytest.fixture(params=KINDS)
def full(request):
    return KINDS[request.param]


def ids_of(tokenizer, texts):
    return [np.array(tokenizer(text)["input_ids"]) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(TEXT, st.text(max_size=8)), min_size=1, max_size=4))
def test_text_over_kept_tokens_splits_the_same_way(kind, texts):
    full = KINDS[kind]
    trimmed, token_map = trim_tokenizer(full, token_ids_of_text(texts, full))
    check_same_splits(full, trimmed, texts)
    for old, new in zip(ids_of(full, texts), ids_of(trimmed, texts), strict=True):
        assert token_map.old_to_new[torch.from_numpy(old).long()].tolist() == new.tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_so_does_any_text_whose_split_has_kept_pieces_only(kind, data):
    """Whatever is kept: texts are made of kept pieces, and those that split into others go."""
    full = KINDS[kind]
    ids = st.integers(0, len(full) - 1)
    trimmed, token_map = trim_tokenizer(full, used_token_ids(data.draw(st.sets(ids)), full))
    made = st.lists(st.sampled_from(token_map.keep_token_ids), max_size=8).map(full.decode)
    texts = data.draw(st.lists(st.one_of(made, TEXT), min_size=1, max_size=8))
    kept = set(token_map.keep_token_ids)
    if kind == "WordPiece":  # a word that was unknown as a whole is another test's
        kept.remove(full.unk_token_id)
    check_same_splits(full, trimmed, [t for t in texts if kept.issuperset(full(t)["input_ids"])])


def test_the_trimmed_tokenizer_is_small_and_complete(full):
    texts = CORPUS[:2]
    before = full.backend_tokenizer.to_str()
    asked = used_token_ids(ids_of(full, texts), full)
    trimmed, token_map = trim_tokenizer(full, asked)
    assert full.backend_tokenizer.to_str() == before
    assert set(asked) <= set(token_map.keep_token_ids)
    assert list(token_map.keep_token_ids) == sorted(token_map.keep_token_ids)
    assert len(trimmed) == len(token_map.keep_token_ids) < len(full)
    old_tokens = full.convert_ids_to_tokens(list(token_map.keep_token_ids))
    assert trimmed.convert_ids_to_tokens(list(range(len(trimmed)))) == old_tokens
    assert trimmed.special_tokens_map == full.special_tokens_map
    assert trimmed.model_max_length == 64
    pair = "turn on", "the lights"
    assert trimmed(*pair)["input_ids"] == [
        int(token_map.old_to_new[old]) for old in full(*pair)["input_ids"]
    ]


def test_keeping_every_token_changes_nothing(full):
    trimmed, token_map = trim_tokenizer(full, range(len(full)))
    assert token_map.keep_token_ids == tuple(range(len(full)))
    assert trimmed.get_vocab() == full.get_vocab()
    check_same_splits(full, trimmed, [*CORPUS, "", "unseen ☃"])


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_words_fall_back_to_pieces(kind):
    full = KINDS[kind]
    trimmed, _ = trim_tokenizer(full, token_ids_of_text(["turn the lights"], full))
    text = "hitting the little gerunls"
    if kind in ("WordPiece", "BPE with a prefix"):  # each form of a letter must have been learnt
        text = "gths the tturn"
    ids = trimmed(text)["input_ids"]
    assert trimmed.unk_token_id not in ids
    decoded = trimmed.decode(ids, skip_special_tokens=True)
    assert decoded.replace("Ġ", " ").split() == text.split()


@pytest.mark.parametrize("kind", ["BPE", "BPE that ignores merges", "BPE with bytes"])
def test_bytes_can_still_write_anything(kind):
    trimmed, _ = trim_tokenizer(KINDS[kind], token_ids_of_text(["on"], KINDS[kind]))
    assert trimmed.decode(trimmed("☃ 漢字")["input_ids"], skip_special_tokens=True) == " ☃ 漢字"


def test_added_tokens_past_the_model_are_kept_if_used():
    full = byte_level_bpe()
    full.add_tokens(["<room>", "<device>"])
    texts = ["turn on <device>"]
    trimmed, _ = trim_tokenizer(full, token_ids_of_text(texts, full))
    check_same_splits(full, trimmed, texts)
    assert "<device>" in trimmed.get_vocab()
    assert "<room>" not in trimmed.get_vocab()


def test_what_a_chat_template_writes_is_kept():
    full = byte_level_bpe()
    full.add_tokens(["<turn>", "<tool>", "<never>"])
    full.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    trimmed, _ = trim_tokenizer(full, token_ids_of_text(["turn on"], full))
    chat = [{"role": "user", "content": "turn on"}]
    assert "<tool>" not in trimmed.get_vocab()
    ids = trimmed.apply_chat_template(chat)["input_ids"]
    assert trimmed.convert_ids_to_tokens(ids) == ["<turn>", "Ġturn", "Ġon"]
    full.chat_template = {"default": full.chat_template, "tools": "<tool>"}
    kept = full.convert_ids_to_tokens(token_ids_of_text(["turn on"], full))
    assert {"<turn>", "<tool>"} <= set(kept)
    assert "<never>" not in kept


def test_an_added_token_is_also_a_piece_where_it_does_not_match():
    """It stands for whole words only, and within a longer one the model's merges make it."""
    full = byte_level_bpe()
    full.add_tokens([AddedToken("gh", single_word=True, normalized=False)])
    texts = ["lights", "gh"]
    assert "gh" in full.tokenize("lights")
    trimmed, _ = trim_tokenizer(full, used_token_ids([full.convert_tokens_to_ids(["gh"])], full))
    assert trimmed.tokenize("xgh")[-1] == "gh"
    trimmed, _ = trim_tokenizer(full, token_ids_of_text(texts, full))
    check_same_splits(full, trimmed, texts)


def test_a_model_class_with_fixed_ids_becomes_the_generic_one(tmp_path):
    backend = json.loads(KINDS["BPE"].backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in backend["merges"]]
    full = RobertaTokenizer(vocab=backend["vocab"], merges=merges)
    trimmed, _ = trim_tokenizer(full, used_token_ids(ids_of(full, CORPUS[:3]), full))
    trimmed.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [*CORPUS[:3], "turn <mask> on"]
    check_same_splits(full, loaded, texts)
    assert loaded.backend_tokenizer.to_str() == trimmed.backend_tokenizer.to_str()
    assert loaded.mask_token_id == trimmed.mask_token_id


@pytest.mark.parametrize(
    "ids", [[[5, 9], [9, 7]], [torch.tensor([[5, 9], [9, 7]])], [np.array([5, 9, 7], np.int32)]]
)
def test_used_ids_are_those_of_the_text_and_the_special_ones(ids):
    assert used_token_ids(ids, KINDS["Unigram"]) == [0, 1, 2, 3, 4, 5, 7, 9]


@pytest.mark.parametrize("coverage", [0.3, 0.8, 0.999])
def test_the_most_frequent_ids_that_cover_a_share(full, coverage):
    special = set(used_token_ids([], full))
    tokens = [n for ids in ids_of(full, CORPUS) for n in ids.tolist() if n not in special]
    kept = set(token_ids_of_text(iter(CORPUS), full, coverage)) - special
    counts = Counter(tokens)
    covered = sum(counts[token_id] for token_id in kept)
    rarest = min(kept, key=lambda token_id: (counts[token_id], -token_id))
    assert covered >= coverage * len(tokens) > covered - counts[rarest]
    assert all(counts[left] <= counts[rarest] for left in set(tokens) - kept)
    whole = token_ids_of_text(iter(CORPUS), full)
    assert whole == used_token_ids(ids_of(full, CORPUS), full)
    assert kept < set(whole)


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_out_of_its_range(coverage):
    message = r"^token_ids_of_text: coverage must lie in \(0, 1\].* got "
    with pytest.raises(ValueError, match=message):
        token_ids_of_text(CORPUS, KINDS["BPE"], coverage)


def test_no_text_leaves_the_special_tokens(full):
    assert token_ids_of_text([], full) == token_ids_of_text([""], full) == used_token_ids([], full)


@pytest.fixture
def word_of_two_ways():
    """`abx` is unknown to it, for `ab` comes first; without `ab` it is `a ##bx`."""
    pieces = {"<unk>": 0, "ab": 1, "a": 2, "##bx": 3, "##y": 4}
    backend = Tokenizer(models.WordPiece(pieces, unk_token="<unk>", max_input_chars_per_word=6))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_a_split_that_changed_is_named(word_of_two_ways):
    trimmed, _ = trim_tokenizer(word_of_two_ways, [0, 2, 3])
    message = "must split 'a abx' into ['a', '<unk>'], got ['a', 'a', '##bx']. Add this text"
    with pytest.raises(ValueError, match=f"^check_same_splits: .*{re.escape(message)}"):
        check_same_splits(word_of_two_ways, trimmed, ["a", "a abx", "abx"])


def test_a_word_that_was_unknown_stays_so(word_of_two_ways):
    texts = ["a ABx, abxxxxxxx"]
    keep = token_ids_of_text([*texts, "abx" * 3], word_of_two_ways)
    assert keep == [0, 1, 2]
    trimmed, _ = trim_tokenizer(word_of_two_ways, [*keep, 3])
    check_same_splits(word_of_two_ways, trimmed, texts)


def refuse(message, tokenizer, keep, error=ValueError):
    with pytest.raises(error, match=re.escape(message)):
        trim_tokenizer(tokenizer, keep)


def test_what_cannot_be_trimmed_is_refused(full):
    without = [token_id for token_id in range(len(full)) if token_id not in {1, 4}]
    refuse("must contain the special tokens, got none of <mask>, <pad>.", full, without)
    refuse(f"distinct and lie in [0, {len(full)})", full, [len(full)])
    refuse("trim_tokenizer: tokenizer must be a fast one", object(), [0], TypeError)


def test_models_that_split_otherwise_are_refused():
    rule = "trim_tokenizer: the tokenizer's model must be Unigram, WordPiece or BPE, got WordLevel."
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    refuse(rule, PreTrainedTokenizerFast(tokenizer_object=words), [0])


def test_a_split_by_chance_is_refused():
    full = edited(KINDS["BPE"], lambda state: state["model"].update(dropout=0.1))
    refuse(
        "must split a text the same way each time, got a BPE model with dropout=0.1",
        full,
        [*range(5)],
    )
    full.backend_tokenizer.model.dropout = None  # as the message says
    trim_tokenizer(full, range(5))


def test_added_tokens_that_would_change_their_ids_are_refused():
    """The added token sits between the ids of the model, where a rebuilt one cannot."""
    backend = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1, "b": 5}, unk_token="<unk>"))
    backend.add_tokens(["<x>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    refuse("trim_tokenizer: token '<x>' must get the id 2, got", tokenizer, [0, 1, 3, 5])
