"""The GPU's whole table from one command, in nine minutes: ``python benchmarks/gpu.py --out DIR``.

Run it in the repository's root. It needs torch (2.10 or later) and triton (3.6 or later), nothing
else installed, not even this package. Liger and orda are rivals where they are installed. What it
does, in what order, and the files it leaves: gpu_run.py.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def use_source() -> None:
    """Make mkd_fast importable from the source as it is when installed.

    There, ``kernels`` and ``benchmarks`` are part of it; here they lie beside it.
    """
    sys.path[0] = str(ROOT)  # it was this folder, whose modules are not meant to be found alone
    import mkd_fast

    if "mkd_fast.kernels" not in sys.modules:
        mkd_fast.__path__.append(str(ROOT))


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--minutes", type=float, default=9.0, help="to be done in")
    parser.add_argument("--ncu", action="store_true", help="counters too, where ncu is at hand")
    parser.add_argument("--tiny", action="store_true", help="a few rows: shows that it runs")
    parser.add_argument("--only", metavar="OP", help="one bare call of its first case, for ncu")
    arguments = parser.parse_args()
    from mkd_fast.benchmarks import gpu_run

    if arguments.only:
        gpu_run.call_once(arguments.only)
        return
    gpu_run.run(
        arguments.out,
        limit_s=60 * arguments.minutes,
        has_counters=arguments.ncu,
        is_tiny=arguments.tiny,
    )


if __name__ == "__main__":
    use_source()
    main()
