"""Trainings by 1, 2 and 4 processes are one training; what happens to one of them, all tell."""

import json
import subprocess
import sys
import threading
import time

import parallel_job as job
import pytest
import torch
from budget import assert_within_budget

from mkd_fast.train import checkpoint
from mkd_fast.train.processes import ALONE, Processes

NAMES = [
    *(f"{parallel}-{size}" for size, parallel in job.WHOLE),
    *(f"{parallel}-parts-{size}" for size, parallel in job.IN_PARTS),
    *(
        f"{parallel}-{size}-{then}-{size_then}"
        for (size, parallel), (size_then, then) in job.RESUMED
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where four processes left what they made."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={job.NUM_PROCESSES}", job.__file__, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """State and losses of one process, in float64 and float32."""
    found = []
    for dtype in (torch.float64, torch.float32):
        folder = tmp_path_factory.mktemp("alone")
        state = job.train(folder, ALONE, "fsdp", dtype=dtype)  # of one process there is no other
        found.append((state, losses(folder, dtype)))
    return found


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder, dtype):
    return torch.tensor([row["loss"] for row in rows(folder)], dtype=dtype)


def left(folder, name, rank=0):
    """The last thing that a process left under a name."""
    return torch.load(max(folder.glob(f"{name}.{rank}.*")))


def flat(state):
    return torch.cat([tensor.flatten() for tensor in state.values()])


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_weights_are_those_of_one_process(made, alone, name):
    """Also those of a training that others resumed, divided otherwise."""
    (exact, exact_losses), (plain, plain_losses) = alone
    state = left(made, name)
    assert list(state) == list(exact)
    assert_within_budget(flat(state), flat(exact), flat(plain), "weights")
    assert_within_budget(losses(made / name, torch.float32), exact_losses, plain_losses, "loss")
    assert [row["step"] for row in rows(made / name)] == [2, 4, 6, 8, 9]


@pytest.mark.parametrize("name", NAMES)
def test_every_process_has_the_same_bits(made, name):
    size = int(name[-1])
    states = [left(made, name, rank) for rank in range(size)]
    assert all(torch.equal(flat(state), flat(states[0])) for state in states)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_gradients_are_summed_after_the_last_part(made, parallel):
    (before, after), (others_before, others_after) = [
        left(made, f"summed-{parallel}", rank) for rank in (0, 1)
    ]
    assert torch.equal(after[0], others_after[0])
    if parallel == "fsdp":  # kept where the whole layer is
        assert before == others_before == []
    else:
        assert not torch.equal(before[0], others_before[0])
        torch.testing.assert_close(after[0], before[0] + others_before[0])  # the mean, twice


def test_of_several_checkpoints_the_last_one_stays(made):
    for name in NAMES:
        file = [] if name[-1] != "1" else ["checkpoint"]
        folder = ["checkpoint-00000009"] if name[-1] != "1" else []
        assert sorted(path.name for path in (made / name).glob("*check*")) == file + folder


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_what_is_not_finite_in_one_process_is_named_by_all(made, name):
    samples = ", ".join(map(str, job.Problem().batches(0)[2][1::2]))
    for rank in (0, 1):
        told = left(made, name, rank)
        assert told.startswith("FloatingPointError: fit: loss and gradients of model must be")
        assert f"at step 3, samples {samples}. No parameter moved" in told
    assert not list((made / name).glob("checkpoint-*"))


def test_sigterm_of_one_process_ends_all_after_the_same_step(made, alone):
    for rank in (0, 1):
        assert torch.load(made / f"sigterm.{rank}.0") == "Terminated: 0"
    steps = [row["step"] for row in rows(made / "sigterm")]
    assert steps[:3] == [2, 4, 6]
    assert steps[3] in (6, 7)  # when the numbers asked for ahead have told all of them
    (exact, _), (plain, _) = alone
    assert_within_budget(flat(left(made, "sigterm")), flat(exact), flat(plain))


def test_a_disk_that_is_full_for_one_process_keeps_the_checkpoint(made):
    for rank in (0, 1):
        told = torch.load(made / f"full.{rank}.1")
        assert ".checkpoint-00000008.part must be written whole, by every process" in told
        assert "got File too large of rank 1. Make room; the checkpoint before is kept" in told
        assert left(made, "full", rank) == ["checkpoint-00000004", "metrics.jsonl"]


def test_a_checkpoint_of_processes_is_read_by_one(made, alone, tmp_path):
    model = job.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    done = checkpoint.restore(made / "fsdp-4" / "checkpoint", model, optimizer)
    assert done["steps"] == job.NUM_STEPS
    assert torch.equal(flat(model.state_dict()), flat(left(made, "fsdp-4")))
    assert all(state["step"] == job.NUM_STEPS for state in optimizer.state.values())


def test_of_two_checkpoints_the_later_one_counts(made, tmp_path):
    """Whoever was killed between writing one and removing the other leaves both."""
    path = tmp_path / "checkpoint"
    (tmp_path / "checkpoint-00000009").symlink_to(made / "ddp-2" / "checkpoint-00000009")
    model = job.make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for steps, found in ((4, 9), (11, 11)):
        checkpoint._save_file(path, model, optimizer, {"steps": steps})
        assert checkpoint.restore(path, model, optimizer)["steps"] == found


def test_dropout_of_each_process_is_its_own():
    seen = []
    for rank, steps in ((0, 0), (1, 0), (2, 0), (1, 5)):
        Processes(rank, 3).seed(7, steps)
        seen.append(torch.rand(1).item())
    torch.manual_seed(7)
    assert seen[0] == torch.rand(1).item()  # the first draws as one process does
    assert len(set(seen)) == 4


def test_what_rank_0_makes_the_others_wait_for(tmp_path):
    path = tmp_path / "made"

    def find():
        return path.read_text() or None if path.exists() else None

    def fail():
        raise AssertionError("rank 0 makes it")

    found = []
    waiting = threading.Thread(target=lambda: found.append(Processes(1, 2).made_once(find, fail)))
    waiting.start()
    time.sleep(0.3)
    assert found == []
    assert Processes(0, 2).made_once(find, lambda: f"{path.write_text('x')}") == "1"
    waiting.join(timeout=30)
    assert found == ["x"]
