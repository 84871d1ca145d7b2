"""Rows that are there whole or not at all."""

import json
import re

import pytest

from mkd_fast.study.records import Rows, key_of, only_process


def row(key, **values):
    return {"key": key, **values}


def test_rows_read_back_in_their_order(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows = Rows(path)
    rows.append(row("b", text="a\u2028b\nc"))
    rows.append(row("a", number=1.5))
    again = Rows(path)
    assert list(again) == list(rows) == [row("b", text="a\u2028b\nc"), row("a", number=1.5)]
    assert "a" in again
    assert "c" not in again
    assert again["b"]["text"] == "a\u2028b\nc"


def test_every_beginning_of_a_file_holds_its_whole_rows_and_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    rows.append(row("a", x=1))
    rows.append(row("b", x=2))
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        left = Rows(path)
        assert len(left) == content[:size].count(b"\n")
        left.append(row("c"))
        assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [
            *(found["key"] for found in left if found["key"] != "c"),
            "c",
        ]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"no": "key"}'], ids=["cut", "list", "number", "keyless"]
)
def test_a_line_that_is_no_row_is_told(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path} must hold one JSON object a line")):
        Rows(path)


def test_a_key_is_of_the_content_and_not_of_its_order():
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert len(key_of({})) == 64


def test_the_lock_is_free_again_afterwards(tmp_path):
    with (
        only_process(tmp_path),
        pytest.raises(RuntimeError, match="one process at a time"),
        only_process(tmp_path),
    ):
        pass
    with only_process(tmp_path):
        pass
