"""What commands share: how they end, and how they take the settings of a recipe."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec

import typer

from mkd_fast.checks import train as checks

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting of the recipe."),
]
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
                if not checks.is_ours(error):
                    raise
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2) from error

        return reporting

    return decorate


def overrides(settings: list[str] | None) -> dict[str, str]:
    """Settings by their names.

    Raises:
        ValueError: one without a value.
    """
    found = {}
    for setting in settings or []:
        name, equals, found[name] = setting.partition("=")
        if not equals:
            raise checks.override_without_value(setting)
    return found
