"""Captures that several processes share: the bytes depend on the number of parts alone."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shared_capture_job as job
import torch
from rich_cache import contents
from torch.distributed import run as torchrun

from mkd_fast.teacher import Fingerprints, TeacherCache, repair, shared, verify
from mkd_fast.teacher.cache.left import part_folders, part_name
from mkd_fast.teacher.cache.lock import only_writer
from mkd_fast.teacher.shared import in_stored_order


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """All parts by one process."""
    folder = tmp_path_factory.mktemp("alone") / "cache"
    job.run(folder)
    return folder


def test_every_sample_is_there_as_from_a_capture_in_one_part(tmp_path, alone):
    one_part = job.run(tmp_path / "one", num_parts=1)
    cache = TeacherCache.open(alone)
    assert cache.sample_ids.tolist() == one_part.sample_ids.tolist()
    for batch in job.make_batches():
        ids = batch["sample_ids"]
        assert torch.equal(cache.batch(ids).teacher, one_part.batch(ids).teacher)
    assert verify(alone) == ()
    assert not part_folders(alone)
    assert cache.manifest.plan.num_parts == job.NUM_PARTS


@pytest.mark.parametrize(("num_processes", "rank_that_dies"), [(1, None), (2, 1), (3, None)])
def test_under_torchrun(tmp_path, alone, num_processes, rank_that_dies):
    """In one of them a process is killed, and torchrun starts all anew."""
    arguments = [
        str(tmp_path / "cache"),
        *([] if rank_that_dies is None else [str(rank_that_dies)]),
    ]
    torchrun.main(
        [
            "--standalone",
            f"--nproc-per-node={num_processes}",
            f"--max-restarts={int(rank_that_dies is not None)}",
            "--monitor-interval=0.1",
            job.__file__,
            *arguments,
        ]
    )
    assert contents(tmp_path / "cache") == contents(alone)


SURVIVORS = """
import os, pathlib, signal, sys
import shared_capture_job as job, torch

torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
# the first dies in its second part, the second at once, and the third does all that is left
for dies_at in (4, 1, None):
    if (child := os.fork()) == 0:
        job.run(folder, job.Echo() if dies_at is None else job.Echo(job.killed_at(dies_at)))
        os._exit(0)
    if dies_at is not None:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
assert os.waitpid(child, 0)[1] == 0
"""


def test_parts_of_the_killed_are_taken_over(tmp_path, alone):
    command = [sys.executable, "-c", SURVIVORS, str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(Path(job.__file__).parent)}
    subprocess.run(command, check=True, env=environment)
    assert contents(tmp_path / "cache") == contents(alone)


class Stop(BaseException):
    pass


def stopped_at(stopped: int) -> job.Echo:
    def stop(number: int) -> None:
        if number == stopped:
            raise Stop

    return job.Echo(stop)


@pytest.mark.parametrize("stopped", range(job.NUM_BATCHES))
def test_stopped_in_any_forward_pass_it_ends_the_same(tmp_path, alone, stopped):
    with pytest.raises(Stop):
        job.run(tmp_path / "cache", stopped_at(stopped))
    job.run(tmp_path / "cache", num_parts=None)
    assert contents(tmp_path / "cache") == contents(alone)


def test_a_part_in_other_hands_is_left_to_them_until_they_die(tmp_path, monkeypatch, alone):
    folder = tmp_path / "cache"
    part = folder / part_name(1, job.NUM_PARTS)
    part.mkdir(parents=True)
    other = only_writer(part)
    other.__enter__()
    teacher = job.Echo()

    def they_die(seconds):
        assert teacher.num_forwards == 8  # the batches of three parts
        other.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", they_die)
    job.run(folder, teacher)
    assert teacher.num_forwards == job.NUM_BATCHES
    assert contents(folder) == contents(alone)


def test_others_may_merge(tmp_path, monkeypatch, alone):
    """They hold the lock of the whole, and have merged and removed every part when they let go."""
    folder = tmp_path / "cache"
    folder.mkdir()
    with only_writer(folder):

        def they_finish(seconds):
            for part in part_folders(folder):
                shutil.rmtree(part)
            shutil.copytree(alone, folder, dirs_exist_ok=True)

        monkeypatch.setattr(time, "sleep", they_finish)
        job.run(folder)
    assert contents(folder) == contents(alone)


def test_a_part_is_not_begun_anew_once_all_are_merged(tmp_path, alone):
    """Somebody merges and removes the parts after we have looked for ours and found it undone."""
    folder = shutil.copytree(alone, tmp_path / "cache")
    plan = TeacherCache.open(alone).manifest.plan

    def write(writer, batches):
        raise AssertionError("nothing is left to do")

    part = folder / part_name(2, job.NUM_PARTS)
    assert shared._capture_part(part, 2, plan, job.make_batches(), write)
    assert list(part.iterdir()) == []
    job.run(folder)
    assert contents(folder) == contents(alone)


def test_a_damaged_shard_of_a_merged_cache(tmp_path, alone):
    folder = shutil.copytree(alone, tmp_path / "cache")
    names = [path.name for path in sorted(folder.glob("shard-*"))]
    assert len(names) > job.NUM_PARTS
    for name in (names[1], names[-1]):
        (folder / name).write_bytes(b"")
    teacher = job.Echo()
    repair(folder, teacher, job.make_batches(), fingerprints=Fingerprints("echo"))
    assert contents(folder) == contents(alone)
    assert teacher.num_forwards < job.NUM_BATCHES
    (folder / names[1]).write_bytes(b"")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"captured in parts, must have its manifest, or every"):
        repair(folder, teacher, job.make_batches(), fingerprints=Fingerprints("echo"))


def test_another_number_of_parts_is_refused(tmp_path, alone):
    with pytest.raises(Stop):
        job.run(tmp_path / "cache", stopped_at(5))
    for folder in (tmp_path / "cache", alone):
        with pytest.raises(ValueError, match=r"must be of num_parts 2, got num_parts 4"):
            job.run(folder, num_parts=2)


def test_more_parts_than_batches(tmp_path):
    with pytest.raises(ValueError, match=r"at least num_parts, 12, .*, got none for part 11"):
        job.run(tmp_path / "cache", num_parts=12)
    with pytest.raises(ValueError, match=r"num_parts must be positive, got -1"):
        job.run(tmp_path / "cache", num_parts=-1)


def test_what_others_have_done_is_not_removed(tmp_path):
    folder = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"resume must be True .*, got False with num_parts=4"):
        job.run(folder, resume=False)
    with pytest.raises(Stop):
        job.run(folder, stopped_at(5))
    with only_writer(part_folders(folder)[1]), pytest.raises(RuntimeError, match="has one writer"):
        job.run(folder, resume=False, num_parts=1)
    job.run(folder, resume=False, num_parts=1)
    assert not part_folders(folder)


def test_batches_in_stored_order():
    assert list(in_stored_order("abcdefg", 3)) == list("adgbecf")
    assert list(in_stored_order("abc", 1)) == list("abc")
