"""The lock that keeps a second writer out of a cache's folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mkd_fast.checks import cache as checks

LOCK = "capture.lock"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however that ends.

    Raises:
        RuntimeError: another process or thread is writing there.
        OSError: the lock cannot be made.
    """
    import fcntl  # not on Windows, where a cache can still be read

    path = folder / LOCK
    try:
        file = path.open("wb")
    except OSError as error:
        raise checks.folder_not_made(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise checks.cache_has_a_writer(folder) from None
        if not _is_same(file.fileno(), path):  # the writer before us has just removed it
            raise checks.cache_has_a_writer(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # left behind, it locks nobody out
                path.unlink()


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
