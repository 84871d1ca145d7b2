"""A recipe under torchrun: rank 0 makes what there is once, and a process that dies ends all."""

import json
import subprocess
import sys

import dying_rank_job
import pytest
from tiny_job import write_job

from mkd_fast.train.config import load
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import SHOWN_AS, STUDENT
from mkd_fast.train.stages import evaluate


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    """The recipe, and what torchrun said when its processes had died twice."""
    folder = tmp_path_factory.mktemp("dying")
    recipe = write_job(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKD_FAST_HOME", str(folder / "home"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"]
        command += [dying_rank_job.__file__, str(recipe)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    return recipe, ran


def test_a_killed_process_ends_the_others_which_go_on_from_the_checkpoint(died):
    recipe, ran = died
    # of torchrun's own words, "failed (exitcode: -9) local_rank: 1", some runs under load have none
    assert ran.stderr.count(dying_rank_job.KILLED) == 1
    path = Run(load(recipe)).metrics_path
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows if row["model"] == SHOWN_AS[STUDENT]] == [
        2, 3, 4, 6, 8, 9, 10, 12
    ]  # fmt: skip
    assert "trained student 12/12" in ran.stdout


def test_an_error_is_told_with_its_rank_and_ends_the_others(died):
    _, ran = died
    assert ran.returncode == 1
    assert f"error (rank 1): {dying_rank_job.ERROR}" in ran.stderr
    report = ran.stderr[ran.stderr.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in report
    assert f"ValueError: {dying_rank_job.ERROR}" in report


def test_each_file_is_whole_and_written_once(died, monkeypatch):
    recipe, ran = died
    assert ran.stdout.count("data: 48 training sentences") == 2  # attempts, not processes
    assert ran.stdout.count("done in") == 1
    monkeypatch.setenv("MKD_FAST_HOME", str(recipe.parent / "home"))
    run = Run(load(recipe))
    report = (run.folder / "report.md").read_text()
    for work in ("corpus.make", "run.copied_student", "run.fit"):
        monkeypatch.setattr(f"mkd_fast.train.{work}", pytest.fail)
    assert evaluate(run).student == run.folder / STUDENT
    assert (run.folder / "report.md").read_text() == report
    assert not list((run.folder / "checkpoints").iterdir())
