"""A run stopped anywhere, by whatever, goes on and ends with the same bits; and begun only once."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import killed_training_job
import pytest
from tiny_job import weights
from tiny_problem import metric_rows

import mkd_fast
from mkd_fast.checks.wording import is_ours
from mkd_fast.train.config import load
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import SCRATCH, SHOWN_AS, STUDENT
from mkd_fast.train.stages import train

NO_RIVAL = {"scratch.enabled": "false"}


class Stopped(BaseException):
    """What Ctrl-C raises is no Exception either."""


class FullDiskError(OSError):
    def __init__(self, number=errno.ENOSPC, text="No space left on device"):
        super().__init__(number, text)


def test_called_again_it_redoes_nothing(finished, known_teacher, monkeypatch):
    for work in ("corpus.make", "run.copied_student", "run_cache.capture", "run.fit"):
        monkeypatch.setattr(f"mkd_fast.train.{work}", pytest.fail)
    monkeypatch.setattr("mkd_fast.train.classification.predict", pytest.fail)
    monkeypatch.setattr("mkd_fast.train.finetune.fit", pytest.fail)
    reports = ("report.md", "languages.csv", "summary.csv")
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    texts = [(finished.folder / name).read_text() for name in reports]
    again = mkd_fast.distill(finished.folder.parent / "recipe.toml")
    assert again == finished
    assert texts == [(finished.folder / name).read_text() for name in reports]
    changed = {p.name for p in finished.folder.rglob("*") if before.get(p) != p.stat().st_mtime_ns}
    assert {name for name in changed if not name.endswith(".png")} <= {*reports, "run"}


STAGES = [
    "mkd_fast.train.corpus.save",
    "mkd_fast.train.finetune.fit",
    "mkd_fast.train.finetune.write_json",
    "mkd_fast.train.models.save_folder",  # the teacher's
    "mkd_fast.train.run.copied_student",
    "mkd_fast.train.models.save_folder",  # the copied student's
    "mkd_fast.train.run_cache.capture",
    "mkd_fast.train.run.fit",
    "mkd_fast.train.run.write_json",
    "mkd_fast.train.models.save_folder",  # the trained student's
]


def stop_after(patch, stage):
    *module, name = stage.split(".")
    work = getattr(sys.modules[".".join(module)], name)

    def stopping(*args, **kwargs):
        work(*args, **kwargs)
        raise Stopped

    patch.setattr(stage, stopping)


def test_stopped_after_each_stage(finished, recipe, monkeypatch):
    run = Run(load(recipe, NO_RIVAL))
    for stage in STAGES:
        with monkeypatch.context() as patch:
            stop_after(patch, stage)
            with pytest.raises(Stopped):
                train(Run(run.config))
    train(Run(run.config))
    assert weights(run.folder / STUDENT) == weights(finished.student)
    assert weights(run.folder / "copied") == weights(finished.folder / "copied")
    rows = metric_rows(finished.folder / "metrics.jsonl")
    assert metric_rows(run.metrics_path) == [
        row for row in rows if row["model"] == SHOWN_AS[STUDENT]
    ]


@pytest.mark.parametrize("error", [Stopped, FullDiskError])
def test_stopped_every_few_writes(finished, recipe, monkeypatch, error):
    """No write is the one at which a run may not stop; each attempt is allowed a few more."""
    sync = os.fsync
    for attempt in range(100):
        left = 9 + attempt % 3  # the four files of the text are written in one go, with two each

        def stop(descriptor):
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stop)
            try:
                train(Run(load(recipe)))
                break
            except (Stopped, OSError) as stopped:
                assert type(stopped) is Stopped or is_ours(stopped)  # noqa: PT017 - the last one ends
    assert attempt > 3
    folder = tmp_folder(recipe)
    assert weights(folder / STUDENT) == weights(finished.student)
    assert weights(folder / SCRATCH) == weights(finished.folder / SCRATCH)
    assert metric_rows(folder / "metrics.jsonl") == metric_rows(finished.folder / "metrics.jsonl")


def tmp_folder(recipe):
    return Path(load(recipe).run.folder)


def test_killed_while_training(finished, recipe, monkeypatch):
    command = [sys.executable, killed_training_job.__file__, str(recipe)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    monkeypatch.setattr("mkd_fast.train.finetune.fit", pytest.fail)
    monkeypatch.setattr("mkd_fast.train.run.copied_student", pytest.fail)
    result = mkd_fast.distill(recipe)
    for name in ("copied", STUDENT, SCRATCH):
        assert weights(result.folder / name) == weights(finished.folder / name)
    for name in ("languages.csv", "data/train.jsonl", "cache/shard-00000.safetensors"):
        assert (result.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    rows = metric_rows(finished.folder / "metrics.jsonl")
    assert metric_rows(result.folder / "metrics.jsonl") == rows
    assert [r.scores for r in result.results] == [r.scores for r in finished.results]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train.epochs": "3"}, "train.epochs: was 2, is 3"),
        ({"student.depth": "[0, 1]"}, "student.depth: was 'stride', is [0, 1]"),
        (
            {"loss.alpha_beta": "[0.5, 0.5]", "loss.divergence": "alpha_beta"},
            "alpha_beta: was None",
        ),
        ({"data.seen": '["en"]', "run.seed": "1"}, "run.seed: was 0, is 1; data.seen: was [], is"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(finished, known_teacher, change, words):
    before = (finished.folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        mkd_fast.distill(finished.folder.parent / "recipe.toml", change)
    assert f"{finished.folder} belongs to a run of one recipe" in str(caught.value)
    assert (finished.folder / "run.json").read_bytes() == before


def test_until_more_than_text_is_there_a_recipe_may_change(recipe):
    """So that a wrong path can be corrected without clearing up."""
    with pytest.raises(FileNotFoundError, match=re.escape("absent.jsonl")):
        _ = Run(load(recipe, {"data.train": "absent.jsonl"})).corpus
    assert Run(load(recipe)).corpus.seen == ("de", "en")
    run = Run(load(recipe, {"data.seen": '["de"]'}))
    assert run.corpus.seen == ("de",)
    found = json.loads((run.folder / "run.json").read_text())
    assert found["config"]["data"]["seen"] == ["de"]


def test_a_folder_of_other_files_is_left_alone(recipe):
    folder = tmp_folder(recipe)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="with 'data' and no run"):
        mkd_fast.distill(recipe)
    assert [path.name for path in folder.rglob("*")] == ["data", "train.jsonl"]
