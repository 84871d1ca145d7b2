"""Repair: byte for byte what was there, and the teacher sees only what is lost."""

import copy
import os
import re
import shutil

import pytest
import torch
from rich_cache import SHARDS, contents, counted_forwards

from mkd_fast.teacher import Fingerprints, TeacherCache, capture, repair, verify
from mkd_fast.teacher.cache.manifest import read_manifest


@pytest.fixture
def folder(rich, tmp_path):
    """A copy to damage."""
    return shutil.copytree(rich, tmp_path / "cache")


def flip(path, position=-5):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def remove(path):
    path.unlink()


def test_a_whole_cache_is_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert repair(folder) == ()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", [flip, cut, remove])
@pytest.mark.parametrize("name", ["manifest.json", "capture.json", "index.safetensors"])
def test_no_teacher_is_needed(folder, rich, name, damage):
    damage(folder / name)
    assert [found.file for found in repair(folder)] == [name]
    assert contents(folder) == contents(rich)


def test_files_that_do_not_belong_are_removed_if_their_names_are_ours(folder, rich):
    shutil.copy(folder / SHARDS[0], folder / "shard-00077.safetensors")
    (folder / "notes.safetensors").write_bytes(b"somebody's")
    assert [found.file for found in repair(folder)] == ["shard-00077.safetensors"]
    assert contents(folder) == contents(rich) | {"notes.safetensors": b"somebody's"}


@pytest.mark.parametrize("damage", [flip, cut, remove])
@pytest.mark.parametrize("lost", [[0], [2], [4], [1, 3], [0, 1, 2, 3, 4]])
def test_the_teacher_sees_damaged_shards_only(folder, rich, causal, make_batches, lost, damage):
    for number in lost:
        damage(folder / SHARDS[number])
    flip(folder / "index.safetensors")
    with counted_forwards(causal) as forwards:
        found = repair(folder, causal, make_batches())
    assert forwards == [3] * len(lost)
    names = ["index.safetensors", *(SHARDS[number] for number in lost)]
    assert [damage.file for damage in found] == names
    assert contents(folder) == contents(rich)


def swap(folder):
    one, two = (folder / name for name in SHARDS[1:3])
    one.rename(folder / "one")
    two.rename(one)
    (folder / "one").rename(two)


def duplicate(folder):
    for name in SHARDS[1:3]:
        shutil.copy(folder / SHARDS[0], folder / name)


@pytest.mark.parametrize("damage", [swap, duplicate])
def test_shards_in_the_wrong_place(folder, rich, causal, make_batches, damage):
    damage(folder)
    with counted_forwards(causal) as forwards:
        assert [found.file for found in repair(folder, causal, make_batches())] == SHARDS[1:3]
    assert len(forwards) == 2
    assert contents(folder) == contents(rich)


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_a_damaged_head_needs_no_batches(folder, rich, causal, damage):
    damage(folder / "head.safetensors")
    message = "teacher_model must be given to write head.safetensors in"
    with pytest.raises(ValueError, match=message):
        repair(folder)
    with counted_forwards(causal) as forwards:
        assert [found.file for found in repair(folder, causal)] == ["head.safetensors"]
    assert forwards == []
    assert contents(folder) == contents(rich)


def test_what_needs_the_teacher_is_named_and_left(folder, rich, causal):
    for number in (1, 3):
        flip(folder / SHARDS[number])
    (folder / "capture.json").unlink()
    before = contents(folder)
    names = f"{SHARDS[1]}, {SHARDS[3]} in {folder} again, got none"
    for model, argument in ((None, "teacher_model"), (causal, "batches")):
        with pytest.raises(ValueError, match=f"repair: {argument} must be given to write {names}"):
            repair(folder, model)
    # and what can be done without is done
    assert contents(folder) == before | {"capture.json": contents(rich)["capture.json"]}


@pytest.mark.parametrize("lost", [SHARDS[2], "index.safetensors", "head.safetensors"])
def test_without_manifest_the_capture_goes_on(folder, rich, causal, make_batches, lost):
    flip(folder / "manifest.json")
    flip(folder / lost)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"write manifest.json, every shard from the first damag"):
        repair(folder)
    assert contents(folder) == before
    with counted_forwards(causal) as forwards:
        assert [found.file for found in repair(folder, causal, make_batches())] == ["manifest.json"]
    assert len(forwards) == (3 if lost == SHARDS[2] else 0)
    assert contents(folder) == contents(rich)


@pytest.mark.parametrize("position", range(0, 900, 60))
def test_a_flipped_head_is_known_even_without_manifest(folder, position):
    (folder / "manifest.json").unlink()
    flip(folder / "head.safetensors", position)
    with pytest.raises(ValueError, match=r"teacher_model must be given to write manifest.json"):
        repair(folder)


def test_another_teacher_text_or_precision_is_named(folder, causal, make_batches):
    flip(folder / SHARDS[2])
    before = contents(folder)
    stored = TeacherCache.open(folder).fingerprints
    other = copy.deepcopy(causal)
    with torch.no_grad():
        other.model.norm.weight[3] += 1
    with pytest.raises(ValueError, match=f"repair: .* must be of teacher .*'{stored.teacher}'"):
        repair(folder, other, make_batches())
    with pytest.raises(ValueError, match=r"precision 'autocast bfloat16', got precision 'float32'"):
        repair(folder, causal, make_batches(), autocast=torch.bfloat16)
    with pytest.raises(ValueError, match=r"dataset 'novels', got dataset 'random'"):
        repair(folder, causal, make_batches(), fingerprints=Fingerprints(dataset="novels"))
    # nobody says what text it is, so it shows in the bytes
    edited = make_batches()
    edited[2].input_ids[0, 0] += 1
    sha256 = read_manifest(folder / "manifest.json").shards[2].sha256
    with pytest.raises(ValueError, match=rf"shard-00002.* must come out with sha256 {sha256}, got"):
        repair(folder, causal, edited)
    with pytest.raises(ValueError, match=r"batches must be those that .* from sample 6 on"):
        repair(folder, causal, make_batches()[:2])
    with pytest.raises(ValueError, match=r"batches must be those that .* from sample 0 on"):
        repair(folder, causal, make_batches()[::-1])
    assert contents(folder) == before


def test_a_teacher_whose_fingerprint_somebody_chose(tmp_path, echo, make_batches):
    options = {"keep": "logits", "shard_bytes": 70, "fingerprints": Fingerprints("echo")}
    capture(echo, make_batches(), tmp_path / "cache", **options)
    before = contents(tmp_path / "cache")
    flip(tmp_path / "cache" / SHARDS[3])
    repair(tmp_path / "cache", echo, make_batches(), fingerprints=Fingerprints("echo"))
    assert contents(tmp_path / "cache") == before


def test_a_repair_that_was_stopped_is_repeated(folder, rich, causal, make_batches, monkeypatch):
    lost = SHARDS[1:4]
    for name in (*lost, "head.safetensors", "index.safetensors"):
        flip(folder / name)
    fsync, calls = os.fsync, []

    def third_fails(descriptor):
        calls.append(descriptor)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", third_fails)
    with counted_forwards(causal) as forwards:
        for _ in range(2 * 5 // 2):  # each file is synchronised, and its folder: one a run
            try:
                repair(folder, causal, make_batches())
                break
            except KeyboardInterrupt:
                assert not list(folder.glob("*.tmp"))
    assert verify(folder) == ()
    assert contents(folder) == contents(rich)
    # each run begins a shard that it does not end, and one batch is in flight
    assert len(forwards) <= 2 * len(lost)


def test_folders_that_cannot_be_repaired(folder, tmp_path, causal, make_batches):
    with pytest.raises(FileNotFoundError, match=r"which does not exist"):
        repair(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must have its manifest.json or its capture.json, got"):
        repair(tmp_path / "empty", causal, make_batches())
    assert contents(tmp_path / "empty") == {}
    flip(folder / "manifest.json")
    flip(folder / "capture.json")
    with pytest.raises(ValueError, match=r"capture.json must be as it was written, got a damaged"):
        repair(folder, causal, make_batches())


def test_a_writer_at_work_is_not_disturbed(tmp_path, echo, make_batches):
    options = {"keep": "logits", "fingerprints": Fingerprints("echo")}

    def while_somebody_repairs():
        for batch in make_batches():
            with pytest.raises(RuntimeError, match=r"a cache has one writer"):
                repair(tmp_path / "cache", echo, make_batches())
            yield batch

    capture(echo, while_somebody_repairs(), tmp_path / "cache", **options)


def test_the_reason_is_told(folder, causal, make_batches):
    cut(folder / SHARDS[1])
    (found,) = repair(folder, causal, make_batches())
    assert re.search(r"it has \d+ bytes in place of \d+", found.reason)
