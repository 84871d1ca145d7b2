import json
import re

import pytest
import torch

from mkd_fast.checks.wording import is_ours
from mkd_fast.data.batches import Batch
from mkd_fast.losses import LossOutput
from mkd_fast.train.loop import Step
from mkd_fast.train.shares import Part, Share
from mkd_fast.train.step_log import StepLog

CPU = torch.device("cpu")


def share(*parts):
    """Of the samples of each part."""
    ids = [torch.tensor(samples) for samples in parts]
    steps = [Step(Batch(i[:, None], torch.ones_like(i[:, None]), i, i)) for i in ids]
    return Share(tuple(Part(step, len(step.batch.labels)) for step in steps), 0, 0, 0)


def see(log, step, *losses, grad_norm=1.0, parts=((1, 2),), num_tokens=3):
    """A step of one part, or of parts with these losses."""
    for loss in losses or (1.0,):
        log.add(LossOutput(*[torch.tensor(value) for value in (loss, 2.0 * loss, 3.0, 0.0)]))
    log.see(step, share(*parts), torch.tensor(grad_norm), num_tokens)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_a_row_holds_means_since_the_one_before(path):
    log = StepLog(path, "model", 0, CPU)
    see(log, 1, 1.0)
    see(log, 2, 3.0, grad_norm=2.0)
    shown = log.write(0.5)
    see(log, 3, 7.0)
    log.write(0.25)
    first, second = rows(path)
    assert {k: first[k] for k in ("model", "step", "loss", "kd", "ce", "hidden")} == {
        "model": "model",
        "step": 2,
        "loss": 2.0,
        "kd": 4.0,
        "ce": 3.0,
        "hidden": 0.0,
    }
    assert (first["grad_norm"], first["learning_rate"]) == (1.5, 0.5)
    assert (second["step"], second["loss"], second["learning_rate"]) == (3, 7.0, 0.25)
    assert 0 <= first["wait_share"] <= 1
    assert set(shown) == {
        "loss",
        "kd",
        "ce",
        "tokens/s",
        "% waiting",
    }  # a term that is not used is not shown


def test_tokens_add_up(path):
    log = StepLog(path, "model", 0, CPU)
    see(log, 1, num_tokens=6)
    see(log, 2, num_tokens=15)
    assert log.tokens == 6 + 15
    assert log.write(0.1)["tokens/s"] == rows(path)[0]["tokens_per_s"] > 0


def test_timed_changes_nothing(path):
    log = StepLog(path, "model", 0, CPU)
    assert list(log.timed(iter("abc"))) == ["a", "b", "c"]


def test_the_terms_of_parts_add_up(path):
    log = StepLog(path, "model", 0, CPU)
    see(log, 1, 1.0, 4.0, parts=((1, 2), (3,)))
    see(log, 2, 7.0)
    log.write(0.1)
    assert {k: rows(path)[0][k] for k in ("loss", "kd", "ce")} == {"loss": 6, "kd": 12, "ce": 4.5}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("losses", "grad_norm", "named"),
    [
        pytest.param((NAN, 1.0), NAN, "samples 8, 9.", id="the part's whose loss it is"),
        pytest.param((1.0, -INF), NAN, "samples 5.", id="of the last part"),
        pytest.param((NAN, INF), NAN, "samples 8, 9, 5.", id="of both"),
        pytest.param((1.0, 1.0), INF, "samples 8, 9, 5.", id="all, where only gradients show it"),
    ],
)
def test_the_first_broken_step_and_its_samples_are_named(path, losses, grad_norm, named):
    log, parts = StepLog(path, "model", 0, CPU), ((8, 9), (5,))
    see(log, 1)
    assert log.is_broken.item() == 0
    see(log, 2, *losses, grad_norm=grad_norm, parts=parts)
    assert log.is_broken.item() == 1
    see(log, 3)
    see(log, 4, *losses, grad_norm=grad_norm, parts=parts)
    assert log.is_broken.item() == 1, "sticky: nothing may move any more"
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=re.escape(f"at step 2, {named}")):
            log.write(0.1)
    assert not path.exists()


def test_a_check_forgets_samples_that_were_fine(path):
    log = StepLog(path, "model", 0, CPU)
    for step in range(1, 100):
        see(log, step)
        log.check()
    assert not log._looked_at


def test_rows_beyond_the_checkpoint_are_dropped_once_resumed(path):
    path.parent.mkdir()
    kept = [{"model": "model", "step": 2}, {"model": "other", "step": 9}]
    lines = [*kept, {"model": "model", "step": 3}, {"model": "model", "step": 4}]
    torn = '{"model": "mod'
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    log = StepLog(path, "model", 2, CPU)
    assert rows(path) == kept
    see(log, 3, 5.0)
    log.write(0.1)
    assert [row["step"] for row in rows(path)] == [2, 9, 3]
    assert rows(path)[-1]["loss"] == 5.0


def test_rows_that_all_stand_are_not_written_again(path):
    path.parent.mkdir()
    path.write_text('{"model": "model", "step": 2}\n')
    before = path.stat()
    StepLog(path, "model", 2, CPU)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_row_that_cannot_be_written_is_told_in_our_words(path):
    path.parent.mkdir()
    log = StepLog(path, "model", 0, CPU)
    path.mkdir()  # in the way
    see(log, 1)
    with pytest.raises(IsADirectoryError, match="must be a folder that can be written") as caught:
        log.write(0.1)
    assert is_ours(caught.value)
    assert str(path) in str(caught.value)
