"""Errors of the room that runs studies."""

from pathlib import Path

from mkd_fast.checks.wording import value_error


def no_finished_cells(folder: Path) -> ValueError:
    """Nothing to report on."""
    return value_error(
        "study report",
        "the study's folder must hold a finished cell",
        f"none in {folder}",
        "Run `mkd-fast study RECIPE` first; it goes on where it was stopped.",
    )


def malformed_study(folder: Path, error: Exception) -> ValueError:
    """Rows of another version, or of something else."""
    return value_error(
        "study report",
        "rows must be those that `mkd-fast study` writes",
        f"{type(error).__name__} {error} in {folder}",
        "Take a folder that was written by this version, or run the study again in a new one.",
    )
