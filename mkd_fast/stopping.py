"""SIGTERM, by which schedulers stop a run: it ends saved, with status 0, and can be started again.

Outside of training it ends a command at once, as Ctrl-C does: what is finished is on disk.
Training first ends its step and writes a checkpoint.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(SystemExit):
    """SIGTERM came. Whoever does not catch it ends with status 0."""

    def __init__(self) -> None:
        super().__init__(0)


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM raises ``Terminated``; in a thread other than the main one it does as before."""

    def end(*_: object) -> NoReturn:
        raise Terminated

    with _answered_by(end):
        yield


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Yield what says whether SIGTERM came; in a thread other than the main one it never does."""
    came = threading.Event()
    with _answered_by(lambda *_: came.set()):
        yield came.is_set


@contextmanager
def _answered_by(answer: Callable[..., object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
