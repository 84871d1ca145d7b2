"""What commands share: how they end, and how they take the settings of a recipe."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec

import typer

from mkd_fast.checks import recipe as checks
from mkd_fast.quiet import quiet_torchao
from mkd_fast.stopping import Terminated, sigterm_ends

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting of the recipe."),
]
P = ParamSpec("P")


def reports_errors(when_stopped: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Bad input ends with its message and exit code 2, Ctrl-C with 130; a bug with a traceback.

    SIGTERM ends a command with 0: what it was at is saved, and the same command goes on with it.
    What ends a process of torchrun's is left where torchrun looks for it.

    Args:
        when_stopped: what Ctrl-C and SIGTERM are answered with.
    """

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @wraps(command)
        def reporting(*args: P.args, **kwargs: P.kwargs) -> None:
            quiet_torchao()
            try:
                with sigterm_ends():
                    command(*args, **kwargs)
            except Terminated:
                typer.echo(f"\n{when_stopped}", err=True)
                raise typer.Exit(0) from None
            except KeyboardInterrupt:
                typer.echo(f"\n{when_stopped}", err=True)
                raise typer.Exit(130) from None
            except Exception as error:
                _tell_torchrun(error)
                if not checks.is_ours(error):
                    raise
                typer.echo(f"error{_whose()}: {error}", err=True)
                raise typer.Exit(2) from error

        return reporting

    return decorate


def _tell_torchrun(error: Exception) -> None:
    """Leave the error where torchrun looks for it, who then reports it with its rank."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _whose() -> str:
    """Which of torchrun's processes speaks."""
    return f" (rank {os.environ['RANK']})" if "TORCHELASTIC_RUN_ID" in os.environ else ""


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
