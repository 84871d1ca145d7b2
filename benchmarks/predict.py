"""What the Triton kernels should take on GPUs that are not at hand: a floor, not a measurement.

``python -m mkd_fast.benchmarks.predict`` writes ``benchmarks/results/predicted/roofline.csv`` and
``.md``. Bytes and exponentials are those that the kernels state of themselves (``traffic``); peaks
are what makers state. A case takes at least as long as its bytes through memory, and at least as
long as its exponentials through the special function units, whichever is longer.

The second sweep over a row finds in the last cache what stayed there from the first: of the row
pairs in flight, two on a multiprocessor, the share that fits. The table says what it assumes.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mkd_fast.benchmarks import dense_kd, hidden, results, sparse_kd
from mkd_fast.benchmarks.roofline import PEAKS
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.kernels import dense_kd as dense_kernel
from mkd_fast.kernels import sparse_kd as sparse_kernel
from mkd_fast.kernels.plan import Traffic

_ROWS_IN_FLIGHT = 2  # on a multiprocessor
_NUM_ROWS = 8192
_ID_BYTES = 4
BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Chip:
    """What bounds a kernel besides memory bandwidth.

    Attributes:
        cache_bytes: the last cache that all multiprocessors share.
        num_multiprocessors: or compute units.
        exponentials_per_s: multiprocessors x 16 a clock x the boost clock.
        source: of all three.
    """

    cache_bytes: int
    num_multiprocessors: int
    exponentials_per_s: float
    source: str


_RATE = "16 a clock and multiprocessor: CUDA C++ Programming Guide, arithmetic throughput"
CHIPS = {
    "A100": Chip(40 << 20, 108, 108 * 16 * 1.41e9, f"NVIDIA A100 whitepaper; {_RATE}"),
    "H100": Chip(50 << 20, 132, 132 * 16 * 1.83e9, f"NVIDIA H100 whitepaper, SXM; {_RATE}"),
    "H200": Chip(50 << 20, 132, 132 * 16 * 1.83e9, f"the H100's chip; {_RATE}"),
    "B200": Chip(126 << 20, 148, 148 * 16 * 1.85e9, f"device query of a B200; {_RATE}"),
    "MI300X": Chip(
        256 << 20, 304, 304 * 16 * 2.1e9,
        "AMD CDNA 3 whitepaper; a quarter of 64 lanes a clock: CDNA 3 ISA guide",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What one call requests, and the part of it that has been read before."""

    op: str
    case: str
    num_bytes: int
    repeated_bytes: int
    row_bytes: int  # of all that a row is read again from
    num_exponentials: int


def work() -> Iterator[Work]:
    """Cases of each op."""
    for dtype, num_columns in (
        (BF16, 60), (BF16, 8192), (BF16, 32_000), (BF16, 128_256), (BF16, 151_936), (BF16, 250_002),
        (FP32, 32_000), (FP32, 128_256),
    ):  # fmt: skip
        num_rows = 32_768 if num_columns == 60 else _NUM_ROWS
        dense = dense_kd.Shape(dtype, num_rows, num_columns)
        size = dtype.itemsize
        requested = dense_kernel.traffic(
            num_rows, num_columns, student_bytes=size, teacher_bytes=size, has_tempered_labels=True
        )
        once = 3 * size * num_rows * num_columns
        yield _work("dense_kd", dense.name, requested, once, 2 * size * num_columns)
    for dtype, num_columns in ((BF16, 32_000), (BF16, 128_256), (FP32, 128_256)):
        sparse = sparse_kd.Shape(dtype, _NUM_ROWS, num_columns, 64)
        size = dtype.itemsize
        requested = sparse_kernel.traffic(
            _NUM_ROWS,
            num_columns,
            sparse.num_kept,
            student_bytes=size,
            entry_bytes=_ID_BYTES + size,
            has_tempered_labels=True,
        )
        once = 2 * size * _NUM_ROWS * num_columns
        yield _work("sparse_kd", sparse.name, requested, once, size * num_columns)
    for matched in hidden.GPU_SHAPES:
        yield Work("hidden", matched.name, matched.num_bytes, 0, 0, 0)


def _work(op: str, case: str, requested: Traffic, once_bytes: int, row_bytes: int) -> Work:
    repeated = max(requested.num_bytes - once_bytes, 0)
    return Work(op, case, requested.num_bytes, repeated, row_bytes, requested.num_exponentials)


def predict(case: Work, device: str) -> dict[str, object]:
    """The floor of one case on one device."""
    chip, peak = CHIPS[device], PEAKS[device]
    in_flight = chip.num_multiprocessors * _ROWS_IN_FLIGHT * case.row_bytes
    hits = min(1.0, chip.cache_bytes / in_flight) if in_flight else 0.0
    memory_bytes = case.num_bytes - hits * case.repeated_bytes
    memory_ms = 1e3 * memory_bytes / peak.bytes_per_s
    exponentials_ms = 1e3 * case.num_exponentials / chip.exponentials_per_s
    return {
        "kind": "predicted",
        "device": device,
        "op": case.op,
        "case": case.case,
        "requested_mb": case.num_bytes / 1e6,
        "assumed_hits": hits if case.repeated_bytes else 0.0,
        "memory_ms": memory_ms,
        "no_hits_ms": 1e3 * case.num_bytes / peak.bytes_per_s,
        "exponentials_ms": exponentials_ms,
        "floor_ms": max(memory_ms, exponentials_ms),
        "bound": "exponentials" if exponentials_ms > memory_ms else "memory",
        "bandwidth_source": peak.source,
        "chip_source": chip.source,
    }


def table(rows: list[results.Row]) -> str:
    """Markdown: a row for each case, a column for each device."""
    cases: dict[str, dict[str, str]] = {}
    for row in rows:
        mark = "*" if row["bound"] == "exponentials" else ""
        cell = f"{float(row['floor_ms']):.3g}{mark} ({float(row['assumed_hits']):.0%})"
        cases.setdefault(f"{row['op']}, {row['case']}", {})[row["device"]] = cell
    lines = tuple(TableRow((case, *cells.values())) for case, cells in cases.items())
    caption = (
        "PREDICTED, not measured: the least milliseconds of a forward and gradient; in brackets "
        "how much of the second sweep is assumed to come from the last cache; * where "
        "exponentials bound, not memory. Sources are in roofline.csv."
    )
    return Table(caption, ("ms", *CHIPS), (lines,)).to_markdown()


def main() -> None:
    """Write and print the table."""
    folder = Path("benchmarks/results/predicted")
    rows = [predict(case, device) for case in work() for device in CHIPS]
    results.write_rows(folder / "roofline.csv", tuple(rows[0]), rows)
    markdown = table(results.read_rows(folder / "roofline.csv"))
    (folder / "roofline.md").write_text(markdown, encoding="utf-8")
    sys.stdout.write(markdown)


if __name__ == "__main__":
    main()
