"""Cutting the vocabulary changes nothing for text inside it, wherever the padding id goes."""

import re

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertLMHeadModel

from mkd_fast.student import TokenMap, copy_init

FAMILIES = (
    "Bert",
    "BertWithPadOne",
    "Roberta",
    "XLMRoberta",
    "XLMRobertaWithPadNine",
    "DistilBert",
)
WORDS = [11, 12, 17, 23, 30, 39]
KEPT = {  # bos 0, eos 2; pad is 0, 1 or 9 by family
    "in order": [0, 1, 2, 9, *WORDS],
    "padding moves up": [*WORDS, 2, 1, 9, 0],
    "padding moves down": [9, 1, 0, 2, *WORDS],
}


def batch(keep, pad, length):
    """Two texts over the kept ids, the second padded, in the teacher's ids and in the student's."""
    torch.manual_seed(2)
    input_ids = torch.tensor(WORDS)[torch.randint(len(WORDS), (2, length))]
    input_ids[1, length // 2 :] = pad
    new_ids = TokenMap.of(keep, 40).old_to_new[input_ids]
    mask = (input_ids != pad).long()
    arguments = {"attention_mask": mask, "output_hidden_states": True}
    return {"input_ids": input_ids, **arguments}, {"input_ids": new_ids, **arguments}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_teachers_bit_for_bit(make_teacher, family, head, keep):
    teacher = make_teacher(family, head)
    pad = teacher.config.pad_token_id
    student = copy_init(teacher, num_layers=5, keep_token_ids=keep)
    assert student.config.vocab_size == len(keep)
    assert student.config.pad_token_id == keep.index(pad)
    assert student.get_input_embeddings().padding_idx == keep.index(pad)
    offset = 1 + pad if "Roberta" in family else 0
    for length in (7, 24 - offset):  # the second is the longest text that the teacher takes
        old, new = batch(keep, pad, length)
        with torch.no_grad():
            wanted, got = teacher(**old), student(**new)
        for one, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_keeps_the_kept_columns(make_teacher, family, keep, tied):
    teacher = make_teacher(family, "ForMaskedLM", tie_word_embeddings=tied)
    student = copy_init(teacher, num_layers=5, keep_token_ids=keep)
    old, new = batch(keep, teacher.config.pad_token_id, 7)
    head = teacher.get_output_embeddings()
    seen = []
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        wanted, got = teacher(**old), student(**new)
        handle.remove()
        columns = F.linear(seen[0], head.weight[keep], head.bias[keep])
    for one, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(got.logits, columns)


def test_ids_in_the_generation_config_are_renumbered():
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, is_decoder=True, pad_token_id=1, bos_token_id=0, eos_token_id=[2, 9],
    )  # fmt: skip
    teacher = BertLMHeadModel(config)
    teacher.generation_config.max_new_tokens = 7
    student = copy_init(teacher, keep_token_ids=[9, 1, 0, 2, 30])
    for renumbered in (student.config, student.generation_config):
        assert renumbered.pad_token_id == 1
        assert renumbered.bos_token_id == 2
        assert renumbered.eos_token_id == [3, 0]
    assert student.generation_config.max_new_tokens == 7
    assert teacher.generation_config.eos_token_id == [2, 9]


def test_the_map_goes_both_ways():
    token_map = TokenMap.of(torch.tensor([4, 0, 2]), 6)
    assert token_map.keep_token_ids == (4, 0, 2)
    assert token_map.old_to_new.tolist() == [1, -1, 2, -1, 0, -1]
    assert token_map.rows.tolist() == [4, 0, 2]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            [],
            "TokenMap.of: keep_token_ids must be distinct and lie in [0, 40), the full ",
        ),
        ([0, 1, 2, 40], "the full vocabulary, got [40]."),
        ([0, 1, 2, -3], "got [-3]."),
        ([0, 1, 2, 5, 5], "got [5] more than once."),
        ([0, 2, 5], "copy_init: keep_token_ids must contain the special tokens, got none of "),
    ],
)
def test_ids_that_cannot_be_kept_are_named(make_teacher, keep, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        copy_init(make_teacher("XLMRoberta"), keep_token_ids=keep)
