"""``mkd-fast cache``: what a person reads about a cache, and exit codes a script can act on."""

import os
import re
import shutil

import pyarrow.parquet
import pytest
import torch
from cli_call import assert_told, call
from transformers import LlamaConfig, LlamaForCausalLM

from mkd_fast.teacher import capture
from mkd_fast.teacher.cache.manifest import PLAN

KEEP = ("topk:4", "sampled:9", "hidden")


def batches():
    """Four batches of three samples; sample n has n % 5 + 1 tokens."""
    for first in range(0, 12, 3):
        sample_ids = torch.arange(first, first + 3)
        mask = torch.arange(5) <= sample_ids[:, None] % 5
        input_ids = (sample_ids[:, None] * 7 + torch.arange(5)) % 61
        yield {"input_ids": input_ids, "attention_mask": mask.long(), "sample_ids": sample_ids}


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    folder = tmp_path_factory.mktemp("captured") / "cache"
    capture(
        LlamaForCausalLM(config),
        batches(),
        folder,
        keep=KEEP,
        temperatures=(1.0, 2.0),
        hidden_layers=(1,),
        hidden_dtype="int8",
        shard_bytes=2000,
    )
    return folder


@pytest.fixture
def folder(captured, tmp_path):
    """A copy to damage."""
    return shutil.copytree(captured, tmp_path / "cache")


def lines_of(result):
    """The rows of what was printed, without their indentation, as words."""
    assert result.exit_code == 0, (result.output, result.exception)
    return [line.split() for line in result.stdout.splitlines()]


def test_info(folder):
    lines = lines_of(call("cache", "info", folder))
    for row in (
        "state finished",
        "kept topk:4, sampled:9, hidden",
        "hidden layers 1 in int8",
        "temperatures 1.0 2.0",
        "samples 12",
        "tokens 33",
        "columns 61",
        "softcap none",
        "precision float32",
        "tokenizer not recorded",
        "topk:4.entries 16.00",
        "topk:4.log_z 8.00",
        "hidden.1.scale 4.00",
    ):
        assert row.split() in lines, row
    head = (folder / "head.safetensors").stat().st_size
    assert ["of", "the", "head", f"{head:,}"] in lines
    parts = [float(line[-1]) for line in lines[lines.index(["bytes", "per", "token"]) + 1 :]]
    others = sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")
    assert parts[-1] == pytest.approx((others - head) / 33, abs=0.01)
    assert parts[-1] == pytest.approx(sum(parts[:-1]), abs=0.01 * len(parts))


def test_info_of_a_capture_that_was_stopped(folder):
    shards = sorted(folder.glob("shard-*"))
    assert len(shards) == 2
    for path in folder.iterdir():
        if path.name != PLAN and path != shards[0]:
            path.unlink()
    lines = lines_of(call("cache", "info", folder))
    assert ["state", "unfinished;", "capture", "goes", "on", "from", "here"] in lines
    assert ["shards", "1"] in lines
    shards[0].write_bytes(b"cut")
    assert ["samples", "0"] in lines_of(call("cache", "info", folder))


def test_info_of_what_is_no_cache(tmp_path):
    assert_told(call("cache", "info", tmp_path), "a cache must have a manifest.json")
    for command in ("info", "verify"):
        assert_told(call("cache", command, tmp_path / "absent"), "absent, which does not exist")


def test_verify(folder):
    result = call("cache", "verify", folder)
    assert result.exit_code == 0
    assert result.stdout.endswith("every file is as it was written\n")
    assert re.search(r"verify (\d+)/\1", result.stdout)
    with (folder / "shard-00001.safetensors").open("r+b") as shard:
        shard.seek(-3, os.SEEK_END)
        shard.write(b"x")
    (folder / "head.safetensors").unlink()
    result = call("cache", "verify", folder)
    assert result.exit_code == 1
    _, head, shard = result.stdout.splitlines()
    assert head.startswith("head.safetensors: ")
    assert head.endswith(
        "it is missing. Restore it from a copy, or capture again with resume=False."
    )
    assert shard.startswith("shard-00001.safetensors: ")
    assert "does not match its checksum" in shard


def test_export(folder, tmp_path):
    result = call("cache", "export", folder, tmp_path / "cache.parquet")
    assert result.exit_code == 0, result.output
    assert "export 12/12" in result.stdout
    assert pyarrow.parquet.read_metadata(tmp_path / "cache.parquet").num_rows == 12
    assert_told(call("cache", "export", folder, tmp_path / "cache.csv"), "must end in .parquet or")
