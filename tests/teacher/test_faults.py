"""Captures that are stopped, refused by the disk, or run twice at once."""

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import killed_capture_job
import pytest
import torch
from disk_calls import before_each_write, count_writes
from file_limit import file_size_limit
from rich_cache import contents

from mkd_fast.teacher.cache import Fingerprints, TeacherCache
from mkd_fast.teacher.cache.lock import LOCK
from mkd_fast.teacher.capture import capture

OPTIONS = {
    "keep": "logits",
    "fingerprints": Fingerprints("echo", "letters", chat_template="none", dataset="random"),
    "shard_bytes": 100,  # two batches of 3 samples of 6 float32 columns
}
NUM_SHARDS = 3
NOT_WRITTEN = (
    r"must be written whole, [\d,]+ bytes, got .* with [\d,]+ bytes free. Make room"
    r"|must be a folder that can be written, got .* Make room"
)


@pytest.fixture
def whole(tmp_path, echo, make_batches) -> dict[str, bytes]:
    """The bytes of a capture that nothing stopped."""
    capture(echo, make_batches(), tmp_path / "whole", **OPTIONS)
    files = contents(tmp_path / "whole")
    assert len(files) == NUM_SHARDS + 3
    return files


def raised_by(function, *args):
    try:
        function(*args)
    except (OSError, KeyboardInterrupt) as error:
        return error
    return None


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


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")],
)
def test_stopped_at_any_write_it_ends_the_same(tmp_path, echo, make_batches, whole, error):
    """Whatever call fails, the error says what is needed, and nothing finished is lost."""

    def run(folder):
        capture(echo, make_batches(), folder, **OPTIONS)

    num_writes = count_writes(lambda: run(tmp_path / "counted"))
    assert num_writes > 10 * NUM_SHARDS
    num_finished = 0
    for number in range(num_writes):
        folder = tmp_path / str(number)

        def fail(at, number=number):
            if at == number:
                raise error

        with before_each_write(fail):
            caught = raised_by(run, folder)
        if isinstance(caught, OSError):  # None where what was done needs no cleaning up
            assert caught.errno == error.errno
            assert re.search(NOT_WRITTEN, str(caught)), str(caught)
        left = contents(folder) if folder.exists() else {}
        assert not [name for name in left if name.endswith(".tmp")]
        finished = {name for name in left if name.startswith("shard")}
        assert {name: left[name] for name in finished} == {name: whole[name] for name in finished}
        if caught is not None:
            assert len(finished) >= num_finished  # what an earlier call found finished
            num_finished = len(finished)
        run(folder)
        assert {name: data for name, data in contents(folder).items() if name != LOCK} == whole


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
    with pytest.raises(ValueError, match="must be of num_columns 4, got num_columns 6"):
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


def test_killed_at_fifty_random_moments_it_ends_the_same(tmp_path):
    command = [sys.executable, killed_capture_job.__file__, str(tmp_path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["killed"] == 50
    # among them: in a shard, between the last shard and the manifest, in the manifest
    wanted = {"shard-00001.safetensors.tmp", "index.safetensors", "manifest.json.tmp"}
    assert wanted <= set(found["left"])


# mount needs no rights in a user namespace of one's own, where the system allows these
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    script = "mount -t tmpfs -o size=64k tmpfs /mnt"
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True).returncode == 0
    return False


FULL_DISK = """
import errno, pathlib, re, subprocess, sys
from killed_capture_job import run
from rich_cache import contents

root = pathlib.Path(sys.argv[1])
run(root / "whole")
whole = contents(root / "whole")
disk = root / "disk"
disk.mkdir()
num_shards = []
for size in range(4, 4 + sum(map(len, whole.values())) // 1024, 12):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
    try:
        run(disk / "cache")
    except OSError as error:
        assert error.errno == errno.ENOSPC
        assert re.search(r"[0-9,]+ bytes, got No space left on device with [0-9,]+ b", str(error))
    else:
        raise AssertionError(size)
    left = contents(disk / "cache")
    num_shards.append(len([name for name in left if name.startswith("shard")]))
    assert left.items() <= whole.items()
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    run(disk / "cache")
    assert contents(disk / "cache") == whole
    subprocess.run(["umount", disk], check=True)
assert num_shards == sorted(num_shards) and num_shards[0] == 0 and num_shards[-1] > 1, num_shards
"""


def test_a_full_disk(tmp_path):
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    command = [*NAMESPACE, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    tests = Path(killed_capture_job.__file__).parent
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(tests)})
