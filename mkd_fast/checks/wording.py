"""How an error reads, and the checks that every room makes."""

import difflib
import math
from collections.abc import Iterable, Sequence


class Wording(str):
    """A message of this module: told to the user as it is, where a bug shows its traceback."""

    __slots__ = ()


def is_ours(error: BaseException) -> bool:
    """True for an error that was worded here."""
    return any(isinstance(argument, Wording) for argument in error.args)


def message(function: str, rule: str, fact: str, way_out: str) -> Wording:
    """The form of every message."""
    return Wording(f"{function}: {rule}, got {fact}. {way_out}")


def value_error(function: str, rule: str, fact: str, way_out: str) -> ValueError:
    """A shape, range or content that is not allowed."""
    return ValueError(message(function, rule, fact, way_out))


def type_error(function: str, rule: str, fact: str, way_out: str) -> TypeError:
    """A dtype or kind that is not allowed."""
    return TypeError(message(function, rule, fact, way_out))


def runtime_error(function: str, rule: str, fact: str, way_out: str) -> RuntimeError:
    """A build, device or resource that is missing."""
    return RuntimeError(message(function, rule, fact, way_out))


def os_error_like(error: Exception, function: str, rule: str, fact: str, way_out: str) -> OSError:
    """The same class of OSError with the same errno; a plain OSError for any other exception."""
    words = message(function, rule, fact, way_out)
    if isinstance(error, OSError) and error.errno is not None:
        return type(error)(error.errno, words)
    return OSError(words)


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out of a misspelt name: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(map(repr, known))}."


def one_of(function: str, argument: str, value: object, known: Sequence[str]) -> None:
    """Raise ValueError unless value is one of the known names."""
    if value not in known:
        raise value_error(
            function, f"{argument} must be a known name", repr(value), nearest(str(value), known)
        )


def positive(function: str, argument: str, value: float | None) -> None:
    """Raise ValueError unless value is None or a finite number above zero."""
    if value is not None and not (0.0 < value < math.inf):
        raise value_error(function, f"{argument} must be positive", repr(value), "Pass e.g. 1.0.")


def not_negative(function: str, argument: str, value: float) -> None:
    """Raise ValueError unless value is a finite number, zero or above."""
    if not 0.0 <= value < math.inf:
        raise value_error(
            function,
            f"{argument} must be zero or positive",
            repr(value),
            "Pass 0.0 to turn it off.",
        )
