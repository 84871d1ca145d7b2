"""Whether a file of a cache is as it was written."""

from pathlib import Path

from mkd_fast.checks import cache as checks
from mkd_fast.files import sha256_of_file


def require_size(path: Path, num_bytes: int) -> None:
    """Raise ValueError unless a file is there and has this size."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise checks.cache_file_missing(path) from None
    if size != num_bytes:
        raise checks.cache_file_of_other_size(path, size, num_bytes)


def require_whole(path: Path, sha256: str) -> None:
    """Raise ValueError unless a file is there and as the manifest says; reads all of it."""
    if not path.exists():
        raise checks.cache_file_missing(path)
    if sha256_of_file(path) != sha256:
        raise checks.cache_file_of_other_content(path)
