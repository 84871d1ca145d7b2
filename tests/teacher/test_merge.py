"""Merging: every sample of the parts, whatever stops it on the way."""

import errno
import os
import shutil

import pytest
import torch
from rich_cache import OPTIONS, contents, counted_forwards, read_everything

from mkd_fast.teacher import Fingerprints, TeacherCache, capture, merge, repair, verify


@pytest.fixture(scope="module")
def parts(tmp_path_factory, causal, make_batches):
    """Two captures of one plan, of three and two batches."""
    folder = tmp_path_factory.mktemp("parts")
    capture(causal, make_batches()[:3], folder / "one", **OPTIONS)
    capture(causal, make_batches()[3:], folder / "two", **OPTIONS)
    return [folder / "one", folder / "two"]


def test_a_merged_cache_is_that_of_one_capture(tmp_path, rich, parts):
    before = [contents(part) for part in parts]
    merge(parts, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(rich)
    assert [contents(part) for part in parts] == before
    assert (tmp_path / "merged" / "shard-00003.safetensors").samefile(
        parts[1] / "shard-00000.safetensors"
    )


def test_any_order_serves_the_same_records(tmp_path, rich, parts, make_batches):
    merged = merge(parts[::-1], tmp_path / "merged")
    assert verify(tmp_path / "merged") == ()
    whole = TeacherCache.open(rich)
    assert merged.sample_ids.tolist() == whole.sample_ids.tolist()
    for batch in make_batches():
        one, two = (cache.batch(batch.sample_ids, keep="logits") for cache in (merged, whole))
        assert torch.equal(one.teacher, two.teacher)
        assert torch.equal(one.hidden[0].dequantised(), two.hidden[0].dequantised())


def test_repair_takes_the_batches_in_the_order_of_the_parts(tmp_path, parts, causal, make_batches):
    folder = tmp_path / "merged"
    merge(parts[::-1], folder)
    before = contents(folder)
    (folder / "shard-00001.safetensors").unlink()  # the last of its part, and not of the cache
    batches = make_batches()
    with counted_forwards(causal) as forwards:
        repair(folder, causal, batches[3:] + batches[:3])
    assert len(forwards) == 1
    assert contents(folder) == before


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch, rich, parts):
    def refuse(*args, **kwargs):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(parts, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(rich)
    shutil.rmtree(tmp_path / "merged")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: refuse())
        with pytest.raises(OSError, match=r"capture.json must be written whole, [\d,]+ bytes"):
            merge(parts, tmp_path / "merged")


class Stop(BaseException):
    pass


# plan, head, index and manifest synchronise themselves and then the folder; five shards are linked
CALLS = [("fsync", number) for number in range(8)] + [("link", number) for number in range(5)]


@pytest.mark.parametrize(("call", "number"), CALLS)
def test_stopped_anywhere_it_is_repeated(tmp_path, monkeypatch, rich, parts, call, number):
    original, calls = getattr(os, call), []

    def stopping(*args):
        calls.append(args)
        if len(calls) == number + 1:
            raise Stop
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, stopping)
        with pytest.raises(Stop):
            merge(parts, tmp_path / "merged")
    if (tmp_path / "merged" / "manifest.json").exists():
        assert verify(tmp_path / "merged") == ()
    merge(parts, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(rich)


def test_merged_already_it_is_only_opened(tmp_path, parts):
    merge(parts, tmp_path / "merged")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "merged").iterdir()}
    assert len(merge(parts, tmp_path / "merged")) == 15
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "merged").iterdir()}
    assert after == before


def test_what_another_merge_has_left_is_replaced(tmp_path, rich, parts):
    folder = tmp_path / "merged"
    merge(parts[::-1], folder)
    (folder / "manifest.json").unlink()
    shutil.copy(folder / "shard-00000.safetensors", folder / "shard-00005.safetensors")
    merge(parts, folder)
    assert contents(folder) == contents(rich)


def test_other_files_are_left_alone(tmp_path, parts):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"merge: .* must be new, empty or .* 'thesis.tex'"):
        merge(parts, tmp_path)
    with pytest.raises(ValueError, match=r"merge: .* got .*one with 'manifest.json'"):
        merge(parts, parts[0])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_sample_in_two_parts_is_named(tmp_path, causal, parts, make_batches):
    capture(causal, make_batches()[2:], tmp_path / "three", **OPTIONS)
    sample = int(make_batches()[2].sample_ids.min())
    with pytest.raises(
        ValueError, match=rf"sample ids must differ, got {sample} in .*one and .*th"
    ):
        merge([parts[0], tmp_path / "three"], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"sample ids must differ, got \d+ in .*one and .*one"):
        merge([parts[0], parts[0]], tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": "topk:3"}, "must be of keep .*, got keep"),
        ({"fingerprints": Fingerprints("else")}, "must be of teacher '.*', got teacher 'else'"),
        ({"seed": 3}, "must be of seed 0, got seed 3"),
    ],
)
def test_caches_of_another_plan_are_refused(tmp_path, causal, parts, make_batches, change, message):
    capture(causal, make_batches()[3:], tmp_path / "other", **OPTIONS | change)
    with pytest.raises(ValueError, match=f"merge: .*other {message}"):
        merge([parts[0], tmp_path / "other"], tmp_path / "merged")


def test_a_damaged_part_is_named(tmp_path, parts):
    damaged = shutil.copytree(parts[1], tmp_path / "damaged")
    path = damaged / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged/shard-00001.safetensors must be as it was wri"):
        merge([parts[0], damaged], tmp_path / "merged")
    path.write_bytes((parts[1] / path.name).read_bytes())
    merge([parts[0], damaged], tmp_path / "merged")
    read_everything(tmp_path / "merged")


def test_nothing_to_merge(tmp_path):
    with pytest.raises(ValueError, match="merge: paths must name caches, got none"):
        merge([], tmp_path / "merged")
