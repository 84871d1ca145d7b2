"""How every command ends: bad input in one line, a bug with its traceback."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

from mkd_fast.checks.wording import is_ours

P = ParamSpec("P")


def reports_errors(when_stopped: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Bad input ends with its message and exit code 2, Ctrl-C with 130; a bug with a traceback.

    Args:
        when_stopped: what Ctrl-C is answered with.
    """

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @wraps(command)
        def reporting(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt:
                typer.echo(f"\n{when_stopped}", err=True)
                raise typer.Exit(130) from None
            except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
                if not is_ours(error):
                    raise
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2) from error

        return reporting

    return decorate
