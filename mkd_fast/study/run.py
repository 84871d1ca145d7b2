"""A study from its recipe: shared work, probes, cells; whatever of it is missing.

In the study's folder:

    study.json      the resolved recipe, the recipe's own grid, the keys of the cells asked for
    teacher.json    the teacher's scores
    groups.json     what each test sentence is not independent of
    probes.jsonl    a row for each learning rate that was tried
    before.jsonl    a row for each copy of the teacher that is trained, before it is
    cells.jsonl     a row for each student
    shared/         text, the teacher's outputs, copies

A key is the sha256 of all that decides a row. A row whose key the grid does not have (any more)
stays where it is, and counts as stale. Rows of another machine may be put beside those that are
here: where the teacher was fine-tuned anew, each row says by its bits which one it had.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mkd_fast import progress
from mkd_fast.checks import study as checks
from mkd_fast.environment import device_name, environment, source_commit
from mkd_fast.files import make_folder, read_json, write_json
from mkd_fast.study.cells import (
    decisive,
    decisive_for_probe,
    run_cell,
    run_probe,
    score_copy,
    score_teacher,
)
from mkd_fast.study.config import StudyConfig, StudyRecipe, load, load_whole_grid
from mkd_fast.study.grid import Cell, Probe, Sizes, cells, cost, probe_cost, probes, whole_grid
from mkd_fast.study.measure import chance, headline
from mkd_fast.study.pace import OutOfTimeError, Pace, shown_duration
from mkd_fast.study.records import Row, Rows, key_of, only_process
from mkd_fast.study.shared import Shared, limited
from mkd_fast.train import corpus as corpora
from mkd_fast.train.kinds import kind_of
from mkd_fast.train.recipe import to_dict

STUDY = "study.json"


@dataclass(frozen=True)
class StudyState:
    """How far a study is.

    Attributes:
        folder: where everything is.
        num_cells: students of the grid.
        num_finished: those that there is a row for.
        num_failed: those of them that have an error.
        num_stale: rows of students that are not in the grid.
        seconds_left: predicted time of what is missing, without work that is shared.
    """

    folder: Path
    num_cells: int
    num_finished: int
    num_failed: int
    num_stale: int
    seconds_left: float

    def __str__(self) -> str:
        """A line for people."""
        parts = [f"{self.num_finished} of {self.num_cells} cells finished"]
        if self.num_failed:
            parts.append(f'{self.num_failed} of them with an "error" in their row')
        if self.num_stale:
            parts.append(f"{self.num_stale} stale rows of another grid, teacher or text are kept")
        if self.num_finished < self.num_cells:
            parts.append(f"about {shown_duration(self.seconds_left)} left")
        return f"study: {', '.join(parts)}; {self.folder}"


def study(
    recipe: str | Path,
    overrides: Mapping[str, str] | None = None,
    *,
    budget_seconds: float | None = None,
) -> StudyState:
    """Run what is missing of a study.

    Stopped at any moment and called again, it goes on with the next cell; none is run twice.

    Args:
        recipe: a TOML file.
        overrides: ``{"section.key": value}``, values as TOML text.
        budget_seconds: no probe or cell is begun that is predicted to end later than this.

    Raises:
        ValueError, TypeError, OSError, RuntimeError: the recipe, its text or its folder do not
            allow it; the message says why.
    """
    started = time.monotonic()
    settings = load(recipe, overrides)
    _claim(settings)
    with only_process(settings.folder):
        work = Study(settings, started, budget_seconds)
        try:
            work.run(load_whole_grid(recipe, overrides))
        except OutOfTimeError:
            progress.say("study: stopped, for the next piece of work would exceed the budget")
        return work.state()


def predict(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> StudyState:
    """How far a study is and how long it will take, without training or writing anything."""
    settings = load(recipe, overrides)
    if Shared.is_made(settings.folder):
        return Study(settings, time.monotonic(), None).state()
    reader = kind_of(settings.run_config()).read
    corpus = corpora.make(settings.data, settings.run.seed, read=reader)
    sizes = Sizes.of(limited(corpus, settings.study))
    grid = cells(settings, sizes)
    work = sum(cost(cell, settings, sizes) for cell in grid)
    work += sum(probe_cost(settings, sizes) for _ in probes(grid, settings))
    pace = Pace(settings, sizes, time.monotonic(), None)
    return StudyState(settings.folder, len(grid), 0, 0, 0, pace.seconds(work))


def _claim(recipe: StudyRecipe) -> None:
    others = {child.name for child in recipe.folder.glob("*")}
    if others and STUDY not in others:
        raise checks.folder_of_other_files(recipe.folder, min(others))
    if not others:
        make_folder(recipe.folder)
        write_json(recipe.folder / STUDY, {"name": recipe.name, "keys": []})


class Study:
    """The work of one call.

    Args:
        recipe: the resolved recipe.
        started: monotonic time of the call.
        budget_seconds: see ``study``.
    """

    def __init__(self, recipe: StudyRecipe, started: float, budget_seconds: float | None) -> None:
        self.recipe, self.folder = recipe, recipe.folder
        self.shared = Shared(recipe)
        self.grid = cells(recipe, self.shared.sizes)
        self.probes, self.before, self.cells = (
            Rows(self.folder / f"{name}.jsonl") for name in ("probes", "before", "cells")
        )
        self._pace = Pace(recipe, self.shared.sizes, started, budget_seconds)
        self._pace.learn(self.cells, self.probes)

    @cached_property
    def _origin(self) -> Row:
        """Where a row of this call comes from."""
        return {
            "commit": source_commit(),
            "versions": environment()["versions"],
            "device": device_name(self.shared.device),
            "teacher": self.shared.teacher_fingerprint,
        }

    def run(self, whole: StudyConfig) -> None:
        """Everything that is missing.

        Args:
            whole: the grid as the recipe has it, of which this call's may be a part.
        """
        self._describe_teacher()
        self._try_rates()
        keys = {key: cell for cell in self.grid if (key := self.key(cell)) is not None}
        assert len(keys) == len(self.grid), "every rate is tried, and no two cells are alike"
        self._describe(list(keys), whole)
        for key, cell in keys.items():
            if key in self.cells:
                continue
            self._pace.require(cost(cell, self.recipe, self.shared.sizes))
            row = {"key": key, **self._row(cell), **self._origin}
            self.cells.append(row)
            self._pace.learn([row], [])
            progress.say(self._said(cell, row))

    def state(self) -> StudyState:
        """How far it is."""
        keys = {cell: self.key(cell) for cell in self.grid}
        missing = [cell for cell, key in keys.items() if key is None or key not in self.cells]
        untried = sum(self._probe_key(probe) not in self.probes for probe in self._asked())
        work = sum(cost(cell, self.recipe, self.shared.sizes) for cell in missing)
        work += untried * probe_cost(self.recipe, self.shared.sizes)
        finished = [row for row in self.cells if row["key"] in set(keys.values())]
        return StudyState(
            self.folder,
            num_cells=len(keys),
            num_finished=len(finished),
            num_failed=sum("error" in row for row in finished),
            num_stale=0 if untried else len(self.cells) - len(finished),
            seconds_left=self._pace.seconds(work),
        )

    def key(self, cell: Cell) -> str | None:
        """The cell's key, which its learning rate is part of; None if that is not chosen yet."""
        tried = self._tried(cell)
        if tried is None:
            return None
        return key_of(decisive(self.shared, cell, self._best(cell, tried)))

    def _asked(self) -> list[Probe]:
        return list(probes(self.grid, self.recipe))

    def _probe_key(self, probe: Probe) -> str:
        return key_of(decisive_for_probe(self.shared, probe))

    def _tried(self, cell: Cell) -> dict[float, Row] | None:
        """The probes that decide a cell's learning rate, by rate; None if one is missing."""
        keys = {
            rate: self._probe_key(Probe(cell.start, cell.objective, rate))
            for rate in self.recipe.study.rates
        }
        if any(key not in self.probes for key in keys.values()):
            return None
        return {rate: self.probes[key] for rate, key in keys.items()}

    def _best(self, cell: Cell, tried: Mapping[float, Row]) -> float:
        """The rate with the best score; of several, that of the lowest loss."""
        able = {rate: row for rate, row in tried.items() if row["score"] is not None}
        if not able:
            raise checks.no_rate_works(cell.start, cell.objective, self.recipe.study.rates)
        return max(able, key=lambda rate: (able[rate]["score"], -able[rate]["loss"]))

    def _describe_teacher(self) -> None:
        """Write its scores, and what test sentences are not independent of."""
        path, num_rows = self.folder / "teacher.json", self.recipe.study.curve_rows
        key = key_of({"shared": self.shared.fingerprints, "curve_rows": num_rows})
        if (read_json(path) or {}).get("key") != key:
            progress.say("study: testing the teacher")
            write_json(path, {"key": key, **score_teacher(self.shared), **self._origin})
        write_json(self.folder / "groups.json", self.shared.test_part.groups_by_language())

    def _describe(self, keys: Sequence[str], whole: StudyConfig) -> None:
        """Write what the study is."""
        corpus = self.shared.corpus
        content: dict[str, Any] = {
            "name": self.recipe.name,
            "task": self.recipe.task.kind,
            "metric": headline(self.shared),
            "seen": corpus.seen,
            "unseen": corpus.unseen,
            "labels": corpus.train.label_names,
            "chance": chance(self.shared),
            "sizes": to_dict(self.shared.sizes),
            "layer_step_seconds": self._pace.seconds(1.0),
            "fingerprints": self.shared.fingerprints,
            "config": to_dict(self.recipe),
            "whole_grid": to_dict(whole),
            "num_cells": len({*whole_grid(whole), *self.grid}),
            "keys": keys,
        }
        write_json(self.folder / STUDY, content)

    def _try_rates(self) -> None:
        asked = self._asked()
        for number, probe in enumerate(asked, start=1):
            key = self._probe_key(probe)
            if key in self.probes:
                continue
            self._pace.require(probe_cost(self.recipe, self.shared.sizes))
            row = {"key": key, **run_probe(self.shared, probe), **self._origin}
            self.probes.append(row)
            self._pace.learn([], [row])
            found = row.get("error") or f"{row['score']:.3f}, loss {row['loss']:.3f}"
            progress.say(
                f"rate {number}/{len(asked)}: {probe.start}, {probe.objective}, "
                f"{probe.rate:g}: {found}; {row['wall_seconds']:.1f} s"
            )

    def _row(self, cell: Cell) -> Row:
        before, tried = None, self._tried(cell)
        assert tried is not None, "rates are tried before cells are run"
        if cell.start == "finetuned":
            layers = self.shared.layers(cell.depth, cell.num_layers)
            key = key_of({"layers": layers, "shared": self.shared.fingerprints})
            if key not in self.before:
                self.before.append({"key": key, **score_copy(self.shared, layers)})
            before = self.before[key]["scores"]
        scores = {str(rate): row["score"] for rate, row in tried.items()}
        row = run_cell(self.shared, cell, self._best(cell, tried), scores)
        return {**row, "before": before}

    def _said(self, cell: Cell, row: Row) -> str:
        """A line about a finished cell."""
        state = self.state()
        if "error" in row:
            result = row["error"]
        else:
            means = [
                f"{group} {fmean(row['scores'][name][row['metric']] for name in row[group]):.3f}"
                for group in ("seen", "unseen")
                if row[group]
            ]
            result = f"{', '.join(means)}; {row['wall_seconds']:.1f} s"
        return (
            f"cell {state.num_finished}/{state.num_cells}: {cell.shown}: {result}; "
            f"{shown_duration(state.seconds_left)} left"
        )
