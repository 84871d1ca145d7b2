"""Errors of the files room."""

from pathlib import Path

from mkd_fast.checks.wording import is_ours as is_ours
from mkd_fast.checks.wording import os_error_like, runtime_error


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


def package_not_fetched(package: str, version: str, detail: str) -> RuntimeError:
    """Offline, the package is gone, or its hash is another."""
    lines = detail.strip().splitlines() or ["no message"]
    # pip warns of other things after it has said what went wrong.
    cause = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    return runtime_error(
        "fetch",
        f"pip must be able to download {package} {version}",
        repr(cause),
        "Go online, or give pip an index that has the package.",
    )
