"""Errors of the files room."""

from pathlib import Path

from mkd_fast.checks.wording import is_ours as is_ours
from mkd_fast.checks.wording import os_error_like


def not_written(path: Path, needed: int, free: int, error: OSError) -> OSError:
    """The disk is full or does not let us write; class and errno of the cause are kept."""
    return os_error_like(
        error,
        "write",
        f"{path} must be written whole, {needed:,} bytes",
        f"{error.strerror or error} with {free:,} bytes free",
        "Make room or choose another folder; what was finished is kept, and the same call goes on.",
    )


def folder_not_made(folder: Path, error: Exception) -> OSError:
    """No permission, a file in the way, or a full disk."""
    return os_error_like(
        error,
        "write",
        f"{folder} must be a folder that can be written",
        str(error),
        "Make room, or choose a folder that is yours.",
    )
