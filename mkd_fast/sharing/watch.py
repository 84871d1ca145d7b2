"""A run's training in the terminal, read from its metrics.jsonl as it grows."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mkd_fast import progress
from mkd_fast.evaluate.plots import LOSS_PARTS
from mkd_fast.sharing.record import Row, RunRecord

if TYPE_CHECKING:
    from rich.table import Table

_LEVELS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_EVERY_SECONDS = 1.0


def watch(folder: Path, *, once: bool = False) -> None:
    """Show a run until it is finished or Ctrl-C is pressed.

    Args:
        folder: of the run; it may not have logged a step yet.
        once: show it as it is and return.

    Raises:
        ValueError: this is no run's folder.
    """
    from rich.live import Live

    run = RunRecord.read(folder, "watch")
    if once or run.is_finished:
        progress.console.print(view(run))
        return
    with Live(view(run), console=progress.console, auto_refresh=False) as live:
        while not run.is_finished:
            time.sleep(_EVERY_SECONDS)
            run = RunRecord.read(folder, "watch")
            live.update(view(run), refresh=True)


def view(run: RunRecord, now: float | None = None) -> "Table":
    """What there is to see; ``now`` is the time of day, in seconds."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row(run.folder.name, run.state)
    if not (rows := run.rows):
        return table
    rows = [row for row in rows if row["model"] == rows[-1]["model"]]
    last = rows[-1]
    for part in LOSS_PARTS:
        values = [row[part] for row in rows]
        if any(values):
            table.add_row(part, f"{sparkline(values)}  {values[-1]:.4g}")
    table.add_row("tokens/s", f"{last['tokens_per_s']:,.0f}")
    table.add_row("waiting for data", f"{last['wait_share']:.1%}")
    if left := _seconds_left(rows):
        table.add_row("left", f"{int(left) // 60}:{int(left) % 60:02d}")
    if (saved := _last_checkpoint(run.folder)) is not None:
        ago = (time.time() if now is None else now) - saved
        table.add_row("last checkpoint", f"{ago:,.0f} s ago")
    return table


def sparkline(values: Sequence[float]) -> str:
    """The last values as bars between their smallest and largest; what is not finite is blank."""
    shown = values[-_WIDTH:]
    finite = [value for value in shown if abs(value) < float("inf")]
    if not finite:
        return " " * len(shown)
    low, spread = min(finite), max(finite) - min(finite)
    top = len(_LEVELS) - 1
    return "".join(
        _LEVELS[round(top * (value - low) / spread) if spread else 0]
        if abs(value) < float("inf")
        else " "
        for value in shown
    )


def _seconds_left(rows: Sequence[Row]) -> float | None:
    """At the pace of the last rows; None of runs whose rows do not say of how many steps."""
    last = rows[-1]
    if not last.get("num_steps"):
        return None
    recent = rows[-10:]
    before = rows[-11]["step"] if len(rows) > 10 else 0
    pace = sum(row["seconds"] for row in recent) / max(1, last["step"] - before)
    return float(pace * (last["num_steps"] - last["step"]))


def _last_checkpoint(folder: Path) -> float | None:
    files = (folder / "checkpoints").glob("*")
    return max((path.stat().st_mtime for path in files), default=None)
