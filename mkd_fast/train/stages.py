"""The main job, in the order in which it happens."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mkd_fast import progress
from mkd_fast.evaluate.plots import write_plots
from mkd_fast.evaluate.report import ModelResult, results_table, write_report
from mkd_fast.files import writing_into
from mkd_fast.sharing.card import write_card
from mkd_fast.sharing.record import RunRecord
from mkd_fast.train.config import load
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import COPIED, SCRATCH, STUDENT, TEACHER


@dataclass(frozen=True)
class DistillResult:
    """What a run made.

    Attributes:
        folder: everything it wrote: the report as Markdown, CSV and plots, metrics, the cache.
        student: the trained student, a model folder that ``transformers`` loads.
        results: scores, size and cost of each model.
    """

    folder: Path
    student: Path
    results: tuple[ModelResult, ...]


def distill(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> DistillResult:
    """Run a recipe: text, teacher, capture, student, training, evaluation.

    Stopped at any moment and called again, it goes on from the last finished stage, and within
    one from its last checkpoint. Started by torchrun, its processes share the work: docs/scale.md.

    Args:
        recipe: a TOML file.
        overrides: ``{"section.key": value}``, values as TOML text.
    """
    started = time.monotonic()
    run = Run(load(recipe, overrides))
    train(run)
    result = evaluate(run)
    progress.say(f"done in {time.monotonic() - started:.0f} s; everything is in {run.folder}")
    return result


def train(run: Run) -> None:
    """Everything up to the trained student and, if the recipe asks for it, its rival."""
    with closing(run.tracking):
        run.trained(STUDENT)
        if run.config.scratch.enabled:
            run.trained(SCRATCH)
    write_cards(run)


def write_cards(run: Run) -> None:
    """A model card for each trained model: what is known of it so far."""
    if not run.processes.is_first:
        return
    record = RunRecord.read(run.folder, "distill")
    for name in [STUDENT] + [SCRATCH] * run.config.scratch.enabled:
        write_card(record, name)


def evaluate(run: Run) -> DistillResult:
    """Score every model of the run, write report and plots, and print the table."""
    names = [TEACHER, COPIED, STUDENT] + [SCRATCH] * run.config.scratch.enabled
    results = tuple(run.result(name) for name in names)
    if run.processes.is_first:
        with writing_into(run.folder):
            write_report(results, run.folder)
            write_plots(results, run.metric_rows(), run.folder)
    write_cards(run)
    progress.console.print(results_table(results).to_rich())
    return DistillResult(run.folder, run.trained(STUDENT), results)
