"""Models of a few made-up pieces, merges in any order: the needed ones give the same splits."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from mkd_fast.student.pieces import needed_pieces, pieces_before_unknown, trimmed_model

WORDS = st.text("abc", min_size=1, max_size=9)


def model_of(pieces, merges=(), **settings):
    vocab = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab, list(merges), **settings)
    return json.loads(Tokenizer(model).to_str())["model"]


def split(model, word):
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    found = Tokenizer.from_str(json.dumps({**empty, "model": model})).model.tokenize(word)
    return [token.value if token.value in model["vocab"] else "" for token in found]


@st.composite
def bpe_models(draw):
    """Merges of merges, listed in any order, so that a later one may come first in the list."""
    prefix, suffix = draw(st.sampled_from([("", ""), ("", "c"), ("b", ""), ("#", "."), ("b", "c")]))
    forms = [(before, after) for before in ("", prefix) for after in ("", suffix)]
    pieces = {before + letter + after for letter in "abc" for before, after in forms}
    merges = []
    for _ in range(draw(st.integers(0, 10))):
        left, right = (draw(st.sampled_from(sorted(pieces))) for _ in "lr")
        if right.startswith(prefix) and len(right) > len(prefix):  # as the library needs it
            merges.append((left, right))
            pieces.add(left + right.removeprefix(prefix))
    settings = {"ignore_merges": draw(st.booleans()), "unk_token": "?"}
    affixes = {"continuing_subword_prefix": prefix, "end_of_word_suffix": suffix}
    settings |= {name: affix for name, affix in affixes.items() if affix}
    pieces = draw(st.permutations(["?", *sorted(pieces)]))
    return model_of(pieces, draw(st.permutations(merges)), **settings)


@settings(deadline=None, max_examples=300)
@given(model=bpe_models(), words=st.lists(WORDS, min_size=1, max_size=5))
def test_bpe_of_any_merges_splits_the_same(model, words):
    full = [split(model, word) for word in words]
    kept = {piece for pieces in full for piece in pieces}
    needed = needed_pieces(model, kept)
    assert kept <= needed <= set(model["vocab"])
    names = sorted(needed, key=model["vocab"].get)
    trimmed = trimmed_model(model, {piece: number for number, piece in enumerate(names)})
    assert [split(trimmed, word) for word in words] == full


def test_the_way_to_a_piece_is_kept_and_no_other():
    model = model_of(
        ["a", "b", "c", "ab", "bc", "abc", "cc", "ca"],
        [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")],
    )
    assert needed_pieces(model, {"abc"}) == {"a", "b", "c", "ab", "abc"}
    # no merges lead to this one; and all that may stand for a byte stay
    assert needed_pieces(model, {"ca"}) == {"a", "b", "c", "ca"}
    whole = trimmed_model(model, {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4})
    assert whole["merges"] == [["a", "b"], ["ab", "c"]]


def test_a_piece_at_a_word_s_end_is_not_one_within():
    pieces = ["a", "b", "a</w>", "b</w>", "ab", "ab</w>", "aab</w>"]
    merges = [("a", "b"), ("a", "b</w>"), ("a", "ab</w>")]
    model = model_of(pieces, merges, end_of_word_suffix="</w>")
    assert needed_pieces(model, {"aab</w>"}) == {*pieces} - {"ab"}


def test_wordpiece_says_how_far_it_came():
    vocab = {"?": 0, "ab": 1, "a": 2, "##c": 3, "##bc": 4}
    model = {"vocab": vocab, "continuing_subword_prefix": "##", "max_input_chars_per_word": 4}
    assert list(pieces_before_unknown(model, "abcx")) == ["ab", "##c"]
    assert list(pieces_before_unknown(model, "xab")) == []
    assert list(pieces_before_unknown(model, "abc")) == ["ab", "##c"]
    assert list(pieces_before_unknown(model, "abccc")) == []  # too long to be looked at
