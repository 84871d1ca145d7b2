"""What every kernel costs on each target, from the compiler, as a committed CSV.

``python -m mkd_fast.benchmarks.gates`` compiles the launches of kernels/gates.py and writes
``benchmarks/results/gates/triton-VERSION.csv``: registers, spills, shared memory, load width and
occupancy. Without a GPU, and without TRITON_INTERPRET.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import triton

from mkd_fast.benchmarks.results import write_rows
from mkd_fast.kernels import gates
from mkd_fast.kernels.gate_cases import CASES


def write(reports: Iterable[gates.Report], folder: Path) -> Path:
    """Write a row for each compiled launch.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / f"triton-{triton.__version__}.csv"
    columns = tuple(field.name for field in fields(gates.Report))
    write_rows(path, columns, [asdict(report) for report in reports])
    return path


def main() -> None:
    """Compile, and write."""
    path = write(gates.reports(CASES, os.cpu_count() or 1), Path("benchmarks/results/gates"))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
