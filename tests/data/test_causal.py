"""Causal text: the label of a token is the next one, in running text and in answers of chats."""

import numpy as np
import pytest
from chat_templates import CHATML, INST, MARKED, chat, chat_tokenizer
from trained_tokenizers import CORPUS, KINDS

from mkd_fast.data.causal import causal_text
from mkd_fast.data.chats import Chats
from mkd_fast.data.plain import RunningText
from mkd_fast.data.tokens import NO_LABEL

TEXT = RunningText(CORPUS, ["xx"] * len(CORPUS))
CHATS = Chats([chat("turn it on", "done", "and off", "off now"), chat("hi", "ho")], ["en", "en"])


def rows(text):
    """Token ids, labels and bytes of each sample."""
    for begin, end in zip(text.offsets[:-1], text.offsets[1:], strict=True):
        part = slice(begin, end)
        yield text.ids[part], text.labels[part], text.label_bytes[part]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [7, 1000])
def test_every_token_but_the_first_is_a_label_once(kind, max_length):
    tokenizer = KINDS[kind]
    text = causal_text(TEXT, tokenizer, max_length=max_length)
    for number, one in enumerate(CORPUS):
        ids = tokenizer(one)["input_ids"]
        pieces = [piece for piece, of in zip(rows(text), text.texts, strict=True) if of == number]
        assert [i for piece, _, _ in pieces for i in piece.tolist()] == ids[
            : sum(len(piece) for piece, _, _ in pieces)
        ]
        labels = [i for _, piece, _ in pieces for i in piece.tolist()]
        assert [label for label in labels if label != NO_LABEL] == ids[1:]
        assert all(len(piece) <= max_length for piece, _, _ in pieces)


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "BPE", "BPE with bytes"])
def test_bytes_of_the_labels_are_those_of_the_text(kind):
    tokenizer = KINDS[kind]
    text = causal_text(TEXT, tokenizer, max_length=1000)
    assert tokenizer(CORPUS[0])["input_ids"][0] == tokenizer.bos_token_id  # which has no bytes
    wanted = [len(one.encode()) for one in CORPUS]
    assert [int(num_bytes.sum()) for _, _, num_bytes in rows(text)] == wanted
    assert (text.label_bytes[text.labels == NO_LABEL] == 0).all()


def test_a_prefix_is_read_and_not_said():
    tokenizer = KINDS["BPE"]
    text = causal_text(TEXT, tokenizer, max_length=1000, text_prefix="query: ")
    for (ids, labels, _), one in zip(rows(text), CORPUS, strict=True):
        assert ids.tolist() == tokenizer("query: " + one)["input_ids"]
        said = tokenizer.decode(labels[labels != NO_LABEL].tolist(), skip_special_tokens=True)
        assert said.strip() == one


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["chatml", "marked"])
def test_of_a_chat_the_answers_are_said_and_their_ends(template):
    tokenizer = chat_tokenizer(template)
    text = causal_text(CHATS, tokenizer, max_length=1000)
    said = [tokenizer.decode(labels[labels != NO_LABEL].tolist()) for _, labels, _ in rows(text)]
    assert said == ["done<|im_end|>off now<|im_end|>", "ho<|im_end|>"]
    whole = tokenizer.apply_chat_template(CHATS.chats[0], tokenize=True, return_dict=False)
    ids, labels, num_bytes = next(rows(text))
    assert ids.tolist() == whole
    counted = np.flatnonzero(labels != NO_LABEL)
    assert labels[counted].tolist() == ids[counted + 1].tolist()
    assert num_bytes.sum() == len("".join(said[:1]))
    assert text.num_lost == 0
    assert text.num_said == sum((labels != NO_LABEL).sum() for _, labels, _ in rows(text))


def test_the_mask_of_a_marked_template_is_that_of_transformers():
    tokenizer = chat_tokenizer(MARKED)
    text = causal_text(CHATS, tokenizer, max_length=1000)
    for (_, labels, _), messages in zip(rows(text), CHATS.chats, strict=True):
        theirs = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        assert [*(labels[:-1] != NO_LABEL).astype(int)] == theirs[1:]


def test_a_template_without_a_prompt_to_answer():
    tokenizer = chat_tokenizer(INST)
    _, labels, _ = next(rows(causal_text(CHATS, tokenizer, max_length=1000)))
    assert tokenizer.decode(labels[labels != NO_LABEL].tolist()) == " done </s> off now </s>"


def test_a_chat_that_is_too_long_is_cut_off():
    tokenizer = chat_tokenizer(CHATML)
    whole = causal_text(CHATS, tokenizer, max_length=1000)
    first, _ = rows(whole)
    until = int(np.flatnonzero(first[1] != NO_LABEL)[1]) + 1
    cut = causal_text(CHATS, tokenizer, max_length=until)
    assert cut.num_lost == whole.num_said - cut.num_said > 0
    assert next(rows(cut))[0].tolist() == first[0][:until].tolist()
    with pytest.raises(ValueError, match="a token to be said within max_length, got none within 3"):
        causal_text(CHATS, tokenizer, max_length=3)


def test_a_tokenizer_without_a_pad_token_will_do():
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.pad_token = None
    assert causal_text(CHATS, tokenizer, max_length=99).pad_id == tokenizer.eos_token_id


def test_bad_max_length():
    with pytest.raises(ValueError, match="max_length must be positive, got 0"):
        causal_text(TEXT, KINDS["BPE"], max_length=0)
