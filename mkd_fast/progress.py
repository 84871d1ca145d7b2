"""What a person sees while a run works: a line a stage, and a live bar (or plain lines) a loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)
T = TypeVar("T")
_PLAIN_LINE_SECONDS = 5.0


class Bar:
    """Progress of one loop: live in a terminal, else a plain line every few seconds."""

    def __init__(self, name: str, total: int, done: int, live: Progress | None) -> None:
        self._name, self._total, self._first = name, total, done
        self._live = live
        self._task = live.add_task(name, total=total, completed=done, detail="") if live else None
        self._started = self._last_line = time.monotonic()

    def over(self, items: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
        """The same items; each counts ``size`` pieces when the next one is asked for."""
        done = self._first
        for item in items:
            yield item
            done += size(item)
            self.update(done)

    def update(self, done: int, detail: Mapping[str, float] | str = "") -> None:
        """Show that ``done`` of the total is done, with named figures beside it."""
        if not isinstance(detail, str):
            detail = "  ".join(f"{name} {_figure(value)}" for name, value in detail.items())
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, detail=detail)
            return
        now = time.monotonic()
        if done < self._total and now - self._last_line < _PLAIN_LINE_SECONDS:
            return
        self._last_line = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - done) / rate if rate else 0.0
        console.print(f"  {self._name} {done}/{self._total}  {detail}  {_clock(left)} left")


class Silent(Bar):
    """The progress of a loop that another one speaks for."""

    def update(self, done: int, detail: Mapping[str, float] | str = "") -> None:
        """Say nothing."""


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextmanager
def bar(name: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Bar]:
    """Show a loop of ``total`` pieces, ``done`` of which were done before; or nothing at all."""
    if not shown:
        yield Silent(name, total, done, None)
        return
    if not console.is_terminal:
        yield Bar(name, total, done, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}  {task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as live:
        yield Bar(name, total, done, live)


def say(text: str) -> None:
    """Print a line for the person who runs this."""
    console.print(text, markup=False)
