"""Shards of any ragged records come back as they were; any other bytes are refused."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mkd_fast.teacher.cache import Fingerprints, TeacherCache, verify
from mkd_fast.teacher.cache.format import ShardLayout, TensorSpec, layout_in_header
from mkd_fast.teacher.cache.manifest import Manifest, Outputs, Plan, read_manifest
from mkd_fast.teacher.cache.shard import open_unlisted_shard
from mkd_fast.teacher.cache.writer import Records, open_writer

SPECS = (
    TensorSpec("hidden.3", "BF16", 3, "token"),
    TensorSpec("logits", "F32", 2, "sample"),
)
PLAN = Plan(
    keep=("logits",),
    vocab_size=None,
    logits_dtype="float32",
    last_hidden_dtype=None,
    temperatures=(),
    proposal_exponent=1.0,
    seed=0,
    hidden_layers=(3,),
    hidden_dtype="bfloat16",
    shard_bytes=100,
    fingerprints=Fingerprints(),
)
OUTPUTS = Outputs(num_columns=2)


def records_of(first_id: int, lengths: list[int]) -> Records:
    num_samples, num_tokens = len(lengths), sum(lengths)
    ids = np.arange(first_id, first_id + num_samples)
    hidden = np.arange(3 * num_tokens, dtype=np.uint16).reshape(-1, 3) + first_id
    logits = np.arange(2 * num_samples, dtype=np.float32).reshape(-1, 2) - first_id
    return Records(
        ids,
        ids.astype(np.uint64),
        {"token": np.array(lengths, np.int64)},
        {"hidden.3": hidden.astype(np.uint16), "logits": logits},
    )


def write(folder: Path, batches: list[list[int]]) -> list[Records]:
    written = []
    with open_writer(folder, PLAN, resume=True) as writer:
        writer.begin(OUTPUTS, SPECS)
        for number, lengths in enumerate(batches):
            written.append(records_of(1000 * number, lengths))
            assert not writer.skip(written[-1].sample_ids, written[-1].token_hashes)
            writer.add(written[-1])
        writer.finish()
    return written


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=6))
def test_ragged_records_come_back(batches):
    with tempfile.TemporaryDirectory() as folder:
        written = write(Path(folder), batches)
        cache = TeacherCache.open(folder)
        assert verify(folder) == ()
        for records in reversed(written):
            got = cache.batch(records.sample_ids)
            assert np.array_equal(got.teacher.numpy(), records.tensors["logits"])
            assert np.array_equal(got.hidden_mask.sum(1), records.num_rows["token"])
            bits = got.hidden[0][got.hidden_mask].view(torch.int16).numpy().view(np.uint16)
            assert np.array_equal(bits, records.tensors["hidden.3"])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "cache"
    write(folder, [[2, 1]])
    return folder


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_for_a_manifest_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"manifest"):
            read_manifest(path)
        assert [damage.file for damage in verify(folder)] == ["manifest.json"]


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 700), junk=st.binary(min_size=1, max_size=40))
def test_any_bytes_in_a_shard_are_refused_on_resume(small, position, junk):
    """A shard that no manifest describes yet is believed by no number of its own."""
    whole = (small / "shard-00000.safetensors").read_bytes()
    manifest = read_manifest(small / "manifest.json")
    changed = whole[:position] + junk + whole[position + len(junk) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        path.write_bytes(changed)
        if changed == whole:
            open_unlisted_shard(path, SPECS, manifest.digest).require_all_records()
            return
        with pytest.raises(ValueError, match=r"shard.safetensors must be as it was written"):
            open_unlisted_shard(path, SPECS, manifest.digest).require_all_records()


def test_a_header_claims_no_more_than_its_counts():
    layout = ShardLayout(SPECS, (2, 3), "digest", 5)
    header = layout.header[8:]
    assert layout_in_header(header, SPECS, "digest") == layout
    for claim in (
        b"[]",
        b"{",
        b"null",
        header.replace(b'"rows":"2 3"', b'"rows":"2 -3"'),
        b"[" * 9000,
    ):
        assert layout_in_header(claim, SPECS, "digest") is None


def test_tensors_lie_aligned_and_without_gaps():
    specs = (*SPECS, TensorSpec("topk.ids", "I32", 3, "token"))
    placed = list(ShardLayout(specs, (3, 5), "digest", 0).placed.values())
    for before, after in itertools.pairwise(placed):
        assert before.end == after.begin
    assert all(
        at.begin % {"BF16": 2, "F32": 4, "I32": 4, "U32": 4}.get(at.dtype, 8) == 0 for at in placed
    )


def test_the_manifest_is_a_function_of_its_content(small):
    manifest = read_manifest(small / "manifest.json")
    assert manifest.to_bytes() == (small / "manifest.json").read_bytes()
    assert manifest.digest == Manifest.of_capture(PLAN, OUTPUTS, SPECS).digest
    assert Manifest.of_capture(PLAN, OUTPUTS, SPECS[:1]).digest != manifest.digest
