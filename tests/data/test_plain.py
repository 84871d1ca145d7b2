"""Running text: lines, files and datasets, each text with a language."""

import json
import re

import pytest
from datasets import Dataset

from mkd_fast.data.plain import RunningText, load_running
from mkd_fast.data.tables import HubSource

TEXT = RunningText(["Guten Tag.", "Hello there.", "Bye."], ["de", "en", "en"])


def test_rows_read_back_the_same(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXT.rows()), encoding="utf-8")
    text = load_running(path, label_names=())
    assert text == TEXT
    assert text.fingerprint == TEXT.fingerprint
    assert (text.languages_present, text.label_names) == (("de", "en"), ())
    assert text.select([2, 0]) == RunningText(["Bye.", "Guten Tag."], ["en", "de"])
    assert text.select([2, 0]).fingerprint != text.fingerprint


def test_lines_are_of_an_undetermined_language(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n  \ntwo\u2028still two\n", encoding="utf-8")
    assert load_running(path) == RunningText(["one", "two\u2028still two"], ["und", "und"])


def test_other_columns_do_not_matter(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a", "label": 3, "language": "en"}\n', encoding="utf-8")
    assert load_running(path) == RunningText(["a"], ["en"])


def test_a_dataset_is_read_through_its_column_names(monkeypatch):
    import datasets

    dataset = Dataset.from_dict({"body": TEXT.texts, "lang": TEXT.languages, "label": [1, 2, 3]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    assert load_running(HubSource("x", text_column="body", language_column="lang")) == TEXT


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.txt", b"\n \n", "must have at least one row, got none"),
        ("text.txt", b"", "must have at least one row, got none"),
        ("text.txt", b"ok\n\xff\n", "must be UTF-8, got byte 0xff in line 2"),
        ("text.jsonl", b'{"text": "a"}\n', "must have a column 'language'"),
        ("text.jsonl", b'{"text": " ", "language": "en"}\n', "column 'text' of "),
        ("text.doc", b"a\n", "must end in .jsonl, .csv, .parquet, .txt"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        load_running(path)
