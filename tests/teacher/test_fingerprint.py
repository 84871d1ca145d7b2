"""Fingerprints change with what they are of, and with nothing else."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from mkd_fast.data.batches import collate
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.teacher.cache import (
    fingerprint_chat_template,
    fingerprint_model,
    fingerprint_tokenizer,
    token_hashes,
)


def test_a_model_and_its_folder_have_one_fingerprint(tmp_path, classifier, causal):
    tied = BertForMaskedLM(classifier.config)
    for number, model in enumerate((classifier, causal, tied)):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        assert fingerprint_model(folder) == fingerprint_model(model)
        assert fingerprint_model(str(folder)) == fingerprint_model(
            type(model).from_pretrained(folder)
        )


def test_a_model_changes_with_weights_names_and_config(classifier):
    original = fingerprint_model(classifier)
    nudged = copy.deepcopy(classifier)
    weight = nudged.classifier.bias
    weight.data[3] = torch.nextafter(weight.data[3], torch.tensor(9.0))
    configured = copy.deepcopy(classifier)
    configured.config.hidden_act = "relu"
    halved = copy.deepcopy(classifier).bfloat16()
    swapped = copy.deepcopy(classifier)
    one, two = (layer.attention.self for layer in swapped.bert.encoder.layer)
    one.query, two.query = two.query, one.query
    models = (nudged, configured, halved, swapped)
    assert len({original, *map(fingerprint_model, models)}) == 5
    assert fingerprint_model(copy.deepcopy(classifier)) == original


def test_a_folder_without_weights_has_no_fingerprint(tmp_path, classifier):
    classifier.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have its weights as .safetensors, got .* without"):
        fingerprint_model(tmp_path)


def words(*pieces: str, **options: str) -> PreTrainedTokenizerFast:
    model = WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[0])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **options)


def test_a_tokenizer_changes_with_its_pieces_and_special_tokens():
    original = fingerprint_tokenizer(words("?", "a", "b"))
    assert fingerprint_tokenizer(words("?", "a", "b")) == original
    others = [words("?", "b", "a"), words("?", "a"), words("?", "a", "b", pad_token="b")]
    assert len({original, *map(fingerprint_tokenizer, others)}) == 4


def test_padding_and_truncation_are_settings_of_a_call():
    tokenizer = words("?", "a", "b", pad_token="b")
    before = fingerprint_tokenizer(tokenizer)
    tokenizer(["a", "a a"], padding=True, truncation=True, max_length=1)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert fingerprint_tokenizer(tokenizer) == before


def test_a_chat_template_has_a_fingerprint_where_there_is_one():
    tokenizer = words("?", "a")
    assert fingerprint_chat_template(tokenizer) is None
    found = set()
    for template in ("{{ messages }}", "{{ messages[0] }}", {"default": "{{ messages }}"}):
        tokenizer.chat_template = template
        found.add(fingerprint_chat_template(tokenizer))
    assert len(found) == 3
    assert all(len(digits) == 64 for digits in found)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_token_hashes_know_tokens_and_not_padding(dtype):
    ids = torch.tensor([[5, 6, 7], [5, 6, 0], [0, 5, 6], [6, 5, 0]], dtype=dtype)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 1, 0]])
    hashes = token_hashes(ids, mask)
    assert hashes.dtype == np.uint64
    assert hashes[1] == hashes[2]
    assert len(set(hashes.tolist())) == 3
    digest = hashlib.blake2b(np.array([5, 6], "<i4").tobytes(), digest_size=8).digest()
    assert int(hashes[1]) == int.from_bytes(digest, "little")


def test_token_hashes_are_those_of_tokenised_text():
    text = TokenisedText(
        np.array([5, 6, 7, 5, 6], np.int32), np.array([0, 3, 5]), np.zeros(2, np.int64), pad_id=1
    )
    batch = collate(text, [1, 0])
    hashes = token_hashes(batch.input_ids, batch.attention_mask)
    assert hashes.tolist() == [text.token_hash(1), text.token_hash(0)]
