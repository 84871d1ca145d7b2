"""Errors of watching runs and of sharing what they made."""

from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.wording import nearest, runtime_error, value_error


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


def not_a_run(function: str, folder: Path) -> ValueError:
    """No run.json, or another program's."""
    return value_error(
        function,
        f"{folder} must be a folder that mkd-fast distill has written",
        "no run.json of a run in it",
        "Name the run.folder of a recipe.",
    )


def unfinished_run(function: str, folder: Path, state: str) -> ValueError:
    """What is shared is whole."""
    return value_error(
        function,
        f"{folder} must be a finished run",
        state,
        "Run mkd-fast distill with its recipe: it goes on from where it is.",
    )


def no_such_model(function: str, folder: Path, name: str, known: Sequence[str]) -> ValueError:
    """A model that the run did not make."""
    return value_error(
        function,
        f"{folder} must have the model",
        repr(name),
        nearest(name, known) if known else "It has made none yet: finish it with mkd-fast distill.",
    )


def not_pushed(repo: str, error: Exception) -> RuntimeError:
    """No network, no token, no right to write there."""
    return runtime_error(
        "push",
        f"{repo} must be a repository of the hub that can be written",
        f"{type(error).__name__}: {first_line(error)}",
        "Log in with: hf auth login. What was uploaded before stays there; the same command goes"
        " on.",
    )


def onnx_not_installed(missing: str) -> RuntimeError:
    """An optional package is missing."""
    return runtime_error(
        "export",
        "onnx, onnxscript and onnxruntime must be installed",
        f"no package {missing!r}",
        "Run: pip install 'mkd_fast[onnx]'",
    )


def onnx_differs(found: float, allowed: float, text: str) -> ValueError:
    """The exported graph is not the model; nothing of it is kept."""
    return value_error(
        "export",
        f"onnxruntime's outputs must be within {allowed:.3g} of torch's",
        f"{found:.3g} for a batch of {text}",
        "No file was kept. Tell us the model's class: its graph was exported wrongly.",
    )


def folder_in_use(function: str, folder: Path) -> ValueError:
    """Somebody's files."""
    return value_error(
        function, f"{folder} must be new or empty", "files in it", "Name another with --out."
    )
