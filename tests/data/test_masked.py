"""Masked text: what is hidden, how much of it, and that it is decided once and by place."""

import numpy as np
import pytest
import torch
from tiny_tokenizer import unigram

from mkd_fast.data.batches import collate, labelled_only
from mkd_fast.data.masked import mask_text
from mkd_fast.data.plain import RunningText

WORDS = [f"w{letter}{other}" for letter in "abcdefghij" for other in "klmnopqrst"]
RNG = np.random.default_rng(0)
TEXT = RunningText(
    [" ".join(RNG.choice(WORDS, RNG.integers(1, 40))) for _ in range(60)], ["en"] * 60
)


@pytest.fixture(scope="module")
def tokenizer():
    return unigram(WORDS, has_mask=True)


def masked(tokenizer, text=TEXT, **changes):
    settings = {"max_length": 20, "num_maskings": 3, "seed": 1} | changes
    return mask_text(text, tokenizer, **settings)


def part(array, text, row):
    return array[text.offsets[row] : text.offsets[row + 1]]


def test_every_piece_of_every_text_is_there_as_often_as_it_is_masked(tokenizer):
    text = masked(tokenizer)
    assert len(text) == 3 * text.num_pieces
    assert text.lengths.max() == 20
    restored = np.where(text.labels >= 0, text.labels, text.ids)
    for masking in range(3):
        rows = range(masking * text.num_pieces, (masking + 1) * text.num_pieces)
        for number, sentence in enumerate(TEXT.texts):
            pieces = [part(restored, text, row)[1:-1] for row in rows if text.texts[row] == number]
            wanted = tokenizer(sentence, add_special_tokens=False)["input_ids"]
            assert np.concatenate(pieces).tolist() == wanted


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_a_fixed_share_of_a_piece_is_to_be_found_at_least_one_token(tokenizer, share):
    text = masked(tokenizer, mask_share=share)
    for row in range(len(text)):
        labels = part(text.labels, text, row)
        assert (labels >= 0).sum() == max(1, round(share * (len(labels) - 2)))
        assert labels[0] == labels[-1] == -100  # special tokens stay


def test_what_is_to_be_found_is_hidden_exchanged_or_left(tokenizer):
    text = masked(tokenizer, num_maskings=40, mask_share=0.5)
    found = text.labels >= 0
    is_hidden = text.ids[found] == tokenizer.mask_token_id
    is_left = text.ids[found] == text.labels[found]
    count = found.sum()
    shares = [is_hidden.mean(), is_left.mean(), (~is_hidden & ~is_left).mean()]
    # an exchanged token may be the same one again: a hundredth of these, of a hundred words
    for share, wanted in zip(shares, [0.8, 0.1 + 0.1 / 100, 0.1 - 0.1 / 100], strict=True):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count)
    assert (text.ids[~found] != tokenizer.mask_token_id).all()


def test_seed_masking_and_piece_decide_alone(tokenizer):
    text = masked(tokenizer)
    assert masked(tokenizer).fingerprint == text.fingerprint
    assert masked(tokenizer, seed=2).fingerprint != text.fingerprint
    more = masked(tokenizer, num_maskings=5)
    assert more.ids[: len(text.ids)].tolist() == text.ids.tolist()
    first, second = (part(text.labels, text, row) for row in (0, text.num_pieces))
    assert first.tolist() != second.tolist()


def test_another_vocabulary_with_the_same_splits_is_masked_alike(tokenizer):
    """What is exchanged is drawn by place: the text's tokens correspond, whatever their ids."""
    other = unigram(WORDS[::-1], has_mask=True)
    text, again = masked(tokenizer), masked(other)
    assert other.convert_ids_to_tokens(again.ids.tolist()) == tokenizer.convert_ids_to_tokens(
        text.ids.tolist()
    )
    assert (text.labels >= 0).tolist() == (again.labels >= 0).tolist()


def test_tokens_to_be_found_are_picked_out_of_a_batch(tokenizer):
    text = masked(tokenizer)
    batch = collate(text, [5, 0])
    chosen = labelled_only(batch)
    assert chosen.input_ids is batch.input_ids
    flat = batch.labels.flatten()
    assert chosen.positions.tolist() == [n for n, label in enumerate(flat.tolist()) if label >= 0]
    assert torch.equal(chosen.labels, flat[chosen.positions])


def test_a_prefix_is_part_of_the_text(tokenizer):
    text = masked(tokenizer, RunningText(["wak wbk"], ["en"]), text_prefix="wck ", mask_share=1.0)
    found = text.labels[: text.offsets[1]]
    assert tokenizer.convert_ids_to_tokens(found[found >= 0].tolist()) == ["▁wck", "▁wak", "▁wbk"]


@pytest.mark.parametrize(
    ("settings", "has_mask", "words"),
    [
        ({"max_length": 2}, True, "max_length must exceed the 2 special tokens, got 2"),
        ({}, False, "mask_text: the tokenizer must have a mask token, got"),
    ],
)
def test_bad_input(settings, has_mask, words):
    with pytest.raises(ValueError, match=words):
        masked(unigram(WORDS, has_mask=has_mask), **settings)
