"""Captures that are stopped, refused by the disk, or run twice at once."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from file_limit import file_size_limit

from mkd_fast.teacher.cache import Fingerprints, TeacherCache
from mkd_fast.teacher.capture import capture

OPTIONS = {
    "keep": "logits",
    "fingerprints": Fingerprints("echo", "letters", chat_template="none", dataset="random"),
    "shard_bytes": 100,  # two batches of 3 samples of 6 float32 columns
}
NUM_SHARDS = 3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path, echo, make_batches) -> dict[str, bytes]:
    """The bytes of a capture that nothing stopped."""
    capture(echo, make_batches(), tmp_path / "whole", **OPTIONS)
    files = contents(tmp_path / "whole")
    assert len(files) == NUM_SHARDS + 3
    return files


class FailingCall:
    """Stands in for a function and raises at its n-th call, counted from 0."""

    def __init__(self, function, number, error) -> None:
        self.function, self.number, self.error = function, number, error
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.number + 1:
            raise self.error
        return self.function(*args, **kwargs)


# plan, shards, index and manifest: each synchronises its file and then the folder
NUM_CALLS = 2 * (NUM_SHARDS + 3)


@pytest.mark.parametrize("number", range(NUM_CALLS))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_stopped_at_any_write_it_ends_the_same(
    tmp_path, monkeypatch, echo, make_batches, whole, number, error
):
    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailingCall(os.fsync, number, error))
        with pytest.raises(type(error)) as caught:
            capture(echo, make_batches(), folder, **OPTIONS)
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert re.search(
            r"[\d,]+ bytes, got No space left with [\d,]+ bytes free", str(caught.value)
        )
    left = contents(folder)
    assert not [name for name in left if name.endswith((".tmp", ".lock"))]
    finished = {name: data for name, data in left.items() if name.startswith("shard")}
    assert finished.items() <= whole.items()
    capture(echo, make_batches(), folder, **OPTIONS)
    assert contents(folder) == whole


@pytest.mark.parametrize("number", range(5))
def test_stopped_in_any_forward_pass_it_ends_the_same(
    tmp_path, monkeypatch, echo, make_batches, whole, number
):
    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(echo, "forward", FailingCall(echo.forward, number, MemoryError("too large")))
        with pytest.raises(MemoryError):
            capture(echo, make_batches(), folder, **OPTIONS)
    counting = FailingCall(echo.forward, -1, None)
    monkeypatch.setattr(echo, "forward", counting)
    capture(echo, make_batches(), folder, **OPTIONS)
    assert contents(folder) == whole
    # one batch is in flight while the one before it is written
    assert counting.calls == 5 - 2 * max((number - 1) // 2, 0)


def test_a_resumed_capture_opens_as_the_same_cache(tmp_path, monkeypatch, echo, make_batches):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailingCall(os.fsync, 6, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            capture(echo, make_batches(), tmp_path / "cache", **OPTIONS)
    with pytest.raises(ValueError, match=r"the capture must be finished, got .*cache, which"):
        TeacherCache.open(tmp_path / "cache")
    cache = capture(echo, make_batches(), tmp_path / "cache", **OPTIONS)
    for batch in make_batches():
        expected = echo(batch.input_ids, batch.attention_mask).logits
        assert torch.equal(cache.batch(batch.sample_ids).teacher, expected)


def stopped_after_two_shards(folder, monkeypatch, echo, batches):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailingCall(os.fsync, 6, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            capture(echo, batches, folder, **OPTIONS)
    assert sorted(contents(folder)) == [
        "capture.json",
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_shard_is_captured_again(
    tmp_path, monkeypatch, echo, make_batches, whole, shard, damage
):
    folder = tmp_path / "cache"
    stopped_after_two_shards(folder, monkeypatch, echo, make_batches())
    path = folder / f"shard-{shard:05d}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-5], "empty": b""}[damage])
    capture(echo, make_batches(), folder, **OPTIONS)
    assert contents(folder) == whole


def test_other_batches_cannot_be_resumed(tmp_path, monkeypatch, echo, make_batches):
    folder = tmp_path / "cache"
    batches = make_batches()
    stopped_after_two_shards(folder, monkeypatch, echo, batches)
    before = contents(folder)
    edited = make_batches()
    edited[1].input_ids[2, 0] += 1
    for others in (batches[1:], edited, batches[:3], make_batches(batch_size=2)):
        with pytest.raises(ValueError, match=r"batches must be those that .* was begun with"):
            capture(echo, others, folder, **OPTIONS)
    assert contents(folder) == before


def test_another_plan_cannot_be_resumed(tmp_path, monkeypatch, echo, make_batches):
    folder = tmp_path / "cache"
    stopped_after_two_shards(folder, monkeypatch, echo, make_batches())
    stored = Fingerprints(**vars(OPTIONS["fingerprints"]) | {"precision": "float32"})
    for field in fields(Fingerprints):
        other = replace(stored, **{field.name: "else"})
        was = getattr(stored, field.name)
        message = f"must be of {field.name} 'else', got {field.name} {was!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            capture(echo, make_batches(), folder, **OPTIONS | {"fingerprints": other})
    with torch.no_grad():
        echo.table = torch.nn.Parameter(torch.zeros(61, 4))
    with pytest.raises(
        ValueError, match=r"must be of outputs .*num_columns=4.*, got .*num_columns=6"
    ):
        capture(echo, make_batches(), folder, **OPTIONS)


def test_a_second_writer_is_refused(tmp_path, echo, make_batches, whole):
    folder = tmp_path / "cache"

    def while_another_tries():
        for number, batch in enumerate(make_batches()):
            if number == 4:
                with pytest.raises(RuntimeError, match=r"a cache has one writer, got a second one"):
                    capture(echo, make_batches(), folder, **OPTIONS)
            yield batch

    capture(echo, while_another_tries(), folder, **OPTIONS)
    assert contents(folder) == whole


def test_a_lock_removed_under_us_is_not_held(tmp_path, monkeypatch, echo, make_batches):
    lock = tmp_path / "cache" / "capture.lock"
    # the writer before us releases the lock between our opening and our locking its file
    monkeypatch.setattr(fcntl, "flock", lambda file, how: lock.unlink())
    with pytest.raises(RuntimeError, match="a cache has one writer"):
        capture(echo, make_batches(), tmp_path / "cache", **OPTIONS)


def test_a_file_size_limit_of_the_system(tmp_path, echo, make_batches, whole):
    folder = tmp_path / "cache"
    message = r"manifest.json|capture.json|shard-00000"
    with file_size_limit(800), pytest.raises(OSError, match=message) as caught:
        capture(echo, make_batches(), folder, **OPTIONS)
    assert caught.value.errno == errno.EFBIG
    assert not list(folder.glob("*.tmp"))
    capture(echo, make_batches(), folder, **OPTIONS)
    assert contents(folder) == whole


def test_a_folder_without_permission(tmp_path, monkeypatch, echo, make_batches):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"must be a folder that can be written"):
        capture(echo, make_batches(), tmp_path / "cache", **OPTIONS)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"must be a folder that can be written"):
        capture(echo, make_batches(), tmp_path / "cache", **OPTIONS)


def test_a_file_where_the_folder_should_be(tmp_path, echo, make_batches):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FileExistsError, match=r"must be a folder that can be written"):
        capture(echo, make_batches(), tmp_path / "cache", **OPTIONS)


KILLED_THEN_RESUMED = """
import os, pathlib, signal, sys
from types import SimpleNamespace
import torch
from mkd_fast.teacher.cache import Fingerprints
from mkd_fast.teacher.capture import capture

root, num_calls = pathlib.Path(sys.argv[1]), int(sys.argv[2])
teacher = torch.nn.Linear(4, 2)
teacher.forward = lambda input_ids, attention_mask: SimpleNamespace(logits=input_ids[:, :6] / 7)

def run(folder):
    ids = torch.arange(15 * 8).reshape(5, 3, 8)
    batches = [
        dict(input_ids=batch, attention_mask=torch.ones_like(batch), sample_ids=batch[:, 0])
        for batch in ids
    ]
    origin = Fingerprints(teacher="t")
    capture(teacher, batches, folder, keep="logits", shard_bytes=100, fingerprints=origin)

def run_until_killed(folder, calls):
    fsync = os.fsync
    def counting(descriptor):
        nonlocal calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
    os.fsync = counting
    run(folder)

for number in range(num_calls):
    if (child := os.fork()) == 0:
        run_until_killed(root / f"killed-{number}", number)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, number
    assert (root / f"killed-{number}" / "capture.lock").exists()
for number in range(num_calls):
    run(root / f"killed-{number}")
run(root / "whole")
"""


def test_killed_at_any_write_it_ends_the_same(tmp_path):
    arguments = [str(tmp_path), str(NUM_CALLS)]
    subprocess.run([sys.executable, "-c", KILLED_THEN_RESUMED, *arguments], check=True)
    whole = contents(tmp_path / "whole")
    for number in range(NUM_CALLS):
        found = contents(tmp_path / f"killed-{number}")
        assert found.keys() - whole.keys() <= {"capture.lock"}
        assert {name: found[name] for name in whole} == whole
