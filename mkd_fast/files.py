"""Files that are either there whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mkd_fast.checks import files as checks


def write_atomically(path: Path, parts: Sequence[Any]) -> str:
    """Write a file so that at any moment it is either absent (or as before) or complete.

    Args:
        path: the file; it is replaced where it exists. Its folder must exist.
        parts: objects with the buffer interface, written one after another.

    Returns:
        sha256 of the content, in hexadecimal digits.

    Raises:
        OSError: of the class of the cause, saying how many bytes were needed and are free. No
            partial file is left.
    """
    digest = hashlib.sha256()
    with written_whole(path, sum(memoryview(part).nbytes for part in parts)) as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def written_whole(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends without error.

    Args:
        path: as of ``write_atomically``.
        num_bytes: that are needed, for the error.

    Raises:
        OSError: as ``write_atomically``.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise checks.not_written(path, num_bytes, free, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256_of(parts: Iterable[Any]) -> str:
    """sha256, in hexadecimal digits, of the file that these parts would make."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file for others to write; it takes the place of ``path`` when it is whole.

    Raises:
        OSError: of the class of the cause. No partial file is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with writing_into(path.parent):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def move_folder(folder: Path, to: Path) -> None:
    """Give a finished folder the name by which it is found; one of that name is replaced.

    Raises:
        OSError: of the class of the cause.
    """
    with writing_into(to.parent):
        _sync_folder(folder)
        if to.exists():
            shutil.rmtree(to)
        folder.rename(to)
        _sync_folder(to.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; an error keeps its class and names the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checks.folder_not_made(folder, error) from error


@contextlib.contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Errors of files that others write there keep their class, and say what to do."""
    try:
        yield
    except OSError as error:
        if checks.is_ours(error):
            raise
        raise checks.folder_not_made(folder, error) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, making the folder it belongs to."""
    make_folder(path.parent)
    write_atomically(path, [(json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()])


def read_json(path: Path) -> Any:
    """Read JSON, or None where there is no such file (nor, perhaps, its folder)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
