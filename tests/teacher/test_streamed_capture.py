"""A streamed teacher leaves the bytes that the same teacher leaves from memory."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mkd_fast.teacher import repair
from mkd_fast.teacher.capture import capture
from mkd_fast.teacher.streamed import StreamedTeacher

KEEP = ("hidden", "topk:4", "sampled:5", "logits")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path, causal) -> Path:
    causal.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("keep", [KEEP, "hidden"])
def test_the_same_bytes_as_from_memory(tmp_path, saved, causal, make_batches, keep):
    options = {"keep": keep, "hidden_layers": (0, 1, -1), "shard_bytes": 3000}
    whole = capture(causal, make_batches(), tmp_path / "memory", **options)
    with StreamedTeacher(saved, AutoModelForCausalLM, block_tokens=30) as teacher:
        streamed = capture(teacher, make_batches(), tmp_path / "streamed", **options)
    assert len(whole.manifest.shards) > 1
    assert streamed.fingerprints == whole.fingerprints
    assert contents(streamed.path) == contents(whole.path)


def test_what_memory_captured_a_stream_repairs(tmp_path, saved, causal, make_batches):
    cache = capture(causal, make_batches(), tmp_path / "cache", keep=KEEP, shard_bytes=3000)
    whole = contents(cache.path)
    (cache.path / "shard-00001.safetensors").write_bytes(b"")
    (cache.path / "head.safetensors").unlink()
    with StreamedTeacher(saved, AutoModelForCausalLM) as teacher:
        found = repair(cache.path, teacher, make_batches())
    assert [damage.file for damage in found] == ["head.safetensors", "shard-00001.safetensors"]
    assert contents(cache.path) == whole


def test_stopped_between_blocks_it_ends_the_same(tmp_path, saved, causal, make_batches):
    whole = capture(causal, make_batches(), tmp_path / "whole", keep="topk:4", shard_bytes=100)

    def stopped():
        yield from make_batches()[:4]
        raise KeyboardInterrupt

    options = {"keep": "topk:4", "shard_bytes": 100}
    with StreamedTeacher(saved, AutoModelForCausalLM, block_tokens=30) as teacher:
        with pytest.raises(KeyboardInterrupt):
            capture(teacher, stopped(), tmp_path / "cache", **options)
        assert list((tmp_path / "cache").glob("shard-*"))
        cache = capture(teacher, make_batches(), tmp_path / "cache", **options)
    assert contents(cache.path) == contents(whole.path)
    assert torch.equal(cache.batch([cache.sample_ids[0]]).teacher.ids,
                       whole.batch([cache.sample_ids[0]]).teacher.ids)  # fmt: skip
