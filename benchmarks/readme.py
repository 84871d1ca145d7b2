"""The README's tables, made from committed results: ``python -m mkd_fast.benchmarks.readme``.

With a run's folder as argument, its report is first copied to ``docs/home_intents``.
"""

import csv
import shutil
import sys
from collections import defaultdict
from pathlib import Path

from mkd_fast.evaluate.readme import update_block
from mkd_fast.evaluate.report import markdown_from_csv
from mkd_fast.evaluate.tables import Table, TableRow

REPORT = Path("docs/home_intents")
_REPORT_FILES = (
    "report.md",
    "summary.csv",
    "languages.csv",
    "run.json",
    "accuracy.png",
    "loss_curves.png",
    "size.png",
)


def blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the README by name, from the results committed below ``root``."""
    tables = sorted((root / "benchmarks" / "results").glob("*/dense_kd.csv"))
    return {
        "summary": markdown_from_csv(root / REPORT / "summary.csv"),
        "dense_kd": "\n\n".join(_dense_kd(path) for path in tables),
    }


def _dense_kd(path: Path) -> str:
    """One device's table: our time, and how many times slower the others are."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cases: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        cases[row["case"]][row["variant"]] = row
    variants_of_all = dict.fromkeys(row["variant"] for row in rows)
    rivals = [name for name in list(variants_of_all)[1:] if name != "reference"]  # ours, too
    lines = []
    for case, variants in cases.items():
        ours = next(iter(variants.values()))
        slower = [f"{float(variants[r]['ratio']):.1f}x" if r in variants else "" for r in rivals]
        share = f"{float(ours['share_of_limit']):.0%}"
        lines.append(TableRow((case, f"{float(ours['p50_ms']):.2f}", *slower, share)))
    header = ("forward + gradient", "ours, ms", *rivals, "of streaming limit")
    return Table(rows[0]["device"], header, (tuple(lines),)).to_markdown()


def main() -> None:
    """Copy a run's report if one is named, then write the README's blocks."""
    root = Path.cwd()
    if sys.argv[1:]:
        (root / REPORT).mkdir(parents=True, exist_ok=True)
        for name in _REPORT_FILES:
            shutil.copy(Path(sys.argv[1]) / name, root / REPORT / name)
    for name, block in blocks(root).items():
        update_block(root / "README.md", name, block)


if __name__ == "__main__":
    main()
