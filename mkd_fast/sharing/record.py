"""A run's folder as somebody else reads it: nothing is claimed, made or changed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mkd_fast.checks import sharing as checks
from mkd_fast.evaluate.report import folder_size_bytes
from mkd_fast.evaluate.scores import ModelScores
from mkd_fast.files import read_json

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What ``mkd-fast distill`` has written so far.

    Args:
        folder: of the run.

    Attributes:
        record: run.json: the resolved recipe as "config", and where it ran.
    """

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, function: str) -> "RunRecord":
        """The record of a run.

        Args:
            folder: of the run.
            function: what an error calls itself.

        Raises:
            ValueError: this is no run's folder.
        """
        record = read_json(folder / "run.json")
        if not isinstance(record, dict) or "config" not in record:
            raise checks.not_a_run(function, folder)
        return cls(folder, record)

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """The resolved recipe, by section."""
        found: Mapping[str, Mapping[str, Any]] = self.record["config"]
        return found

    @property
    def task(self) -> str:
        """The kind of task; runs of older versions had one only."""
        return str(self.settings.get("task", {}).get("kind", "sequence_classification"))

    @cached_property
    def scores(self) -> dict[str, ModelScores]:
        """Of the models that were scored, by the names of their folders."""
        order = ("teacher", "copied", "student", "scratch")
        found = {name: read_json(self.folder / "scores" / f"{name}.json") for name in order}
        return {name: ModelScores.from_dict(scores) for name, scores in found.items() if scores}

    @property
    def is_finished(self) -> bool:
        """Whether everything that the recipe asks for is trained and scored."""
        wanted = {"teacher", "copied", "student"}
        if self.settings.get("scratch", {}).get("enabled"):
            wanted.add("scratch")
        return wanted <= self.scores.keys() and (self.folder / "report.md").exists()

    @property
    def rows(self) -> list[Row]:
        """Rows of metrics.jsonl; one that is being written is left out."""
        return list(metric_rows(self.folder / "metrics.jsonl"))

    def fit(self, name: str) -> Mapping[str, Any]:
        """Steps, tokens and seconds of a finished training; empty before."""
        return read_json(self.folder / "fits" / f"{name}.json") or {}

    def model_folder(self, name: str) -> Path | None:
        """A model that this run has made, or None."""
        folder = self.folder / name
        return folder if (folder / "config.json").exists() else None

    def size_bytes(self, name: str) -> int | None:
        """Of a model's folder, or None where there is none."""
        folder = self.model_folder(name)
        return None if folder is None else folder_size_bytes(folder)

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        if self.is_finished:
            return "finished"
        if rows := self.rows:
            last = rows[-1]
            of = f" of {last['num_steps']}" if last.get("num_steps") else ""
            return f"unfinished: {last['model']} at step {last['step']}{of}"
        made = [name for name in ("data", "cache", "copied") if (self.folder / name).exists()]
        return f"unfinished: no step yet, made so far: {', '.join(made) or 'nothing'}"


def metric_rows(path: Path) -> Iterator[Row]:
    """The whole lines of a metrics.jsonl, which may still grow, or not be there yet."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)
