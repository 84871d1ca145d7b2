"""Errors of watching runs and of sharing what they made."""

from mkd_fast.checks.wording import runtime_error


def tracker_not_installed(name: str) -> RuntimeError:
    """An optional package is missing."""
    return runtime_error(
        "recipe: [run]",
        f"trackers may name {name!r} where it is installed",
        "no such package",
        "Run: pip install 'mkd_fast[tracking]'",
    )


def tracker_not_started(name: str, error: Exception) -> RuntimeError:
    """Not logged in, no network, no place to write."""
    return runtime_error(
        "recipe: [run]",
        f"{name} must start before anything is trained",
        f"{type(error).__name__}: {first_line(error)}",
        f"Put that right, or leave {name!r} out of run.trackers: metrics.jsonl has every row.",
    )


def first_line(error: Exception) -> str:
    """What an error says, of which some write pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
