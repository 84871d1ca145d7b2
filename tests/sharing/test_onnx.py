"""Exported graphs say what the model says, for any batch, or are not kept."""

import onnxruntime
import pytest
import torch
from cli_call import assert_told, call
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from mkd_fast.sharing import onnx

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "tagger": lambda: BertForTokenClassification(BertConfig(**SIZES, num_labels=5)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)),
}


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    monkeypatch.setattr(onnx, "_MEASURED_SECONDS", 0.0)


def padded(num_samples, num_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 61, (num_samples, num_tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, max(1, num_tokens // 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_shapes_than_the_traced_one(family, tmp_path):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    model.config.use_cache = False
    module = onnx._Logits(model)
    graph = tmp_path / onnx.FILE
    onnx._write_graph(module, padded(2, 7, 0), graph)
    batches = [padded(1, 1, 1), padded(3, 20, 2), padded(5, 33, 3)]
    exported = onnx._judged(module, batches, graph, tmp_path)
    assert exported.shapes == ((1, 1), (3, 20), (5, 33))
    assert exported.size_bytes > 0
    with torch.no_grad():  # a graph of other weights is noticed
        list(model.float().parameters())[-1].add_(0.1)
    with pytest.raises(ValueError, match="onnxruntime's outputs must be within"):
        onnx._judged(module, batches, graph, tmp_path)


def test_the_folder_is_usable_by_itself(finished, tmp_path):
    out = tmp_path / "exported"
    result = call("export", finished, "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "of torch's time" in result.stdout
    assert not (out / "model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(out)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    rows = tokenizer(["darken kitchen lamp", "off"], padding=True, return_tensors="np")
    feed = {name: rows[name] for name in ("input_ids", "attention_mask")}
    assert session.run(None, feed)[0].shape == (2, 3)
    assert_told(call("export", finished, "--out", out), "must be new or empty")


def test_what_differs_is_not_kept(finished, tmp_path, monkeypatch):
    def broken(module, example, path, write=onnx._write_graph):
        with torch.no_grad():
            saved = [p.clone() for p in module.parameters()]
            for p in module.parameters():
                p.mul_(1.01)
            write(module, example, path)
            for p, was in zip(module.parameters(), saved, strict=True):
                p.copy_(was)

    monkeypatch.setattr(onnx, "_write_graph", broken)
    out = tmp_path / "exported"
    assert_told(call("export", finished, "--out", out), "must be within", "No file was kept")
    assert list(out.iterdir()) == []


def test_a_missing_package_is_named(finished, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda package: None)
    assert_told(call("export", finished), "pip install 'mkd_fast[onnx]'")


def test_an_unfinished_run_is_refused(begun):
    assert_told(call("export", begun), "must be a finished run")
