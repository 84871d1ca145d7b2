"""Whole files or none, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from file_limit import file_size_limit

from mkd_fast.checks.wording import is_ours
from mkd_fast.files import make_folder, read_json, write_atomically, write_json, writing_into

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_parts_are_written_one_after_another(tmp_path):
    path = tmp_path / "file.bin"
    digest = write_atomically(path, [b"one", bytearray(b"two"), memoryview(b"three")])
    assert path.read_bytes() == b"onetwothree"
    assert digest == hashlib.sha256(b"onetwothree").hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"before, and longer")
    write_atomically(path, [b"after"])
    assert path.read_bytes() == b"after"


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("owner", [os, Path], ids=["fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_whatever_fails_the_file_is_as_before(tmp_path, monkeypatch, before, owner, error):
    path = tmp_path / "file.bin"
    if before is not None:
        path.write_bytes(before)

    def fail(*_):
        raise error

    monkeypatch.setattr(owner, "fsync" if owner is os else "replace", fail)
    with pytest.raises(type(error)):
        write_atomically(path, [b"half", b"other half"])
    assert [child.read_bytes() for child in tmp_path.iterdir()] == ([before] if before else [])


def test_a_file_that_becomes_too_large_is_as_before(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, [bytes(1000)])
    message = "must be written whole, 100,001 bytes, got File too large"
    with file_size_limit(1000), pytest.raises(OSError, match=message):
        write_atomically(path, [bytes(100_000), b"x"])
    assert [child.read_bytes() for child in tmp_path.iterdir()] == [bytes(1000)]


def test_a_full_disk_is_told_with_what_is_needed(tmp_path, monkeypatch):
    def fail(*_):
        raise FULL

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "file.bin"
    message = f"write: {path} must be written whole, 2,048 bytes, got No space left on device with "
    with pytest.raises(OSError, match=re.escape(message)) as caught:
        write_atomically(path, [bytes(1024), bytes(1024)])
    assert caught.value.errno == errno.ENOSPC
    assert is_ours(caught.value)
    assert re.search(r"with [\d,]+ bytes free\. Make room", str(caught.value))


@pytest.mark.parametrize(
    ("make_parent", "kind"),
    [(lambda path: None, FileNotFoundError), (lambda path: path.touch(), NotADirectoryError)],
)
def test_a_file_without_its_folder(tmp_path, make_parent, kind):
    make_parent(tmp_path / "parent")
    with pytest.raises(kind, match="must be written whole, 1 bytes, got") as caught:
        write_atomically(tmp_path / "parent" / "file.bin", [b"x"])
    assert is_ours(caught.value)


def test_folders_are_made_with_their_parents(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(("below", "kind"), [("", FileExistsError), ("b/c", NotADirectoryError)])
def test_a_file_in_the_way_of_a_folder(tmp_path, below, kind):
    (tmp_path / "a").touch()
    folder = tmp_path / "a" / below
    message = f"{folder} must be a folder that can be written, got "
    with pytest.raises(kind, match=re.escape(message)) as caught:
        make_folder(folder)
    assert is_ours(caught.value)


def test_json_is_readable_and_reads_back(tmp_path):
    path = tmp_path / "new" / "file.json"
    content = {"text": "küche \u2028", "numbers": [1, 2.5, None]}
    write_json(path, content)
    assert read_json(path) == content
    assert "küche" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_json_that_is_not_there(tmp_path):
    assert read_json(tmp_path / "absent.json") is None
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "file" / "below.json") is None


def test_json_that_cannot_be_written_leaves_the_old(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, [1])
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]


def test_writing_into_words_errors_of_others_and_keeps_ours(tmp_path):
    with (
        pytest.raises(IsADirectoryError, match="must be a folder that can be written") as caught,
        writing_into(tmp_path),
    ):
        tmp_path.write_text("x")
    assert is_ours(caught.value)
    with pytest.raises(FileNotFoundError, match="must be written whole"), writing_into(tmp_path):
        write_atomically(tmp_path / "absent" / "file.bin", [b"x"])
