"""Stopped anywhere and started again, a training ends with the same bits and the same rows."""

import errno
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from file_limit import file_size_limit
from tiny_problem import (
    NUM_ROWS,
    NUM_STEPS,
    OPTIM,
    TOKENS_A_ROW,
    Model,
    Problem,
    metric_rows,
    train,
)

from mkd_fast.stopping import Terminated
from mkd_fast.train import checkpoint


class Stopped(BaseException):
    """What Ctrl-C raises is no Exception either."""


def stop_at(step):
    def meddle(number, loss, model):
        if number == step:
            raise Stopped
        return loss

    return meddle


@pytest.fixture
def undisturbed(tmp_path):
    folder = tmp_path / "undisturbed"
    model, _ = train(folder)
    return model.weights(), metric_rows(folder / "metrics.jsonl")


def assert_same(folder, model, undisturbed):
    weights, rows = undisturbed
    assert model.weights().keys() == weights.keys()
    assert all(torch.equal(model.weights()[name], weight) for name, weight in weights.items())
    assert metric_rows(folder / "metrics.jsonl") == rows


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7, NUM_STEPS])
def test_stopped_at_a_step(tmp_path, undisturbed, step):
    with pytest.raises(Stopped):
        train(tmp_path, Problem(stop_at(step)))
    done = (step - 1) // OPTIM.checkpoint_every * OPTIM.checkpoint_every
    rest = Problem(first_step=done + 1)
    model, result = train(tmp_path, rest)
    assert list(rest.before_step) == list(range(done + 1, NUM_STEPS + 1))
    assert (result.steps, result.tokens) == (NUM_STEPS, OPTIM.epochs * NUM_ROWS * TOKENS_A_ROW)
    assert_same(tmp_path, model, undisturbed)


def test_stopped_again_and_again(tmp_path, undisturbed):
    for done in (0, 3, 6):
        with pytest.raises(Stopped):
            train(tmp_path, Problem(stop_at(done + 5), first_step=done + 1))
    assert_same(tmp_path, train(tmp_path)[0], undisturbed)


class Moving(Problem):
    """A weight of the loss is another one at every step."""

    def at(self, step, num_steps):
        self.weights = {"ce_weight": step / num_steps}
        return self

    def loss(self, model, step):
        out = super().loss(model, step)
        return replace(out, loss=out.loss * self.weights["ce_weight"])


def test_weights_that_move_go_on_where_they_were(tmp_path):
    model, _ = train(tmp_path / "undisturbed", Moving())
    undisturbed = model.weights(), metric_rows(tmp_path / "undisturbed" / "metrics.jsonl")
    assert [row["ce_weight"] for row in undisturbed[1]] == [n / 12 for n in (3, 4, 6, 8, 9, 12)]
    with pytest.raises(Stopped):
        train(tmp_path, Moving(stop_at(5)))
    assert_same(tmp_path, train(tmp_path, Moving())[0], undisturbed)


def test_stopped_between_the_parts_of_a_step(tmp_path):
    config = replace(OPTIM, accumulate=3)
    model, _ = train(tmp_path / "undisturbed", config=config)
    undisturbed = model.weights(), metric_rows(tmp_path / "undisturbed" / "metrics.jsonl")
    with pytest.raises(Stopped):
        train(tmp_path, Problem(stop_at(3 * 5 + 2)), config)
    assert_same(tmp_path, train(tmp_path, config=config)[0], undisturbed)


@pytest.mark.parametrize("step", [2, 5, NUM_STEPS])
def test_sigterm_saves_at_the_end_of_the_step(tmp_path, undisturbed, step):
    def terminate(number, loss, model):
        if number == step:
            signal.raise_signal(signal.SIGTERM)
        return loss

    problem, rest = Problem(terminate), Problem(first_step=step + 1)
    with pytest.raises(Terminated) as caught:
        train(tmp_path, problem)
    assert caught.value.code == 0
    assert max(problem.before_step) == step
    model, result = train(tmp_path, rest)
    assert list(rest.before_step) == list(range(step + 1, NUM_STEPS + 1))
    assert result.steps == NUM_STEPS
    weights, _ = undisturbed  # there is a metric row more, of the step that was the last
    assert all(torch.equal(model.weights()[name], weight) for name, weight in weights.items())


def test_dropout_matters_here(tmp_path, undisturbed):
    """Else the tests above would not notice a random state that is lost."""
    weights, _ = undisturbed
    model = Model()
    checkpoint.save(tmp_path / "c.pt", model, torch.optim.AdamW(model.parameters()), {})
    torch.manual_seed(8)
    with pytest.raises(Stopped):
        train(tmp_path, Problem(stop_at(5)))
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["random"]["cpu"] = torch.get_rng_state()
    torch.save(content, tmp_path / "checkpoint.pt")
    assert not torch.equal(train(tmp_path)[0].head.weight, weights["head.weight"])


def test_frozen_parameters_are_the_model_s_own(tmp_path):
    config = replace(OPTIM, freeze=("embeddings",))
    with pytest.raises(Stopped):
        train(tmp_path, Problem(stop_at(5)), config)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(content["model"]) == {"head.weight", "head.bias"}
    model, _ = train(tmp_path, config=config)
    whole, _ = train(tmp_path / "undisturbed", config=config)
    assert all(torch.equal(w, whole.weights()[n]) for n, w in model.weights().items())


def test_a_finished_training_is_only_loaded(tmp_path, undisturbed):
    _, first = train(tmp_path)
    rest = Problem()
    model, again = train(tmp_path, rest)
    assert not rest.before_step
    assert again == first
    assert_same(tmp_path, model, undisturbed)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, undisturbed, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    written = []

    def fill_up(descriptor):
        if path.exists():
            written.append(path.read_bytes())
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:
            train(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    needed = re.search(r"written whole, ([\d,]+) bytes, got No space left", str(caught.value))
    assert int(needed[1].replace(",", "")) > sum(w.nbytes for w in Model().weights().values())
    assert "and the same call goes on" in str(caught.value)
    assert path.read_bytes() == written[0]
    assert sorted(child.name for child in tmp_path.iterdir() if child.is_file()) == [
        "checkpoint.pt",
        "metrics.jsonl",
    ]
    assert_same(tmp_path, train(tmp_path)[0], undisturbed)


def test_a_disk_that_fills_up_within_a_checkpoint_keeps_the_one_before(tmp_path):
    path, model = tmp_path / "checkpoint.pt", torch.nn.Linear(512, 512)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(path, model, optimizer, {"steps": 1})
    before = path.read_bytes()
    with file_size_limit(1 << 19), pytest.raises(OSError, match="File too large") as caught:
        checkpoint.save(path, model, optimizer, {"steps": 2})
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_checkpoint_restores_nothing(tmp_path):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    assert checkpoint.restore(tmp_path / "absent.pt", model, optimizer) is None


def test_a_checkpoint_executes_nothing(tmp_path):
    """weights_only: a pickle of anything else is refused."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": Bomb()}, tmp_path / "c.pt")
    model = Model()
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.restore(tmp_path / "c.pt", model, torch.optim.AdamW(model.parameters()))
    assert not (tmp_path / "made").exists()
