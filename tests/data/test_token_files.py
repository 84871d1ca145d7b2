"""Tokens on disk: written once, mapped, and made anew where they are damaged or of other text."""

import json

import numpy as np
import pytest
from chat_templates import CHATML, chat, chat_tokenizer
from tiny_tokenizer import unigram

from mkd_fast.checks.wording import is_ours
from mkd_fast.data import LabelledText, TaggedText, tokenise, tokenise_words
from mkd_fast.data.causal import causal_text
from mkd_fast.data.chats import Chats
from mkd_fast.data.masked import mask_text
from mkd_fast.data.plain import RunningText
from mkd_fast.data.token_files import ABOUT, mapped_tokens

WORDS = ["red", "green", "blue"]
WHAT = {"text": "a", "tokenizer": "b"}


def classified():
    text = LabelledText(["red green", "blue"], [0, 1], ["en", "en"], ("a", "b"))
    return tokenise(text, unigram(WORDS), max_length=9)


def tagged():
    text = TaggedText([["red", "green"]], [[0, 1]], ["en"], ("O", "B-X"))
    return tokenise_words(text, unigram(WORDS), max_length=9)


def masked():
    text = RunningText(["red green blue", "blue"], ["en", "en"])
    return mask_text(text, unigram(WORDS, has_mask=True), max_length=9, num_maskings=2)


def causal():
    chats = Chats([chat("hi", "ho")], ["en"])
    return causal_text(chats, chat_tokenizer(CHATML), max_length=99)


class Maker:
    """Counts how often tokens are made."""

    def __init__(self, make=classified):
        self.make, self.calls = make, 0

    def __call__(self):
        self.calls += 1
        return self.make()


def same(found, wanted):
    assert type(found) is type(wanted)
    assert found.fingerprint == wanted.fingerprint
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), value)


@pytest.mark.parametrize("make", [classified, tagged, masked, causal])
def test_tokens_are_made_once_and_read_back_the_same(tmp_path, make):
    maker, told = Maker(make), []
    for _ in range(3):
        same(mapped_tokens(tmp_path, WHAT, maker, told.append), make())
    assert (maker.calls, told) == (1, [])


def test_arrays_are_pages_of_the_file(tmp_path):
    found = mapped_tokens(tmp_path, WHAT, causal)
    for name in ("ids", "labels", "label_bytes"):
        array = getattr(found, name)
        assert type(array) is np.ndarray
        assert isinstance(array.base, np.memmap)
        array[0] += 1  # of a copy of that page
    same(mapped_tokens(tmp_path, WHAT, causal), causal())


def test_other_settings_are_other_tokens(tmp_path):
    mapped_tokens(tmp_path, WHAT, classified)
    same(mapped_tokens(tmp_path, {**WHAT, "text": "c"}, masked), masked())
    same(mapped_tokens(tmp_path, WHAT, pytest.fail), classified())


def flip_a_bit(own):
    data = bytearray((own / "ids.npy").read_bytes())
    data[-1] ^= 1
    (own / "ids.npy").write_bytes(data)


def shorten(own):
    (own / "labels.npy").write_bytes((own / "labels.npy").read_bytes()[:-4])


def of_other_text(own):
    about = json.loads((own / ABOUT).read_text())
    (own / ABOUT).write_text(json.dumps({**about, "of": "{}"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "ids.npy is damaged"),
        (shorten, "labels.npy is damaged"),
        (lambda own: (own / "offsets.npy").unlink(), "No such file"),
        (lambda own: (own / ABOUT).write_text("{"), "or a file it names cannot be read"),
        (
            lambda own: (own / ABOUT).write_text("{}"),
            "or a file it names cannot be read",
        ),
        (of_other_text, "it is of another text, tokenizer or setting"),
    ],
    ids=["bit", "cut", "gone", "not JSON", "empty", "foreign"],
)
def test_what_is_damaged_or_foreign_is_told_and_made_anew(tmp_path, damage, words):
    maker, told = Maker(), []
    mapped_tokens(tmp_path, WHAT, maker, told.append)
    (own,) = tmp_path.iterdir()
    damage(own)
    same(mapped_tokens(tmp_path, WHAT, maker, told.append), classified())
    assert maker.calls == 2
    assert words in told[0]
    mapped_tokens(tmp_path, WHAT, pytest.fail, pytest.fail)


def test_what_was_not_finished_does_not_count(tmp_path, monkeypatch):
    def stop(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mkd_fast.data.token_files.write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            mapped_tokens(tmp_path, WHAT, classified)
    maker, told = Maker(), []
    same(mapped_tokens(tmp_path, WHAT, maker, told.append), classified())
    assert (maker.calls, told) == (1, [])


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught:
        mapped_tokens(tmp_path / "file", WHAT, classified)
    assert is_ours(caught.value)
