"""What a person sees of a run from another terminal."""

import io
import json

import pytest
from cli_call import assert_told, call
from rich.console import Console

from mkd_fast.sharing import watch as module
from mkd_fast.sharing.record import RunRecord
from mkd_fast.sharing.watch import sparkline, view


def shown(folder, now=None):
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(view(RunRecord.read(folder, "test"), now))
    return console.export_text()


def add_row(folder, step, **values):
    row = {"model": "trained student", "step": step, "num_steps": 10, "seconds": 4.0}
    row |= {"loss": 1.0 / step, "kd": 0.5 / step, "ce": 0.0, "hidden": 0.0}
    row |= {"tokens_per_s": 1234.5, "wait_share": 0.02, **values}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def run(begun):
    (begun / "metrics.jsonl").unlink()
    return begun


def test_losses_speed_waiting_and_time_left(run):
    add_row(run, 2)
    add_row(run, 4)
    checkpoints = run / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "student.pt").touch()
    text = shown(run, now=(checkpoints / "student.pt").stat().st_mtime + 7)
    assert "trained student at step 4 of 10" in text
    assert "█▁  0.25" in text
    assert "1,234" in text
    assert "2.0%" in text
    assert "0:12" in text  # 6 steps at 2 s
    assert "7 s ago" in text
    assert "ce" not in {line.split()[0] for line in text.splitlines() if line.strip()}


def test_before_the_first_step(run):
    assert "no step yet" in shown(run)


def test_a_finished_run_is_shown_once(finished):
    result = call("watch", finished)
    assert result.exit_code == 0, result.output


def test_it_follows_a_run_until_ctrl_c(run, monkeypatch):
    beats = []

    def sleep(seconds):
        beats.append(seconds)
        if len(beats) == 3:
            raise KeyboardInterrupt
        add_row(run, 2 * len(beats))

    monkeypatch.setattr(module.time, "sleep", sleep)
    result = call("watch", run)
    assert result.exit_code == 130
    assert "the run goes on" in result.stderr


def test_other_folders_are_refused(tmp_path):
    assert_told(call("watch", tmp_path), "no run.json")


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.0, 1.0], "▁█"),
        ([2.0, 2.0], "▁▁"),
        ([1.0, float("nan"), 2.0], "▁ █"),
        ([float("inf")], " "),
        ([], ""),
        ([9.0] + [1.0] * 40, "▁" * 40),
    ],
    ids=["rise", "level", "nan", "no finite one", "none", "only the last 40"],
)
def test_sparkline(values, bars):
    assert sparkline(values) == bars
