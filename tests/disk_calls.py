"""Something happens at the n-th of a program's calls that change what is on a disk."""

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator

WRITES = {"write", "flush", "fsync", "replace", "link", "mkdir", "unlink"}


@contextlib.contextmanager
def before_each_write(act: Callable[[int], None]) -> Iterator[None]:
    """Call ``act`` with the number of each call, from 0 on, before it; what it raises, it raises.

    Whatever in Python leads there: the interpreter reports its calls of built-in functions.
    """
    number = 0

    def watch(frame, event, function) -> None:
        nonlocal number
        if event == "c_call" and function.__name__ in WRITES:
            of_file = isinstance(function.__self__, io.IOBase)
            if of_file or getattr(function, "__module__", None) == "posix":
                number += 1
                act(number - 1)

    threading.setprofile(watch)  # of threads to come
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def count_writes(run: Callable[[], object]) -> int:
    """How many such calls it makes."""
    seen: list[int] = []
    with before_each_write(seen.append):
        run()
    return len(seen)
