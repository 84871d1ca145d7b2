import io
import sys

import pytest
import torch

from mkd_fast.train import checkpoint, low_bit
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.optimizer import make_optimizer

pytest.importorskip("torchao", reason="moments of 8 bits are torchao's")


def parameters(seed=0):
    """A quantised matrix, one of a length that no block divides, and a vector."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((64, 128), (65, 67), (7,))
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def optimizer(of, learning_rate=1e-2):
    return low_bit.adamw8bit([{"params": of, "weight_decay": 0.01}], learning_rate)


def steps(of, optimizer, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in of:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_moves_as_adamw_does_but_for_the_rounding_of_its_moments():
    ours, theirs, start = parameters(), parameters(), parameters()
    steps(ours, optimizer(ours), 20)
    steps(theirs, torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.01), 20)
    for our, their, was in zip(ours[1:], theirs[1:], start[1:], strict=True):  # float32 moments
        moved = (their - was).abs().max()
        assert (our - their).abs().max() <= 1e-4 * moved
    moved = (theirs[0] - start[0]).norm()
    assert 0 < (ours[0] - theirs[0]).norm() < 0.05 * moved


def test_takes_a_quarter_of_the_memory():
    (matrix, *_) = of = parameters()
    made = optimizer(of)
    steps(of, made, 1)
    kept = made.state[matrix]
    num_bytes = sum(
        getattr(kept[name], part).nbytes
        for name in ("exp_avg", "exp_avg_sq")
        for part in ("codes", "scale")
    )
    assert num_bytes < 0.26 * 2 * matrix.nbytes


def test_pieces_do_not_show(monkeypatch):
    whole, in_pieces = parameters(), parameters()
    steps(whole, optimizer(whole), 3)
    monkeypatch.setattr(low_bit, "_PIECE", 512)
    steps(in_pieces, optimizer(in_pieces), 3)
    for one, other in zip(whole, in_pieces, strict=True):
        assert torch.equal(one, other)


def test_stands_still_where_a_gradient_was_not_finite():
    of = parameters()
    made = optimizer(of)
    steps(of, made, 2)
    before = [p.detach().clone() for p in of]
    state = copied(made.state_dict())
    made.found_inf = torch.ones(())
    of[0].grad = torch.full_like(of[0], torch.nan)
    made.step()
    assert all(torch.equal(p, was) for p, was in zip(of, before, strict=True))
    made.found_inf = torch.zeros(())
    steps(of, made, 1, seed=2)
    again = parameters()
    with torch.no_grad():
        for parameter, was in zip(again, before, strict=True):
            parameter.copy_(was)
    resumed = optimizer(again)
    resumed.load_state_dict(state)
    steps(again, resumed, 1, seed=2)
    assert all(torch.equal(one, other) for one, other in zip(of, again, strict=True))


def test_a_checkpoint_brings_every_bit_of_it_back(tmp_path):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Linear(128, 64)
        return model, make_optimizer(model, OptimConfig(optimizer="adamw8bit"))

    model, moved = made()
    steps(list(model.parameters()), moved, 2)
    checkpoint.save(tmp_path / "it.pt", model, moved, {"steps": 2})
    again, resumed = made()
    assert checkpoint.restore(tmp_path / "it.pt", again, resumed) == {"steps": 2}
    for of, by in ((model, moved), (again, resumed)):
        steps(list(of.parameters()), by, 3, seed=2)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_loss_falls_as_it_does_under_adamw():
    def losses(name):
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)
        model, given = torch.nn.Sequential(*layers), torch.randn(256, 64)
        wanted = given.roll(1, dims=1).abs()
        made = make_optimizer(model, OptimConfig(learning_rate=5e-3, optimizer=name))
        found = []
        for _ in range(60):
            loss = (model(given) - wanted).square().mean()
            loss.backward()
            made.step()
            made.zero_grad()
            found.append(loss.item())
        return found

    plain, low = losses("adamw"), losses("adamw8bit")
    assert plain[-1] < plain[0] / 5
    assert abs(low[-1] - plain[-1]) < 0.1 * plain[-1]


def test_without_torchao_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(RuntimeError, match=r"needs torchao.*pip install 'mkd_fast\[low_bit\]'"):
        optimizer(parameters())


def copied(state):
    """As a checkpoint keeps it: written, and read without executing anything."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
