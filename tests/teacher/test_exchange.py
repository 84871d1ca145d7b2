"""Exported files: every record, as other tools read it, in bounded memory, whole or not at all."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, Sequence, load_dataset
from file_limit import file_size_limit

from mkd_fast.losses.targets import PackedSampledTeacher
from mkd_fast.teacher import exchange
from mkd_fast.teacher.cache import TeacherCache
from mkd_fast.teacher.capture import capture
from mkd_fast.teacher.exchange import export

KEEP = ("topk:4", "sampled:9", "hidden", "logits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory, causal, make_batches):
    return capture(
        causal,
        make_batches(),
        tmp_path_factory.mktemp("cache") / "cache",
        keep=KEEP,
        temperatures=(1.0, 0.5),
        hidden_layers=(0, 2),
        hidden_dtype="int8",
        logits_dtype="float16",
        last_hidden_dtype="bfloat16",
        shard_bytes=9000,
    )


def read(path, tmp_path):
    """As ``datasets`` reads it."""
    if path.suffix == ".arrow":
        return Dataset.from_file(str(path))
    home = str(tmp_path / "datasets")
    return load_dataset("parquet", data_files=str(path), split="train", cache_dir=home)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("group_bytes", [1, 5000, 1 << 25])
def test_every_record_as_datasets_reads_it(
    tmp_path, monkeypatch, make_batches, cache, suffix, group_bytes
):
    monkeypatch.setattr(exchange, "_GROUP_BYTES", group_bytes)
    assert len(cache.manifest.shards) > 1
    export(cache, tmp_path / f"cache{suffix}")
    rows = read(tmp_path / f"cache{suffix}", tmp_path).with_format("numpy")
    captured = torch.cat([batch.sample_ids for batch in make_batches()])
    assert rows["sample_id"][:].tolist() == captured.tolist()
    for row in rows:
        sample = [row["sample_id"]]
        cache.batch(sample, np.array([row["token_hash"]], np.uint64), keep="logits")
        got = {kind: cache.batch(sample, keep=kind).teacher for kind in KEEP}
        topk = {t: cache.batch(sample, keep="topk:4", temperature=t).teacher for t in (1.0, 0.5)}
        assert isinstance(got["sampled:9"], PackedSampledTeacher)
        drawn = got["sampled:9"].unpacked()
        ours = {
            "topk_4_ids": topk[1.0].ids,
            "topk_4_logits": topk[1.0].logits,
            "topk_4_log_z_t1": topk[1.0].log_z,
            "topk_4_log_z_t0.5": topk[0.5].log_z,
            "hidden_last": got["hidden"].hidden.float(),
            "logits": got["logits"],
        }
        for layer, states in zip((0, 2), cache.batch(sample, keep="logits").hidden, strict=True):
            ours |= {f"hidden_{layer}": states.values, f"hidden_{layer}_scale": states.scale}
        for name, tensor in ours.items():
            assert np.array_equal(np.stack(row[name]), tensor[0].numpy()), name
        for column, tensor in (("ids", drawn.ids), ("weights", drawn.weights)):
            for one, two, ids in zip(
                row[f"sampled_9_{column}"], tensor[0], drawn.ids[0], strict=True
            ):
                assert np.array_equal(one, two[ids >= 0].numpy())
        assert row["num_tokens"] == len(row["logits"])
        assert len(ours) + 2 + 3 == len(row)


def test_what_was_said_about_the_whole_sample(tmp_path, classifier, make_batches):
    keep = ("logits", "topk:2", "sampled:3")
    cache = capture(classifier, make_batches(), tmp_path / "cache", keep=keep)
    export(cache, tmp_path / "cache.parquet")
    rows = read(tmp_path / "cache.parquet", tmp_path)
    assert rows.features["logits"] == Sequence(rows.features["logits"].feature, length=5)
    for row in rows.with_format("torch"):
        for kind in keep[:2]:
            teacher = cache.batch([row["sample_id"]], keep=kind).teacher
            logits = teacher if kind == "logits" else teacher.logits
            assert torch.equal(
                row[f"{kind.replace(':', '_')}{'_logits' * (kind != 'logits')}"], logits[0]
            )
        assert row["topk_2_log_z_t1"].ndim == 0
        assert row["sampled_3_weights"].sum() == pytest.approx(1)


def test_types_are_those_of_the_cache_and_the_plan_goes_with_them(tmp_path, cache):
    export(cache, tmp_path / "cache.parquet")
    schema = pyarrow.parquet.read_schema(tmp_path / "cache.parquet")
    types = {field.name: str(field.type) for field in schema}
    tokens = "list<element: fixed_size_list<element: {}>[{}]>"
    for name, width, number in (
        ("topk_4_ids", 4, "int32"),
        ("topk_4_logits", 4, "float"),
        ("hidden_last", 16, "float"),
        ("hidden_2", 16, "int8"),
        ("logits", 61, "halffloat"),
    ):
        assert types[name] == tokens.format(number, width)
    about = json.loads(schema.metadata[b"mkd_fast"])
    assert about["plan"]["fingerprints"]["teacher"] == cache.fingerprints.teacher
    assert about["outputs"]["num_columns"] == 61


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_it_is_whole_or_not_there(tmp_path, cache, suffix):
    path = tmp_path / "out" / f"cache{suffix}"
    with pytest.raises(OSError, match=r"out must be a folder that can be written, got .*No such"):
        export(cache, path)
    path.parent.mkdir()
    with file_size_limit(2000), pytest.raises(OSError, match=r"out must be .* too large"):
        export(cache, path)
    assert list(path.parent.iterdir()) == []


def test_other_suffixes(tmp_path, cache):
    with pytest.raises(ValueError, match=r"must end in .parquet or .arrow, got .*cache.csv"):
        export(cache, tmp_path / "cache.csv")


def test_a_damaged_record_is_named(tmp_path, cache, causal, make_batches):
    small = capture(causal, make_batches(1), tmp_path / "cache", keep="logits")
    shard = tmp_path / "cache" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"logits of sample \d+ does not match its checksum"):
        export(TeacherCache.open(small.path), tmp_path / "cache.parquet")
    assert not (tmp_path / "cache.parquet").exists()
