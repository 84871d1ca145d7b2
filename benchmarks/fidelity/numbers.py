"""One number of the fidelity table, and keeping those that are already measured."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from mkd_fast.benchmarks.machine import provenance, slug
from mkd_fast.benchmarks.results import PROVENANCE, write_rows
from mkd_fast.files import read_json, write_json


@dataclass(frozen=True)
class Number:
    """What was measured of one kind.

    Attributes:
        teacher: its name.
        kind: what was kept, with a top-k's tail.
        student: whose loss or gradient it is of; empty where it is of the cache alone.
        temperature: of both sides; 0 where there is none.
        measure: of what and in which unit.
        value: the number.
        at_most: its budget, or None.
    """

    teacher: str
    kind: str
    student: str
    temperature: float
    measure: str
    value: float
    at_most: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the budget does; None without one."""
        return None if self.at_most is None else self.value <= self.at_most


COLUMNS = (*(field.name for field in fields(Number)), "holds", *PROVENANCE)


def kept(path: Path, make: Callable[[], Iterable[Number]]) -> list[Number]:
    """The numbers that an earlier run has left there, else new ones, left there."""
    found = read_json(path)
    if found is None:
        found = [asdict(number) for number in make()]
        write_json(path, found)
    return [Number(**number) for number in found]


def write(numbers: Iterable[Number], folder: Path) -> Path:
    """Write ``<folder>/<device>/fidelity.csv``.

    Raises:
        OSError: the folder or file cannot be written.
    """
    known = provenance(torch.device("cpu"))
    path = folder / slug(known["device"]) / "fidelity.csv"
    rows = [{**asdict(number), "holds": number.holds, **known} for number in numbers]
    write_rows(path, COLUMNS, rows)
    return path
