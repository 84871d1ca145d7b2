"""Where measurements go: a CSV for each device and op, written whole and read back as text."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from mkd_fast.benchmarks.harness import Measurement, Timing
from mkd_fast.benchmarks.machine import provenance, slug
from mkd_fast.files import make_folder, write_atomically

Row = dict[str, str]

PROVENANCE = ("device", "threads", "commit", "mkd_fast", "python", "torch", "triton")
COLUMNS = ("op", "case", *(field.name for field in fields(Timing)), *PROVENANCE)


def write_measurements(
    op: str, measurements: Sequence[Measurement], device: torch.device, folder: Path
) -> Path:
    """Write ``<folder>/<device>/<op>.csv``, a row for each variant that was timed.

    Raises:
        OSError: the folder or file cannot be written.
    """
    known = provenance(device)
    path = folder / slug(known["device"]) / f"{op}.csv"
    rows = [
        {"op": op, "case": measurement.case.name, **asdict(timing), **known}
        for measurement in measurements
        for timing in measurement.timings
    ]
    write_rows(path, COLUMNS, rows)
    return path


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV whole; numbers keep four digits, and a fact that is not known stays empty.

    Raises:
        OSError: the folder or file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _text(value) for name, value in row.items()})
    make_folder(path.parent)
    write_atomically(path, [text.getvalue().encode()])


def _text(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}") if value == value else ""
    return value


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, as text.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def by_case(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Rows of one op by case and variant, in their order; the first variant is ours."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["variant"]] = row
    return cases
