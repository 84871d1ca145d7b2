"""Single numbers with their spread and the budget they have to hold."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import torch

from mkd_fast.benchmarks.machine import provenance, slug
from mkd_fast.benchmarks.results import PROVENANCE, write_rows


@dataclass(frozen=True)
class Finding:
    """One number.

    Attributes:
        case: what was measured.
        measure: in which unit, or as a multiple or share of what.
        p20, p50, p80: quantiles over the rounds.
        num_rounds: how often.
        budget: what has to hold of the median; empty where nothing has to.
        holds: whether it does; None without a budget.
    """

    case: str
    measure: str
    p20: float
    p50: float
    p80: float
    num_rounds: int
    budget: str = ""
    holds: bool | None = None

    @classmethod
    def of(
        cls,
        case: str,
        measure: str,
        values: Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Self:
        """Quantiles of what each round found, beside at most one bound."""
        fifths = statistics.quantiles([*values, *values], n=5, method="inclusive")
        median = statistics.median(values)
        budget, holds = "", None
        if at_least is not None:
            budget, holds = f">= {at_least:g}", median >= at_least
        if at_most is not None:
            budget, holds = f"<= {at_most:g}", median <= at_most
        return cls(case, measure, fifths[0], median, fifths[3], len(values), budget, holds)

    @classmethod
    def absent(cls, case: str, why: str) -> Self:
        """What could not be measured here, for example since it is not installed."""
        return cls(case, why, math.nan, math.nan, math.nan, 0)

    def line(self) -> str:
        """For people."""
        if not self.num_rounds:
            return f"{self.case}: {self.measure}"
        found = f"{self.case}: {self.p50:,.3g} ({self.p20:,.3g} to {self.p80:,.3g}) {self.measure}"
        if self.holds is None:
            return found
        return f"{found}; wanted {self.budget}, {'holds' if self.holds else 'DOES NOT HOLD'}"


COLUMNS = ("op", *(field.name for field in fields(Finding)), *PROVENANCE)


def write(op: str, findings: Iterable[Finding], device: torch.device, folder: Path) -> Path:
    """Write ``<folder>/<device>/<op>.csv``.

    Raises:
        OSError: the folder or file cannot be written.
    """
    known = provenance(device)
    path = folder / slug(known["device"]) / f"{op}.csv"
    write_rows(path, COLUMNS, [{"op": op, **asdict(finding), **known} for finding in findings])
    return path
