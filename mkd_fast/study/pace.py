"""How long what is missing will take, and whether a call has time for it.

Work is counted in training steps of one layer (``grid.cost``). What such a step takes is measured
on the rows that are there, and until there are some it is what the recipe says.
"""

import re
import time
from collections.abc import Iterable
from statistics import median

from mkd_fast.checks import study as checks
from mkd_fast.study.config import StudyRecipe
from mkd_fast.study.grid import Cell, Sizes, cost, probe_cost
from mkd_fast.study.records import Row

_UNITS = {"s": 1, "min": 60, "h": 3600}


class OutOfTimeError(Exception):
    """The next piece of work would go past the budget."""


class Pace:
    """The clock of a call.

    Args:
        recipe: the study's.
        sizes: of its text.
        started: monotonic time at which the call began.
        budget_seconds: what it may take; None is as long as it wants.
    """

    def __init__(
        self, recipe: StudyRecipe, sizes: Sizes, started: float, budget_seconds: float | None
    ) -> None:
        self._recipe, self._sizes = recipe, sizes
        self._started, self._budget_seconds = started, budget_seconds
        self._measured: list[float] = []

    def learn(self, cells: Iterable[Row], probes: Iterable[Row]) -> None:
        """Take note of how long finished work took."""
        a_probe = probe_cost(self._recipe, self._sizes)
        self._measured += [
            row["wall_seconds"] / a_probe
            for row in probes
            if "error" not in row and row["steps"] == self._recipe.study.probe_steps
        ]
        for row in cells:
            if "error" not in row:
                cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__})
                self._measured.append(row["wall_seconds"] / cost(cell, self._recipe, self._sizes))

    def seconds(self, work: float) -> float:
        """Predicted time of some work."""
        unit = median(self._measured) if self._measured else self._recipe.study.layer_step_seconds
        return work * unit

    def require(self, work: float) -> None:
        """Raise OutOfTimeError if the work would go past the budget."""
        if self._budget_seconds is None:
            return
        if time.monotonic() - self._started + self.seconds(work) > self._budget_seconds:
            raise OutOfTimeError


def parse_duration(text: str) -> float:
    """Seconds of "90s", "60min" or "1.5h".

    Raises:
        ValueError: it is not a number with one of these units.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", text.strip())
    if found is None:
        raise checks.not_a_duration(text)
    return float(found[1]) * _UNITS[found[2]]


def shown_duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds, for people."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"
