"""What a study wrote, read back: cells, the teacher, and what each test example weighs.

A cell is one trained student. An arm is what cells that differ in nothing but their seed have in
common. Every score is a ratio of sums over test examples (accuracy, and tokens that were found:
right ones / all; span F1: 2 tp / (2 tp + fp + fn)), kept by the group of examples that stand or
fall together, such as the sentences of one template or document; that is what the statistics
resample.

Shapes: G groups of a language's test examples.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkd_fast.checks import study as checks
from mkd_fast.study.spoken import METRICS

STARTS = ("scratch", "embeddings", "pretrained", "finetuned")
OBJECTIVES = ("labels", "logit_mse", "kl", "kl_hidden", "hidden")
SEEN, UNSEEN = "seen", "unseen"
Floats = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Arm:
    """A way of making a student: where it starts, what it is taught by, on how much text."""

    start: str
    depth: str
    objective: str
    fraction: float
    num_layers: int


@dataclass(frozen=True)
class Sums:
    """A score as sums over groups of examples, ``[G]`` each: what it counts, of how much."""

    counted: Floats
    whole: Floats


@dataclass(frozen=True, eq=False)
class Point:
    """A moment of a training: optimizer steps so far, and the score on development text."""

    step: int
    dev: float


@dataclass(frozen=True, eq=False)
class Model:
    """A model that was tested: the teacher, or the student of a cell.

    Attributes:
        parameters: how many it has.
        dev: score on the seen languages' development text, at the end.
        sums: of the headline score, by language.
        scores: of each language, by the names of all that was measured.
    """

    parameters: int
    dev: float
    sums: Mapping[str, Sums]
    scores: Mapping[str, Mapping[str, float]]

    def score(self, languages: Iterable[str]) -> float:
        """Mean of the languages' scores, each counted once."""
        return fmean(
            float(self.sums[language].counted.sum() / self.sums[language].whole.sum())
            for language in languages
        )


@dataclass(frozen=True, eq=False)
class Cell(Model):
    """A trained student.

    Attributes:
        arm: how it was made.
        seed: what else decided.
        layers: the teacher's layers that it started from.
        learning_rate: the one chosen for its arm.
        rates: those that were tried for it.
        seconds: of its training.
        curve: its way there.
        before: score of each language by the copy that it was, if it was one, before training.
    """

    arm: Arm
    seed: int
    layers: tuple[int, ...]
    learning_rate: float
    rates: tuple[float, ...]
    steps: int
    seconds: float
    curve: tuple[Point, ...]
    before: Mapping[str, float]

    def steps_to(self, dev: float) -> float | None:
        """Steps until the development score was reached, interpolated; None if it never was."""
        before = Point(0, 0.0)
        for point in self.curve:
            if point.dev >= dev:
                share = (dev - before.dev) / (point.dev - before.dev) if point.dev > dev else 1.0
                return before.step + max(0.0, share) * (point.step - before.step)
            before = point
        return None


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Everything that a study found.

    Attributes:
        name: of the study.
        task: what models were trained for.
        metric: the headline score.
        seen: languages that there was training text for.
        unseen: languages that were only tested.
        teacher: the fine-tuned teacher.
        cells: the students.
        chance: what a model scores that reads nothing (``measure.chance``).
        num_train: training sentences, all of them.
        num_test: test sentences.
        planned: the values of each of an arm's fields, and the seeds, that the recipe's grid has.
        num_planned: how many cells there are in it, and in what was asked for instead.
        num_failed: cells that ended with an error.
    """

    name: str
    task: str
    metric: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    teacher: Model
    cells: tuple[Cell, ...]
    chance: float
    num_train: int
    num_test: int
    planned: Mapping[str, tuple[Any, ...]]
    num_planned: int
    num_failed: int

    @cached_property
    def by_arm(self) -> dict[Arm, dict[int, Cell]]:
        """Cells by arm and seed."""
        found: dict[Arm, dict[int, Cell]] = defaultdict(dict)
        for cell in self.cells:
            found[cell.arm][cell.seed] = cell
        return dict(found)

    @property
    def says_tokens(self) -> bool:
        """Whether its models are language models."""
        return self.metric in METRICS.values()

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, rising."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    @cached_property
    def main_fraction(self) -> float:
        """The share of the text that most cells have, of several the largest.

        Of a grid that is not finished, a larger one may have a few cells.
        """
        cells_of = Counter(cell.arm.fraction for cell in self.cells)
        return max(cells_of, key=lambda fraction: (cells_of[fraction], fraction))

    def present(self, field: str) -> tuple[Any, ...]:
        """The values of an arm's field that occur, in the order in which tables show them."""
        values = {getattr(arm, field) for arm in self.by_arm}
        order = {"start": STARTS, "objective": OBJECTIVES}.get(field)
        if order is not None:
            return tuple(value for value in order if value in values)
        return tuple(sorted(values, reverse=field in ("fraction", "num_layers")))

    def languages(self, group: str) -> tuple[str, ...]:
        """Those of SEEN or UNSEEN."""
        return self.seen if group == SEEN else self.unseen


def read_results(folder: Path) -> StudyResults:
    """Read what ``mkd-fast study`` left in its folder.

    Raises:
        ValueError: there is no finished cell, or a row that is not one of a study.
        OSError: a file is missing or cannot be read.
    """
    info, groups, teacher = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("study", "groups", "teacher")
    )
    lines = (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    current = [row for row in rows if row["key"] in set(info["keys"])]
    whole = [row for row in current if "error" not in row]
    if not whole:
        raise checks.no_finished_cells(folder)
    try:
        return StudyResults(
            name=info["name"],
            task=info["task"],
            metric=info["metric"],
            seen=tuple(info["seen"]),
            unseen=tuple(info["unseen"]),
            teacher=Model(**_of_model(teacher, groups)),
            cells=tuple(_cell(row, groups) for row in whole),
            chance=info["chance"] if "chance" in info else _chance(info),
            num_train=info["sizes"]["num_train"],
            num_test=info["sizes"]["num_test"],
            planned=_planned(info.get("whole_grid", info["config"]["study"])),
            num_planned=info.get("num_cells", len(info["keys"])),
            num_failed=len(current) - len(whole),
        )
    except (KeyError, TypeError) as error:
        raise checks.malformed_study(folder, error) from error


def _chance(info: Mapping[str, Any]) -> float:
    """Of a folder that says nothing of it."""
    return 1 / len(info["labels"]) if info["metric"] == "accuracy" else 0.0


def _planned(grid: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    lists = ("starts", "objectives", "fractions", "seeds")
    values = {name.removesuffix("s"): tuple(grid[name]) for name in lists}
    depths = (grid["depth"], *grid["depths"])
    return {**values, "depth": depths, "num_layers": tuple(grid["num_layers"])}


def _cell(row: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> Cell:
    return Cell(
        arm=Arm(*(row[name] for name in Arm.__dataclass_fields__)),
        seed=row["seed"],
        layers=tuple(row["layers"]),
        learning_rate=row["learning_rate"],
        rates=tuple(sorted(map(float, row["probe"]))),
        steps=row["steps"],
        seconds=row["seconds"],
        curve=tuple(Point(point["step"], point["dev"]) for point in row["curve"]),
        before={name: of[row["metric"]] for name, of in (row["before"] or {}).items()},
        **_of_model({"dev": row["curve"][-1]["dev"], **row}, groups),
    )


def _of_model(row: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    sums = {language: _sums(found, groups[language]) for language, found in row["correct"].items()}
    named = {name: row[name] for name in ("parameters", "dev", "scores")}
    return {**named, "sums": sums}


def _sums(found: str | Mapping[str, Sequence[int]], groups: Sequence[str]) -> Sums:
    """Of one language: bits of right answers in hexadecimal digits, tokens or spans a sentence."""
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if isinstance(found, str):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(found), np.uint8), count=len(groups))
        counted, whole = bits.astype(np.float64), np.ones(len(groups))
    elif "tokens" in found:
        counted, whole = (np.asarray(found[name], np.float64) for name in ("right", "tokens"))
    else:
        tp, fp, fn = (np.asarray(found[name], np.float64) for name in ("tp", "fp", "fn"))
        counted, whole = 2 * tp, 2 * tp + fp + fn
    per_group = (np.bincount(group_of, values) for values in (counted, whole))
    return Sums(*(sums.astype(np.float64) for sums in per_group))
