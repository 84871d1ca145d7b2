"""The loop: it learns, follows its schedule, and moves nothing after a step that is not finite."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny_problem import (
    NUM_ROWS,
    NUM_STEPS,
    OPTIM,
    ROWS_A_STEP,
    STEPS_AN_EPOCH,
    TOKENS_A_ROW,
    Model,
    Problem,
    metric_rows,
    train,
)
from torch.nn import functional

from mkd_fast.train.loop import fit, to_device


def same(weights, others):
    return all(torch.equal(weight, others[name]) for name, weight in weights.items())


def accuracy(model):
    batch = Problem().read(range(NUM_ROWS)).batch
    return (model(batch.input_ids).argmax(-1) == batch.labels).float().mean().item()


def test_it_learns(tmp_path):
    model, result = train(tmp_path, config=replace(OPTIM, epochs=20))
    assert accuracy(Model().eval()) < 0.7
    assert accuracy(model) == 1.0
    assert not model.training
    assert (result.steps, result.tokens) == (20 * STEPS_AN_EPOCH, 20 * NUM_ROWS * TOKENS_A_ROW)
    assert result.seconds > 0


@pytest.mark.parametrize("head_rate", [1.0, 10.0])
def test_a_step_is_adamw_on_clipped_gradients(tmp_path, head_rate):
    """The first step by hand: m = (1 - b1) g, v = (1 - b2) g^2, unbiased, decay on matrices."""
    config = replace(OPTIM, epochs=1, max_grad_norm=0.01, weight_decay=0.5, warmup=0.5)
    config = replace(config, head_rate=head_rate)
    problem = Problem()
    before = Model().train()
    torch.manual_seed(7)
    batch = problem.read(problem.batches(0)[0]).batch
    functional.cross_entropy(before(batch.input_ids), batch.labels).backward()
    train(tmp_path, problem, config)
    scheduled = config.learning_rate_at(1, STEPS_AN_EPOCH)
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in before.parameters()))
    assert norm > 0.01
    assert metric_rows(tmp_path / "metrics.jsonl")[0]["grad_norm"] > 0.01  # as it was, unclipped
    for name, p in before.named_parameters():
        gradient = p.grad.double() * 0.01 / (norm + 1e-6)
        rate = scheduled * head_rate if name.startswith("head") else scheduled
        decay = 0.5 if p.dim() > 1 else 0.0
        moved = p.double() * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(problem.before_step[2][name], moved.float())


def test_metric_rows(tmp_path):
    problem = Problem()
    train(tmp_path, problem)
    rows = metric_rows(tmp_path / "metrics.jsonl")
    # every 4 steps, and with each checkpoint, every 3: a row never spans one
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 12]
    assert {row["model"] for row in rows} == {"model"}
    for row in rows:
        assert row["learning_rate"] == OPTIM.learning_rate_at(row["step"], NUM_STEPS)
        assert row["loss"] == row["ce"] > 0
        assert row["kd"] == row["hidden"] == 0
        assert row["grad_norm"] > 0


def test_a_row_is_the_mean_since_the_row_before(tmp_path):
    seen = {}

    def note(number, loss, model):
        seen[number] = loss.item()
        return loss

    train(tmp_path, Problem(note))
    rows = metric_rows(tmp_path / "metrics.jsonl")
    for row, (first, last) in zip(rows, pairwise([0, 3, 4, 6, 8, 9, 12]), strict=True):
        losses = [seen[step] for step in range(first + 1, last + 1)]
        assert row["loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)


def nan_loss(number, loss, model):
    return loss * math.nan


def infinite_loss(number, loss, model):
    return loss * math.inf


def nan_gradient(number, loss, model):
    return loss + (model.head.weight.sum() * 0).sqrt()  # 0, with gradient 0 * inf


@pytest.mark.parametrize("spoil", [nan_loss, infinite_loss, nan_gradient])
@pytest.mark.parametrize("log_every", [1, 5, 100])
@pytest.mark.parametrize("step", [1, 5, 7])
def test_nothing_moves_from_a_step_on_that_is_not_finite(tmp_path, spoil, log_every, step):
    """With log_every = 5 the host learns of it later; steps until then are finite again."""
    config = replace(OPTIM, log_every=log_every, checkpoint_every=100)
    problem = Problem(lambda n, loss, model: spoil(n, loss, model) if n == step else loss)
    message = f"got NaN or infinity at step {step}, samples "
    with pytest.raises(FloatingPointError, match=re.escape(message)) as caught:
        train(tmp_path, problem, config)
    samples = ", ".join(map(str, problem.rows_of_step[step]))
    assert f"samples {samples}. No parameter moved." in str(caught.value)
    last = max(problem.before_step)
    assert last == min(math.ceil(step / log_every) * log_every, NUM_STEPS)
    assert all(same(problem.before_step[step], problem.before_step[n]) for n in range(step, last))
    assert same(problem.before_step[step], problem.model.weights())
    if step > 1:
        assert not same(problem.before_step[step - 1], problem.before_step[step])


def test_after_a_step_that_is_not_finite_the_checkpoint_is_the_one_before(tmp_path):
    """The same call goes on from it, and, were the step finite, ends as if nothing had been."""
    problem = Problem(lambda n, loss, model: loss * math.nan if n == 5 else loss)
    with pytest.raises(FloatingPointError, match="at step 5"):
        train(tmp_path, problem)
    resumed = Problem()
    model, _ = train(tmp_path, resumed)
    assert len(resumed.before_step) == NUM_STEPS - 3
    assert same(model.weights(), train(tmp_path / "other")[0].weights())


def test_it_takes_a_step_in_parts_and_moves_once(tmp_path):
    problem = Problem()
    train(tmp_path, problem, replace(OPTIM, accumulate=2))
    steps = [rows for epoch in range(OPTIM.epochs) for rows in problem.batches(epoch)]
    halves = [half for rows in steps for half in (rows[:2], rows[2:])]
    assert list(problem.rows_of_step.values()) == halves
    moments = list(problem.before_step.values())
    assert all(same(*pair) for pair in zip(moments[0::2], moments[1::2], strict=True))
    assert not any(same(*pair) for pair in pairwise(moments[0::2]))
    assert [row["step"] for row in metric_rows(tmp_path / "metrics.jsonl")] == [3, 4, 6, 8, 9, 12]


def test_parts_that_are_not_finite_move_nothing(tmp_path):
    """Part 6 is the second of step 3."""

    def spoil(number, loss, model):
        return loss * torch.nan if number == 6 else loss

    problem = Problem(spoil)
    samples = ", ".join(map(str, problem.batches(0)[2][2:]))
    with pytest.raises(FloatingPointError, match=f"at step 3, samples {samples}[.]"):
        train(tmp_path, problem, replace(OPTIM, accumulate=2))
    assert same(problem.model.weights(), problem.before_step[5])


def test_frozen_parameters_stay(tmp_path):
    model, _ = train(tmp_path, config=replace(OPTIM, freeze=("embeddings",)))
    assert torch.equal(model.embeddings.weight, Model().embeddings.weight)
    assert not torch.equal(model.head.weight, Model().head.weight)


def test_bfloat16_trains_float32_weights(tmp_path):
    seen = []

    def note(number, loss, model):
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss

    model, _ = train(tmp_path, Problem(note), replace(OPTIM, precision="bfloat16"))
    assert all(seen)
    assert model.head.weight.dtype == torch.float32
    assert not same(model.weights(), train(tmp_path / "float32")[0].weights())


def test_an_error_while_reading_stops_the_loop(tmp_path):
    class Unreadable(Problem):
        def read(self, rows):
            if set(rows) == set(self.batches(0)[2]):
                raise ValueError("sample 3 is damaged")
            return super().read(rows)

    problem = Unreadable()
    with pytest.raises(ValueError, match="sample 3 is damaged"):
        train(tmp_path, problem)
    assert list(problem.before_step) == [1, 2]


def test_to_device_leaves_the_cpu_s_own(tmp_path):
    step = Problem().read([0, 1])
    assert to_device(step, torch.device("cpu")) is step


def test_whoever_watches_each_step_changes_nothing_and_takes_no_time(tmp_path, monkeypatch):
    now, seen, problem = [0.0], [], Problem()

    def see(result):
        now[0] += 100.0  # an evaluation
        model = problem.model
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, dtype=torch.int64))
        model.train()
        seen.append((result, model.weights()))

    def advance():
        now[0] += 1e-6  # for there are rates per second
        return now[0]

    watched = Model()
    with monkeypatch.context() as patch:
        patch.setattr("mkd_fast.train.loop.time.monotonic", advance)
        result = fit(watched, problem, OPTIM, name="model", seed=7, after_step=see)
    assert [found.steps for found, _ in seen] == list(range(1, NUM_STEPS + 1))
    assert [found.tokens for found, _ in seen] == [
        steps * ROWS_A_STEP * TOKENS_A_ROW for steps in range(1, NUM_STEPS + 1)
    ]
    assert result.seconds < 1.0
    alone, _ = train(tmp_path)
    assert same(watched.weights(), alone.weights())
    assert same(seen[-1][1], alone.weights())


def test_without_paths_nothing_is_written_or_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit(Model(), Problem(), OPTIM, name="model", seed=7, shows_progress=False)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_without_paths_a_step_that_is_not_finite_stops_all_the_same():
    def spoil(number, loss, model):
        return loss * math.nan if number == 5 else loss

    with pytest.raises(FloatingPointError, match="at step 5"):
        fit(Model(), Problem(spoil), OPTIM, name="model", seed=7)
