"""``mkd-fast cache``: what a person reads about a cache, and exit codes a script can act on."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import tiny_job
import torch
from cli_call import assert_told, call
from transformers import LlamaConfig, LlamaForCausalLM

from mkd_fast.teacher import Fingerprints, capture
from mkd_fast.teacher.cache.manifest import MANIFEST, PLAN

KEEP = ("topk:4", "sampled:9", "hidden")


def batches():
    """Four batches of three samples; sample n has n % 5 + 1 tokens."""
    for first in range(0, 12, 3):
        sample_ids = torch.arange(first, first + 3)
        mask = torch.arange(5) <= sample_ids[:, None] % 5
        input_ids = (sample_ids[:, None] * 7 + torch.arange(5)) % 61
        yield {"input_ids": input_ids, "attention_mask": mask.long(), "sample_ids": sample_ids}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))


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


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(path):
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")


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


def test_info_of_a_capture_in_parts(captured, tmp_path):
    folder = tmp_path / "cache"
    for part in range(2):
        shutil.copytree(captured, folder / f"part-{part:05d}-of-00003")
    shard, last = sorted((folder / "part-00001-of-00003").glob("shard-*"))
    last.unlink()
    (shard.parent / MANIFEST).unlink()
    (folder / "part-00002-of-00003").mkdir()
    lines = lines_of(call("cache", "info", folder))
    assert lines[1][:2] == ["state", "unfinished;"]
    assert ["shards", "3"] in lines


def test_info_of_what_is_no_cache(tmp_path):
    assert_told(call("cache", "info", tmp_path), "a cache must have a manifest.json")
    for command in ("info", "verify"):
        assert_told(call("cache", command, tmp_path / "absent"), "absent, which does not exist")


def test_verify(folder):
    result = call("cache", "verify", folder)
    assert result.exit_code == 0
    assert result.stdout.endswith("every file is as it was written\n")
    assert re.search(r"verify (\d+)/\1", result.stdout)
    damage(folder / "shard-00001.safetensors")
    (folder / "head.safetensors").unlink()
    result = call("cache", "verify", folder)
    assert result.exit_code == 1
    _, head, shard = result.stdout.splitlines()
    assert head.startswith("head.safetensors: ")
    assert head.endswith("it is missing. Restore it from a copy, or run: mkd-fast cache repair")
    assert shard.startswith("shard-00001.safetensors: ")
    assert "does not match its checksum" in shard


def test_export(folder, tmp_path):
    result = call("cache", "export", folder, tmp_path / "cache.parquet")
    assert result.exit_code == 0, result.output
    assert "export 12/12" in result.stdout
    assert pyarrow.parquet.read_metadata(tmp_path / "cache.parquet").num_rows == 12
    assert_told(call("cache", "export", folder, tmp_path / "cache.csv"), "must end in .parquet or")


def test_repair_without_a_teacher(captured, folder):
    assert "every file is as it was written" in call("cache", "repair", folder).stdout
    damage(folder / "index.safetensors")
    result = call("cache", "repair", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("repaired index.safetensors: ")
    assert contents(folder) == contents(captured)
    damage(folder / "shard-00001.safetensors")
    assert_told(call("cache", "repair", folder), "shard-00001.safetensors", "teacher_model")


def test_repair_with_the_recipe_of_the_run(tmp_path):
    recipe = tiny_job.write_job(tmp_path)
    settings = {"capture__shard_megabytes": 1}
    assert call("capture", recipe, **settings).exit_code == 0
    folder = tmp_path / "run" / "cache"
    whole = contents(folder)
    damage(folder / "shard-00000.safetensors")
    assert call("cache", "verify", folder).exit_code == 1
    result = call("cache", "repair", folder, "--recipe", recipe, **settings)
    assert result.exit_code == 0, result.output
    assert "repaired shard-00000.safetensors: " in result.stdout
    assert contents(folder) == whole
    damage(folder / "shard-00000.safetensors")
    other = call(
        "cache", "repair", folder, "--recipe", recipe, data__max_length=4,
        run__folder=tmp_path / "other",
    )  # fmt: skip
    assert_told(other, "repair: ", "must be of teacher '", "got teacher '")


def test_merge(captured, tmp_path):
    halves = [list(batches())[:2], list(batches())[2:]]
    model = torch.nn.Linear(2, 2)
    model.forward = lambda input_ids, attention_mask: SimpleNamespace(logits=input_ids[:, :4] / 7)
    origin = Fingerprints(teacher="t")
    for number, half in enumerate(halves):
        capture(model, half, tmp_path / str(number), keep="logits", fingerprints=origin)
    result = call("cache", "merge", tmp_path / "both", tmp_path / "0", tmp_path / "1")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"12 samples in {tmp_path / 'both'}\n"
    assert call("cache", "verify", tmp_path / "both").exit_code == 0
    again = call("cache", "merge", tmp_path / "twice", tmp_path / "0", tmp_path / "0")
    assert_told(again, "merge: ")


def test_import(tmp_path):
    rows = [
        {"sample_id": number, "token_ids": [1, 2], "logprobs": [None, {"2": {"logprob": -0.5}}]}
        for number in range(5)
    ]
    for file in (rows[:2], rows[2:]):
        lines = "".join(json.dumps(row) + "\n" for row in file)
        (tmp_path / f"{len(file)}.jsonl").write_text(lines)
    files = [tmp_path / "2.jsonl", tmp_path / "3.jsonl"]
    options = ["--vocab-size", 9, "--top-k", 4, "--teacher", "somebody/model@1"]
    result = call("cache", "import", *files, tmp_path / "cache", *options)
    assert result.exit_code == 0, result.output
    assert "import 5/5" in result.stdout
    lines = lines_of(call("cache", "info", tmp_path / "cache"))
    for row in (["kept", "topk:4"], ["samples", "5"], ["teacher", "somebody/model@1"]):
        assert row in lines
    assert call("cache", "verify", tmp_path / "cache").exit_code == 0
    few = call("cache", "import", *files, tmp_path / "few", "--vocab-size", 2)
    assert_told(few, "keep must not select more than the 2 columns")
