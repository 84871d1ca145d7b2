"""tokenise: ragged ids are the tokenizer's own, and the hashes are stable."""

import numpy as np
import pytest
from tiny_tokenizer import unigram
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mkd_fast.data import tokens
from mkd_fast.data.batches import collate
from mkd_fast.data.tagged import TaggedText
from mkd_fast.data.text import LabelledText
from mkd_fast.data.tokens import tokenise, tokenise_words

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


# --- words ---

TAGGED = TaggedText(
    [["Anna", "nowhere", "on"], ["\u200b", "off", "now"], ["on"]],
    [[1, 0, 2], [0, 1, 2], [0]],
    ["en"] * 3,
    ("O", "B-X", "I-X"),
)


@pytest.fixture
def pieces():
    """Words `on`, `off`, `now` whole, everything else by letters; nothing of U+200B."""
    made = unigram(["on", "off", "now"], letters="Aanowherquy:")
    made.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    return made


def labels_of(tokenised, row):
    return tokenised.labels[tokenised.offsets[row] : tokenised.offsets[row + 1]].tolist()


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_a_word_s_label_is_at_its_first_piece(pieces, prefix):
    tokenised = tokenise_words(TAGGED, pieces, max_length=40, text_prefix=prefix)
    shown = pieces.convert_ids_to_tokens(tokenised.row(0).tolist())
    labelled = [
        (piece, n) for piece, n in zip(shown, labels_of(tokenised, 0), strict=True) if n >= 0
    ]
    first = "▁" if not prefix else "A"  # the space before the first word is made of its letter
    assert labelled == [(first, 1), ("▁now", 0), ("▁on", 2)]
    assert tokenised.word_numbers(0).tolist() == [0, 1, 2]
    assert labels_of(tokenised, 2).count(0) == 1


def test_the_pieces_are_those_of_the_text(pieces):
    plain = LabelledText(TAGGED.texts, [0] * 3, ["en"] * 3, ("a",))
    wanted = tokenise(plain, pieces, max_length=40, text_prefix="query: ")
    found = tokenise_words(TAGGED, pieces, max_length=40, text_prefix="query: ")
    assert found.ids.tolist() == wanted.ids.tolist()
    assert found.offsets.tolist() == wanted.offsets.tolist()


def test_words_without_a_piece_are_lost_and_counted(pieces):
    whole = tokenise_words(TAGGED, pieces, max_length=40)
    assert whole.word_numbers(1).tolist() == [1, 2]
    assert (whole.num_words, whole.num_lost) == (7, 1)
    cut = tokenise_words(TAGGED, pieces, max_length=7)  # <s> ▁ A n n a </s>
    assert cut.word_numbers(0).tolist() == [0]
    assert cut.num_lost == 3
    assert len(cut.row(0)) == 7


def test_a_piece_of_two_words_is_the_first_one_s():
    backend = Tokenizer(
        models.Unigram(
            [("<unk>", -9.0), ("<pad>", 0.0), ("on off", -1.0), (" ", -1.0), ("now", -1.0)], 0
        )
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    text = TaggedText([["on", "off", "now"]], [[1, 0, 2]], ["en"], TAGGED.label_names)
    tokenised = tokenise_words(text, fast, max_length=8)
    assert labels_of(tokenised, 0) == [1, -100, 2]
    assert tokenised.words.tolist() == [0, -1, 2]
    assert tokenised.num_lost == 1


def test_labels_of_a_batch_are_padded(pieces):
    tokenised = tokenise_words(TAGGED, pieces, max_length=40)
    batch = collate(tokenised, [2, 0])
    assert batch.labels.shape == batch.input_ids.shape
    assert batch.labels[0].tolist() == labels_of(tokenised, 2) + [-100] * (
        batch.labels.shape[1] - len(tokenised.row(2))
    )
    assert batch.labels[1].tolist() == labels_of(tokenised, 0)


def test_blocks_of_sentences_change_nothing(pieces, monkeypatch):
    whole = tokenise_words(TAGGED, pieces, max_length=40)
    monkeypatch.setattr(tokens, "_TEXTS_PER_CALL", 2)
    assert tokenise_words(TAGGED, pieces, max_length=40).fingerprint == whole.fingerprint
    retagged = TaggedText(TAGGED.sentences, [[0, 0, 0], [0, 0, 0], [0]], ["en"] * 3, ("O",))
    assert tokenise_words(retagged, pieces, max_length=40).fingerprint != whole.fingerprint


def test_words_need_room_and_a_pad_token(pieces):
    with pytest.raises(ValueError, match="max_length must exceed the 2 special tokens, got 2"):
        tokenise_words(TAGGED, pieces, max_length=2)
    pieces.pad_token = None
    with pytest.raises(ValueError, match="tokenizer must have a pad token"):
        tokenise_words(TAGGED, pieces, max_length=8)
