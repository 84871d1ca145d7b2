"""Reading a cache: any batch, every mistake named, no flipped bit unnoticed."""

import json
import os
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from mkd_fast.losses.targets import SparseTeacher
from mkd_fast.teacher.cache import CachedBatch, Fingerprints, TeacherCache, token_hashes, verify
from mkd_fast.teacher.cache.manifest import _signed, read_manifest
from mkd_fast.teacher.capture import capture

ORIGIN = Fingerprints(teacher="t1", tokenizer="k1", chat_template="c1", dataset="d1")


@pytest.fixture(scope="module")
def captured(tmp_path_factory, causal, make_batches):
    """Top-k and two hidden layers of 15 samples in several shards."""
    folder = tmp_path_factory.mktemp("captured") / "cache"
    capture(
        causal,
        make_batches(),
        folder,
        keep="topk:4",
        temperatures=(1.0, 2.0),
        hidden_layers=(1, 2),
        fingerprints=ORIGIN,
        shard_bytes=2000,
    )
    assert len(list(folder.glob("shard-*"))) >= 2
    return folder


@pytest.fixture
def folder(captured, tmp_path):
    """A copy of that cache to damage."""
    return shutil.copytree(captured, tmp_path / "cache")


@pytest.fixture
def ids(make_batches):
    return torch.cat([batch.sample_ids for batch in make_batches()]).tolist()


def parts_of(batch: CachedBatch) -> list[torch.Tensor]:
    assert isinstance(batch.teacher, SparseTeacher)
    assert batch.hidden_mask is not None
    teacher = batch.teacher
    return [teacher.ids, teacher.logits, teacher.log_z, *batch.hidden, batch.hidden_mask]


def same(one: CachedBatch, two: CachedBatch) -> bool:
    return all(map(torch.equal, parts_of(one), parts_of(two)))


def test_any_order_size_and_repetition(folder, ids):
    cache = TeacherCache.open(folder)
    alone = {sample_id: cache.batch([sample_id]) for sample_id in ids}
    rng = random.Random(0)
    for size in (1, 2, 7, 30):
        chosen = rng.choices(ids, k=size)
        together = cache.batch(np.array(chosen))
        for row, sample_id in enumerate(chosen):
            length = parts_of(alone[sample_id])[0].shape[1]
            for part, expected in zip(parts_of(together), parts_of(alone[sample_id]), strict=True):
                assert torch.equal(part[row, :length], expected[0])
            assert not together.hidden_mask[row, length:].any()


def test_no_samples_make_an_empty_batch(folder):
    empty = TeacherCache.open(folder).batch([])
    assert empty.teacher.ids.shape == (0, 0, 4)
    assert empty.hidden_mask.shape == (0, 0)


def test_a_batch_moves_to_another_device(folder, ids):
    batch = TeacherCache.open(folder).batch(ids[:3])
    moved = batch.to("meta")
    assert [part.shape for part in parts_of(moved)] == [part.shape for part in parts_of(batch)]
    assert {part.device.type for part in parts_of(moved)} == {"meta"}


def test_some_tokens_alone(folder, ids):
    batch = TeacherCache.open(folder).batch(ids[:3])
    positions = torch.tensor([4, 0, batch.hidden_mask.numel() - 1])
    for part, whole in zip(parts_of(batch.at(positions)), parts_of(batch), strict=True):
        assert torch.equal(part, whole.flatten(0, 1)[positions])


def test_only_the_layers_that_are_asked_for(folder, ids):
    cache = TeacherCache.open(folder)
    both = cache.batch(ids[:3])
    assert torch.equal(cache.batch(ids[:3], hidden_layers=[2]).hidden[0], both.hidden[1])
    assert cache.batch(ids[:3], hidden_layers=()).hidden == ()
    with pytest.raises(ValueError, match=r"hidden_layers must be among .*\[1, 2\], got 0"):
        cache.batch(ids[:3], hidden_layers=[0])


def test_pickled_and_shared_among_threads_and_workers(folder, ids):
    cache = TeacherCache.open(folder)
    expected = cache.batch(ids)
    assert same(pickle.loads(pickle.dumps(cache)).batch(ids), expected)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(TeacherCache.open(folder).batch, [ids] * 20):
            assert same(got, expected)
    loader = DataLoader(ids, batch_size=len(ids), num_workers=1, collate_fn=cache.batch)
    assert all(same(got, expected) for got in loader)


def test_shards_need_no_file_descriptors(folder, ids):
    """A thousand of them are more than a process may have open by default."""
    cache = TeacherCache.open(folder)
    cache.batch(ids)
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [file for file in held if Path(file).name.startswith("shard-")]


def test_every_reader_of_safetensors_opens_a_shard(folder, make_batches):
    first = make_batches()[0]
    with safe_open(folder / "shard-00000.safetensors", framework="pt") as shard:
        assert shard.get_tensor("index.sample_ids")[:3].tolist() == first.sample_ids.tolist()
        offsets = shard.get_tensor("index.token_offsets")
        assert shard.get_tensor("hidden.2").dtype == torch.bfloat16
        hidden = shard.get_tensor("hidden.2")[offsets[1] : offsets[2]]
    got = TeacherCache.open(folder).batch(first.sample_ids[1:2])
    assert torch.equal(hidden, got.hidden[1][0])


def test_summary_counts_every_byte(folder, make_batches):
    summary = TeacherCache.open(folder).summary()
    assert (summary.keep, summary.hidden_layers) == (("topk:4",), (1, 2))
    assert summary.num_samples == 15
    assert summary.num_tokens == sum(int(b.attention_mask.sum()) for b in make_batches())
    assert summary.num_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert sum(summary.bytes_per_token.values()) * summary.num_tokens == pytest.approx(
        summary.num_bytes
    )
    assert summary.bytes_per_token["topk:4.entries"] == 16
    assert summary.bytes_per_token["topk:4.log_z"] == 8


def test_a_temperature_or_sample_that_is_not_there(folder, ids):
    cache = TeacherCache.open(folder)
    with pytest.raises(ValueError, match=r"log_z for, \[1.0, 2.0\], got 3.0"):
        cache.batch(ids, temperature=3.0)
    with pytest.raises(ValueError, match=r"among the 15 samples in .*, got 10001\."):
        cache.batch([ids[0], 10_001])
    with pytest.raises(ValueError, match=r"among the 15 samples in .*, got -5\."):
        cache.batch([-5])


def test_token_hashes_are_compared(folder, make_batches):
    cache = TeacherCache.open(folder)
    batch = make_batches()[1]
    hashes = token_hashes(batch.input_ids, batch.attention_mask)
    cache.batch(batch.sample_ids, hashes)
    hashes = hashes.copy()
    hashes[2] += 1
    sample_id, stored, found = int(batch.sample_ids[2]), int(hashes[2]) - 1, int(hashes[2])
    message = f"the tokens of sample {sample_id} must have the hash {stored:016x}, got {found:016x}"
    with pytest.raises(ValueError, match=message):
        cache.batch(batch.sample_ids, hashes)


@pytest.mark.parametrize("field", [field.name for field in fields(Fingerprints)])
def test_another_origin_is_named_with_both_fingerprints(folder, field):
    stored = TeacherCache.open(folder, expect=ORIGIN).fingerprints
    message = f"must be of {field} 'else', got {field} {getattr(stored, field)!r}"
    with pytest.raises(ValueError, match=rf"TeacherCache.open: .*{message}"):
        TeacherCache.open(folder, expect=replace(ORIGIN, **{field: "else"}))


def test_folders_that_are_not_caches(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got .*nowhere, which does not exist"):
        TeacherCache.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a cache must have a manifest.json"):
        TeacherCache.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ValueError, match=r"must be JSON of the format 'mkd_fast teacher cache'"):
        TeacherCache.open(tmp_path)


def edited(folder, **changes):
    """Replace fields of the manifest, and sign it again."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_bytes(_signed(content | changes))


def test_a_later_version_is_refused(folder):
    edited(folder, version=4)
    with pytest.raises(ValueError, match=r"the format's version must be 3, got 4 in .*manifest"):
        TeacherCache.open(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": [{"file": "../../etc/passwd"}]},
        {"tensors": [{"name": "logits", "dtype": "Q8", "width": 6, "axis": "token"}]},
        {"plan": None},
        {"shards": 3},
    ],
)
def test_a_manifest_of_other_fields_is_refused(folder, changes):
    edited(folder, **changes)
    with pytest.raises(ValueError, match=r"manifest.json .* fields are not those of the format"):
        TeacherCache.open(folder)


def missing(folder, one, two):
    one.unlink()


def truncated(folder, one, two):
    one.write_bytes(one.read_bytes()[:-1])


def lengthened(folder, one, two):
    one.write_bytes(one.read_bytes() + b"\0")


def swapped(folder, one, two):
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def duplicated(folder, one, two):
    shutil.copy(two, one)


@pytest.mark.parametrize("damage", [missing, truncated, lengthened, swapped, duplicated])
def test_a_damaged_shard_is_named_at_open_or_read(folder, ids, damage):
    damage(folder, folder / "shard-00000.safetensors", folder / "shard-00001.safetensors")
    with pytest.raises(ValueError, match=r"shard-0000.* must be as it was written, got a damaged"):
        TeacherCache.open(folder).batch(ids)
    assert verify(folder)[0].file == "shard-00000.safetensors"


def test_a_shard_that_is_not_listed_is_found(folder):
    shutil.copy(folder / "shard-00000.safetensors", folder / "shard-00099.safetensors")
    assert [damage.file for damage in verify(folder)] == ["shard-00099.safetensors"]


def test_a_flipped_record_is_named_and_the_others_are_served(folder, ids):
    path = folder / "shard-00000.safetensors"
    manifest = read_manifest(folder / "manifest.json")
    placed = manifest.layout(manifest.shards[0]).placed["hidden.2"]
    data = bytearray(path.read_bytes())
    data[placed.begin] ^= 16
    path.write_bytes(data)
    cache = TeacherCache.open(folder)
    with pytest.raises(ValueError, match=rf"hidden.2 of sample {ids[0]} does not match its check"):
        cache.batch(ids)
    assert len(cache.batch(ids[1:]).hidden) == 2
    assert len(cache.batch(ids, hidden_layers=[1]).hidden) == 1
