"""Calling ``mkd-fast`` in this process."""

from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from mkd_fast.cli import app


def call(*arguments: Any, **settings: Any) -> Result:
    """Run a command; settings are ``section__key=value``."""
    sets = [f"--set={name.replace('__', '.')}={value}" for name, value in settings.items()]
    return CliRunner().invoke(app, [*map(str, arguments), *sets])


def assert_told(result: Result, *words: str) -> None:
    """Exit code 2, and one line on stderr that holds these words."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in words:
        assert part in result.stderr
