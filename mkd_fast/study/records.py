"""Rows of JSON that are appended one at a time, each there whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mkd_fast.checks import study as checks
from mkd_fast.files import make_folder, writing_into

Row = dict[str, Any]
LOCK = ".lock"


def key_of(decisive: Mapping[str, Any]) -> str:
    """sha256, in hexadecimal digits, of everything that decides a result."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class Rows:
    """A JSONL file of rows, each with a "key" of its own.

    Args:
        path: the file, which need not exist. What a killed process has left of a row is ignored,
            and removed by the next ``append``.

    Raises:
        ValueError: a whole line that is not a row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_key: dict[str, Row] = {}
        self._size = 0
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                row = json.loads(line)
                self._by_key[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise checks.row_not_read(path, number, error) from error

    def _whole_lines(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                self._size += len(line)
                yield line

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> Row:
        return self._by_key[key]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def append(self, row: Row) -> None:
        """Add a row and have it on disk before this returns.

        Raises:
            OSError: it could not be written; the rows before it are as they were.
        """
        line = (json.dumps(row) + "\n").encode()
        make_folder(self.path.parent)
        with writing_into(self.path.parent), self.path.open("ab") as file:
            file.truncate(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)
        self._by_key[row["key"]] = row


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however that ends.

    Raises:
        RuntimeError: another process holds it.
    """
    import fcntl  # not on Windows

    make_folder(folder)
    with writing_into(folder):
        file = (folder / LOCK).open("wb")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise checks.study_is_running(folder) from None
        yield
