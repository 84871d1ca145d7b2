"""Chats: read, written by a template, and which of it is the assistant's."""

import re

import pytest
from chat_templates import (
    ALTERNATING,
    CHATML,
    FIRST_ONLY,
    HEADER_WITHOUT_PROMPT,
    INST,
    MARKED,
    SHOUTING,
    THINKING,
    chat,
    chat_tokenizer,
)
from tiny_job import write_rows

from mkd_fast.checks.wording import is_ours
from mkd_fast.data import HubSource
from mkd_fast.data.chats import Chats, has_chats, load_chats, write_chats

ONE = chat("how are you", "well")
TWO = chat("turn it on", "done", "and off", "done: it is off")
SYSTEM = [{"role": "system", "content": "be brief"}, *TWO]


def rows(*chats):
    return [{"messages": messages, "language": "en"} for messages in chats]


def answers(template, messages):
    (written,) = write_chats([messages], chat_tokenizer(template))
    return [written.text[begin:end] for begin, end in written.answers]


def test_what_is_read_is_written_and_read_again(tmp_path):
    path = write_rows(tmp_path / "chats.jsonl", rows(ONE, TWO, SYSTEM))
    chats = load_chats(path)
    assert (chats.chats, chats.languages) == ([ONE, TWO, SYSTEM], ["en"] * 3)
    again = load_chats(write_rows(tmp_path / "again.jsonl", list(chats.rows())))
    assert again == chats
    assert again.fingerprint == chats.fingerprint != chats.select([0, 2]).fingerprint
    assert chats.texts[0] == "how are you\nwell"
    assert chats.languages_present == ("en",)


def test_a_parquet_file_holds_chats_too(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "chats.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(ONE, TWO)), path)
    assert has_chats(path)
    assert load_chats(path).chats == [ONE, TWO]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("chats.jsonl", '{"messages": [], "language": "en"}', True),
        ("text.jsonl", '{"text": "a", "language": "en"}', False),
        ("broken.jsonl", "{", False),
        ("empty.jsonl", "", False),
        ("lines.txt", "messages", False),
    ],
)
def test_a_file_is_known_by_its_columns(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_text(content)
    assert has_chats(path) == found


def test_a_dataset_is_known_by_the_name_of_its_column():
    assert has_chats(HubSource("some/chats", text_column="messages"))
    assert not has_chats(HubSource("some/text"))
    assert not has_chats("some/text")


@pytest.mark.parametrize(
    ("messages", "kind", "words"),
    [
        (chat("hello"), ValueError, "must have a message of the role 'assistant', got none in row"),
        (chat("hello", " "), ValueError, "must say something, got an empty one of 'assistant'"),
        ("hello", TypeError, "lists of a role and a content, both text, got 'hello' in row 1"),
        ([{"role": "user"}], TypeError, "both text, got {'role': 'user'} in row 1"),
        (
            [{"role": "user", "content": "hello", "image": "x"}],
            TypeError,
            "both text, got {'role': 'user', 'content': 'hello', 'image': 'x'} in row 1",
        ),
        ([{"role": "user", "content": 1}], TypeError, "both text, got"),
    ],
)
def test_what_is_no_chat_is_refused(tmp_path, messages, kind, words):
    path = write_rows(tmp_path / "chats.jsonl", rows(messages))
    with pytest.raises(kind, match=re.escape(words)) as caught:
        load_chats(path)
    assert is_ours(caught.value)


@pytest.mark.parametrize(
    ("template", "messages", "found"),
    [
        (CHATML, ONE, ["well<|im_end|>\n"]),
        (CHATML, SYSTEM, ["done<|im_end|>\n", "done: it is off<|im_end|>\n"]),
        (MARKED, SYSTEM, ["done<|im_end|>", "done: it is off<|im_end|>"]),
        (MARKED, chat("x", "y")[1:], ["y<|im_end|>"]),  # which prefixes could not tell
        (INST, TWO, [" done </s>", " done: it is off </s>"]),
        (THINKING, ONE, ["<think>\n\n</think>\n\nwell<|im_end|>\n"]),
    ],
    ids=["chatml", "two turns", "marked", "marked, answer first", "inst", "thinking"],
)
def test_the_answers_are_found(template, messages, found):
    assert answers(template, messages) == found


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (None, ONE, "the tokenizer must have a chat template, got"),
        (THINKING, TWO, "the beginning of a chat alike, whatever follows, got another one up to"),
        (HEADER_WITHOUT_PROMPT, ONE, "must show where an answer is, as 'well', got '<|im_start|>"),
        (SHOUTING, ONE, "must show where an answer is, as 'well', got 'WELL<|im_end|>"),
        (FIRST_ONLY, ONE, "must show where an answer is, as 'well', got ''"),
        (ALTERNATING, SYSTEM, "must take every chat, got 'roles must alternate' for chat 1"),
        (CHATML, chat("x", "y")[1:], "must begin with another message than an answer, got chat 1"),
        (
            "{% generation %}all{% endgeneration %}",
            TWO,
            "a generation block for each answer, got 1",
        ),
        (
            MARKED.replace("{{ m['content'] }}<|im_end|>{% end", "{% end"),
            ONE,
            "must show where an answer is, as 'well', got ''",
        ),
    ],
    ids=[
        "none",
        "thoughts taken out",
        "header",
        "changed",
        "left out",
        "refused",
        "answer first",
        "too few blocks",
        "empty block",
    ],
)
def test_a_template_that_cannot_be_masked_right_is_refused(template, messages, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        answers(template, messages)
    assert is_ours(caught.value)


def test_a_selection_keeps_the_languages():
    chats = Chats([ONE, TWO], ["en", "de"])
    assert chats.select([1]).languages == ["de"]
    assert len(chats) == 2
