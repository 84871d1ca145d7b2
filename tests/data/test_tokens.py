"""tokenise: ragged ids are the tokenizer's own, and the hashes are stable."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mkd_fast.data import tokens
from mkd_fast.data.text import LabelledText
from mkd_fast.data.tokens import tokenise

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "query:": 4, "on": 5, "off": 6, "now": 7}
TEXT = LabelledText(["on now", "off", "on off on off"], [1, 0, 1], ["en"] * 3, ("a", "b"))


@pytest.fixture
def tokenizer():
    fast = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", unk_token="<unk>")


def test_rows_offsets_and_labels(tokenizer):
    tokenised = tokenise(TEXT, tokenizer, max_length=5, text_prefix="query: ")
    assert tokenised.row(0).tolist() == [0, 4, 5, 7, 2]
    assert tokenised.row(1).tolist() == [0, 4, 6, 2]
    assert tokenised.row(2).tolist() == [0, 4, 5, 6, 2]
    assert tokenised.lengths.tolist() == [5, 4, 5]
    assert tokenised.labels.tolist() == [1, 0, 1]
    assert (tokenised.ids.dtype, tokenised.offsets.dtype) == (np.int32, np.int64)
    assert tokenised.pad_id == 1


def test_blocks_of_texts_change_nothing(tokenizer, monkeypatch):
    whole = tokenise(TEXT, tokenizer, max_length=8)
    monkeypatch.setattr(tokens, "_TEXTS_PER_CALL", 2)
    assert tokenise(TEXT, tokenizer, max_length=8).fingerprint == whole.fingerprint


def test_fingerprint_sees_prefix_and_labels(tokenizer):
    plain = tokenise(TEXT, tokenizer, max_length=8)
    prefixed = tokenise(TEXT, tokenizer, max_length=8, text_prefix="query: ")
    relabelled = LabelledText(TEXT.texts, [0, 0, 1], TEXT.languages, TEXT.label_names)
    other = tokenise(relabelled, tokenizer, max_length=8)
    assert len({plain.fingerprint, prefixed.fingerprint, other.fingerprint}) == 3


def test_token_hash_is_blake2b_of_the_ids(tokenizer):
    tokenised = tokenise(TEXT, tokenizer, max_length=8)
    # blake2b-8 of 0, 6, 2 as little-endian int32, read as a little-endian number.
    assert tokenised.token_hash(1) == 727405583375719331
    assert tokenised.token_hash(0) != tokenised.token_hash(2)


def test_no_texts(tokenizer):
    empty = tokenise(TEXT.select([]), tokenizer, max_length=8)
    assert len(empty) == 0
    assert empty.lengths.tolist() == []


def test_max_length_must_leave_room(tokenizer):
    with pytest.raises(ValueError, match="max_length must exceed the 2 special tokens, got 2"):
        tokenise(TEXT, tokenizer, max_length=2)


def test_a_pad_token_is_needed(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="tokenizer must have a pad token"):
        tokenise(TEXT, tokenizer, max_length=8)
