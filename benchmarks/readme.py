"""The tables and plots of README and docs/fidelity.md, made from committed results.

``python -m mkd_fast.benchmarks.readme`` writes them, in the repository's root.
With a run's folder as argument, its report is first copied to ``docs/home_intents``.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from mkd_fast.benchmarks import report, results
from mkd_fast.benchmarks.fidelity import report as fidelity
from mkd_fast.benchmarks.run import OPS
from mkd_fast.evaluate.readme import update_block
from mkd_fast.evaluate.report import markdown_from_csv

REPORT = Path("docs/home_intents")
FIDELITY = Path("docs/fidelity.md")
NOT_MEASURED = ("predicted", "gates")  # folders of results that come from no device
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
    return {
        "summary": markdown_from_csv(root / REPORT / "summary.csv"),
        "performance": "\n\n".join(_performance(root)),
        "training": _training(root),
    }


def fidelity_rows(root: Path) -> list[results.Row]:
    """What was measured of the kinds of caches; it is of no device's speed, so one is enough."""
    return results.read_rows(next((root / "benchmarks" / "results").glob("*/fidelity.csv")))


def measured(root: Path) -> list[Path]:
    """The committed CSV files of measurements, device by device, ops in the order of a bench."""
    paths = [
        path
        for op in OPS
        for path in (root / "benchmarks" / "results").glob(f"*/{op}.csv")
        if path.parent.name not in NOT_MEASURED
    ]
    return sorted(paths, key=lambda path: path.parent)


def _performance(root: Path) -> Iterator[str]:
    """A plot and a table for each op on one device, and where those of the others lie.

    The device is the one on which most ops were measured; of several, the last by name.
    """
    of_folder: dict[Path, list[Path]] = {}
    for path in measured(root):
        of_folder.setdefault(path.parent, []).append(path)
    shown = max(of_folder, key=lambda folder: (len(of_folder[folder]), folder.name))
    for number, path in enumerate(of_folder.pop(shown)):
        rows = results.read_rows(path)
        device = rows[0]["device"]
        if number == 0:
            yield f"**{device}**, torch {rows[0]['torch']}"
        yield f"![{rows[0]['op']} on {device}]({path.relative_to(root).with_suffix('.svg')})"
        yield report.summary(rows)
    if of_folder:
        links = (f"[{folder.name}]({folder.relative_to(root)})" for folder in of_folder)
        yield f"Measured on other machines, some by older code: {', '.join(links)}."


def _training(root: Path) -> str:
    """Who trained how fast: the loop and its rivals, in one run."""
    path = max((root / "benchmarks" / "results").glob("*/train.csv"))
    rows = results.read_rows(path)
    found = {(row["case"], row["measure"].split(",")[0]): row for row in rows}
    lines = [
        f"| {rows[0]['device']} | tokens/s | ours is | MB held at most |",
        "| --- | ---: | ---: | ---: |",
    ]
    for case, measure in found:
        if measure == "tokens/s":
            times = found.get((case, "x as fast"))
            ratio = "—"
            if times is not None:
                p20, p50, p80 = (float(times[name]) for name in ("p20", "p50", "p80"))
                ratio = f"{p50:.1f}x ({p20:.1f}-{p80:.1f}) as fast"
            speed, held = (float(found[case, what]["p50"]) for what in (measure, "MB held at most"))
            lines.append(f"| {case} | {speed:,.0f} | {ratio} | {held:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Copy a run's report if one is named, then draw the plots and write the README's blocks."""
    root = Path.cwd()
    if sys.argv[1:]:
        (root / REPORT).mkdir(parents=True, exist_ok=True)
        for name in _REPORT_FILES:
            shutil.copy(Path(sys.argv[1]) / name, root / REPORT / name)
    for path in measured(root):
        report.save_plot(results.read_rows(path), path.with_suffix(".svg"))
    for name, block in blocks(root).items():
        update_block(root / "README.md", name, block)
    fidelity.save_plot(fidelity_rows(root), root / FIDELITY.with_suffix(".svg"))
    for name, block in fidelity.blocks(fidelity_rows(root)).items():
        update_block(root / FIDELITY, name, block)


if __name__ == "__main__":
    main()
