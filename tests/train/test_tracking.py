"""Trackers show what metrics.jsonl has, go on when a run resumes, and never stop a training."""

import sys
import types
from dataclasses import replace

import pytest
from tiny_problem import OPTIM, Model, Problem, metric_rows

from mkd_fast.checks.wording import is_ours
from mkd_fast.train import tracking
from mkd_fast.train.loop import fit
from mkd_fast.train.tracking import Tracking

EVERY_STEP = replace(OPTIM, log_every=1, checkpoint_every=2)


class Stopped(BaseException):
    """What Ctrl-C raises is no Exception either."""


class FakeRun:
    """A run of Weights & Biases, whose server keeps summary and history under its id."""

    def __init__(self, settings, kept):
        self.settings, self.summary, self.history = settings, kept, []
        self.axes, self.is_finished = {}, False

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.history.append(values)
        self.summary.update(values)

    def finish(self):
        self.is_finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The package, standing in for itself; its ``runs`` are those that were begun."""
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    kept, module.runs = {}, []

    def init(**settings):
        module.runs.append(FakeRun(settings, kept.setdefault(settings["id"], {})))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def train(folder, trackers, after_step=None):
    return fit(
        Model(),
        Problem(),
        EVERY_STEP,
        name="a model",
        checkpoint_path=folder / "checkpoint.pt",
        metrics_path=folder / "metrics.jsonl",
        sinks=(trackers.write,),
        seed=7,
        after_step=after_step,
    )


def stop_at(step):
    def after_step(result):
        if result.steps == step:
            raise Stopped

    return after_step


def stopped_and_resumed(folder, names):
    """Stopped a step behind a checkpoint, so that a row is written twice."""
    first = Tracking(names, folder, {"train": {"epochs": 2}})
    with pytest.raises(Stopped):
        train(folder, first, stop_at(3))
    first.close()
    second = Tracking(names, folder, {"train": {"epochs": 2}})
    train(folder, second)
    second.close()
    return metric_rows(folder / "metrics.jsonl")


def test_tensorboard_has_each_row_once_also_of_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = stopped_and_resumed(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "a_model"))
    events.Reload()
    assert {"loss", "ce", "grad_norm", "learning_rate", "tokens_per_s"} <= {
        *events.Tags()["scalars"]
    }
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in rows]


def test_wandb_has_each_row_once_also_of_a_resumed_run(tmp_path, wandb):
    rows = stopped_and_resumed(tmp_path, ["wandb"])
    first, second = wandb.runs
    assert first.settings["id"] == second.settings["id"]
    assert (first.settings["resume"], first.settings["dir"]) == ("allow", str(tmp_path))
    assert first.settings["config"] == {"train": {"epochs": 2}}
    assert first.axes["a model/*"] == "a model/step"
    assert first.is_finished
    assert second.is_finished
    shown = [(v["a model/step"], v["a model/loss"]) for v in first.history + second.history]
    assert shown == [(row["step"], row["loss"]) for row in rows]


def test_training_is_the_same_with_and_without(tmp_path, wandb):
    train(tmp_path / "with", Tracking(["tensorboard", "wandb"], tmp_path / "with", {}))
    train(tmp_path / "without", Tracking([], tmp_path / "without", {}))
    of_both = [tmp_path / name / "metrics.jsonl" for name in ("with", "without")]
    assert metric_rows(of_both[0]) == metric_rows(of_both[1])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_one_that_is_not_installed_is_told_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(RuntimeError, match=rf"{name}.*mkd_fast\[tracking\]") as raised:
        Tracking([name], tmp_path, {})
    assert is_ours(raised.value)


def test_one_that_cannot_start_stops_before_training(tmp_path, wandb, monkeypatch):
    def not_logged_in(**settings):
        raise KeyError("no API key\nand a long story")

    monkeypatch.setattr(wandb, "init", not_logged_in)
    with pytest.raises(
        RuntimeError, match=r"wandb must start.*no API key.*run\.trackers"
    ) as raised:
        Tracking(["wandb"], tmp_path, {}).start()
    assert is_ours(raised.value)


def test_one_that_fails_later_is_told_once_and_left_out(tmp_path, wandb, monkeypatch, capsys):
    def broken(self, values):
        raise ConnectionError("server went away")

    monkeypatch.setattr(FakeRun, "log", broken)
    trackers = Tracking(["tensorboard", "wandb"], tmp_path, {})
    result = train(tmp_path, trackers)
    trackers.close()
    said = capsys.readouterr().out
    assert said.count("WARNING, wandb failed") == 1
    assert "server went away" in said
    assert result.steps == len(metric_rows(tmp_path / "metrics.jsonl"))
    assert (tmp_path / "tensorboard" / "a_model").is_dir()


def test_one_that_fails_when_it_ends_is_told(tmp_path, wandb, monkeypatch, capsys):
    def broken(self):
        raise ConnectionError("server went away")

    monkeypatch.setattr(FakeRun, "finish", broken)
    trackers = Tracking(["wandb"], tmp_path, {})
    train(tmp_path, trackers)
    trackers.close()
    assert "WARNING, wandb failed" in capsys.readouterr().out
