"""Rows of JSONL and Parquet files, few in memory at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mkd_fast.checks import served as checks

SUFFIXES = (".jsonl", ".parquet")
_ROWS_A_BATCH = 64

Row = Mapping[str, Any]


def read_rows(paths: Iterable[str | Path]) -> Iterator[Row]:
    """The rows of some files, one after another.

    Raises:
        ValueError: another suffix, or a line that is not JSON.
        OSError: a file cannot be read.
    """
    for path in map(_known_file, paths):
        yield from _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with _reading_parquet(path):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_ROWS_A_BATCH):
            yield from batch.to_pylist()


@contextmanager
def _reading_parquet(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise checks.not_parquet(path, error) from error


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise checks.line_not_json(path, number) from error
            yield row


def count_rows(paths: Iterable[str | Path]) -> int:
    """How many ``read_rows`` will yield.

    Raises:
        ValueError: another suffix, or no Parquet file.
        OSError: a file cannot be read.
    """
    return sum(
        _num_parquet_rows(path) if path.suffix == ".parquet" else _num_lines(path)
        for path in map(_known_file, paths)
    )


def _num_parquet_rows(path: Path) -> int:
    import pyarrow.parquet

    with _reading_parquet(path):
        return int(pyarrow.parquet.read_metadata(path).num_rows)


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _known_file(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise checks.unknown_suffix("read_rows", path, SUFFIXES)
    if not path.is_file():
        raise checks.no_such_file(path)
    return path
