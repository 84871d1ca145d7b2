import errno
import re

import numpy as np
import pytest
import tiny_job
import torch
from file_limit import file_size_limit
from safetensors import SafetensorError
from transformers import LlamaConfig, LlamaForSequenceClassification
from transformers.utils import logging as transformers_logging

from mkd_fast.checks.wording import is_ours
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.train import models

LABELS = ("dim", "off", "on")


@pytest.fixture
def encoder(tmp_path):
    return tiny_job.write_encoder(tmp_path / "encoder")


@pytest.fixture
def classifier(tmp_path, encoder):
    folder = tmp_path / "classifier"
    model = models.load_classifier(str(encoder), LABELS, seed=3)
    models.save_folder(folder, model, models.load_tokenizer(str(encoder)))
    return folder


def test_an_encoder_gets_a_head_that_the_seed_decides(encoder, capfd):
    first, again, other = (models.load_classifier(str(encoder), LABELS, seed=s) for s in (1, 1, 2))
    assert first.config.id2label == dict(enumerate(LABELS))
    assert first.config.label2id == {label: n for n, label in enumerate(LABELS)}
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert capfd.readouterr() == ("", "")  # a new head is what was asked for


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
def test_a_head_that_knows_nothing_says_how_common_labels_are(encoder, kind):
    model = models.load_classifier(str(encoder), LABELS, auto_class=f"AutoModelFor{kind}")
    before = {name: p.clone() for name, p in model.named_parameters() if name != "classifier.bias"}
    labels = np.array([0, 0, NO_LABEL, 2, 0, NO_LABEL, 0])
    models.start_at_label_shares(model, labels)
    shares = torch.tensor([5, 1, 2]) / 8  # one is added to each count: none is impossible
    torch.testing.assert_close(model.classifier.bias.exp(), shares)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_head_without_a_bias_stays_as_it_is():
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=8,  # as wide as its norms
    )
    model = LlamaForSequenceClassification(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    models.start_at_label_shares(model, np.array([0, 0, 1]))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_transformers_speaks_as_before(encoder):
    before = transformers_logging.get_verbosity()
    models.load_classifier(str(encoder), LABELS)
    assert transformers_logging.get_verbosity() == before


def test_weights_are_loaded_in_float32(tmp_path, encoder):
    model = models.load_classifier(str(encoder), LABELS)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    loaded = models.load_classifier(str(tmp_path / "half"), LABELS)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_saved_folder_is_read_back(encoder, classifier):
    model = models.load_classifier(str(encoder), LABELS, seed=3)
    loaded = models.load_classifier(str(classifier), LABELS, seed=4)
    assert all(torch.equal(p, loaded.state_dict()[n]) for n, p in model.state_dict().items())
    assert models.labels_of(str(classifier)) == LABELS
    skeleton = models.skeleton_of(str(classifier))
    assert len(skeleton.bert.encoder.layer) == 4
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    text = "darken kitchen lamp"
    same = models.load_tokenizer(str(encoder))(text) == models.load_tokenizer(str(classifier))(text)
    assert same


def unknown_type(folder):
    (folder / "config.json").write_text("{}")


def config_not_json(folder):
    (folder / "config.json").write_text("{")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def head_of_another_task(folder):
    model = models.load_classifier(str(folder), ("only", "two"))
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "damage", [unknown_type, config_not_json, no_weights, truncated_weights, head_of_another_task]
)
def test_a_model_that_does_not_load_is_named(encoder, damage):
    damage(encoder)
    message = f"{encoder} must be a model that transformers can load, got "
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        models.load_classifier(str(encoder), LABELS)
    assert is_ours(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [models.labels_of, models.skeleton_of, models.load_tokenizer])
def test_a_folder_without_a_model_is_named(tmp_path, read):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} must be a model that")) as caught:
        read(str(tmp_path))
    assert is_ours(caught.value)


def test_an_error_without_words_is_named_by_its_kind(tmp_path):
    with (
        pytest.raises(ValueError, match="can load, got OSError"),
        models.told_by_name("x"),
    ):
        raise OSError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("disk is full"),
        Exception("No space left on device (os error 28)"),  # tokenizers
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_folder_that_cannot_be_written_leaves_none(tmp_path, encoder, monkeypatch, error):
    model = models.load_classifier(str(encoder), LABELS)
    tokenizer = models.load_tokenizer(str(encoder))

    def fill_up(folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(model, "save_pretrained", fill_up)
    with pytest.raises(OSError, match="must be a folder that can be written, got") as caught:
        models.save_folder(tmp_path / "student", model, tokenizer)
    assert caught.value.errno == getattr(error, "errno", None)
    assert [child.name for child in tmp_path.iterdir()] == ["encoder"]


def test_a_bug_while_saving_stays_one(tmp_path, encoder, monkeypatch):
    model = models.load_classifier(str(encoder), LABELS)
    monkeypatch.setattr(model, "save_pretrained", lambda folder, **_: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        models.save_folder(tmp_path / "student", model, models.load_tokenizer(str(encoder)))
    assert [child.name for child in tmp_path.iterdir()] == ["encoder"]


def test_tokenizers_tells_of_a_full_disk_in_words_of_rust(tmp_path):
    """What ``save_folder`` goes by; were it to change, this test says so."""
    with file_size_limit(1000), pytest.raises(Exception, match=r"\(os error \d+\)") as caught:
        tiny_job.tokenizer().save_pretrained(tmp_path)
    assert type(caught.value) is Exception


def test_what_a_killed_save_left_is_replaced(tmp_path, encoder):
    partial = tmp_path / ".student.part"
    partial.mkdir()
    (partial / "stray.bin").write_bytes(b"half")
    model = models.load_classifier(str(encoder), LABELS)
    models.save_folder(tmp_path / "student", model, models.load_tokenizer(str(encoder)))
    assert not partial.exists()
    assert not (tmp_path / "student" / "stray.bin").exists()
