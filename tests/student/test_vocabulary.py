"""Cutting the vocabulary changes nothing for text inside it, wherever the padding id goes."""

import re

import pytest
import student_families as families
import torch
from safetensors.torch import save
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from mkd_fast import LossSpec, SparseTeacher
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


LANGUAGE_MODELS = [case for case in families.CASES if case[1] in ("masked", "causal")]
KEEP = [30, 2, 7, 1, 39, 0, 12]  # the special ones of all families, and some


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "head"), LANGUAGE_MODELS)
def test_a_language_model_keeps_the_kept_columns(family, head, tied, tmp_path):
    """Bit for bit those of the teacher with a head of these rows; and so when loaded again."""
    teacher = families.make(family, head, tie_word_embeddings=tied)
    words, to_logits = teacher.get_input_embeddings(), teacher.get_output_embeddings()
    assert (words.weight is to_logits.weight) is tied
    student = copy_init(teacher, num_layers=families.NUM_LAYERS, keep_token_ids=KEEP)
    student.save_pretrained(tmp_path)

    to_logits.weight = nn.Parameter(to_logits.weight.detach()[KEEP])
    if to_logits.bias is not None:
        to_logits.bias = nn.Parameter(to_logits.bias.detach()[KEEP])
    old = torch.tensor(KEEP)[torch.randint(len(KEEP), (2, 9))]
    old[old == teacher.config.pad_token_id] = 39
    mask = (torch.arange(9) < torch.tensor([[9], [6]])).long()
    wanted = families.outputs(teacher, input_ids=old, attention_mask=mask)
    new = TokenMap.of(KEEP, families.VOCAB_SIZE).new_ids(old)
    for found in (student, type(student).from_pretrained(tmp_path)):
        for one, other in zip(
            families.outputs(found, input_ids=new, attention_mask=mask), wanted, strict=True
        ):
            assert torch.equal(one, other)
        ours = found.get_input_embeddings().weight, found.get_output_embeddings().weight
        assert (ours[0] is ours[1]) is tied
        assert ours[0].shape == ours[1].shape == (len(KEEP), 16)
    assert not any(families.VOCAB_SIZE in tensor.shape for tensor in student.state_dict().values())


def test_ids_in_the_generation_config_are_renumbered():
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, is_decoder=True, pad_token_id=1, bos_token_id=0, eos_token_id=[2, 9],
    )  # fmt: skip
    teacher = BertLMHeadModel(config)
    teacher.generation_config.max_new_tokens = 7
    teacher.generation_config.suppress_tokens = [30, 31, 9]
    teacher.config.sep_token_id = -1  # as good as none
    student = copy_init(teacher, keep_token_ids=[9, 1, 0, 2, 30])
    for renumbered in (student.config, student.generation_config):
        assert renumbered.pad_token_id == 1
        assert renumbered.bos_token_id == 2
        assert renumbered.eos_token_id == [3, 0]
    assert student.config.sep_token_id == -1
    assert student.generation_config.max_new_tokens == 7
    assert student.generation_config.suppress_tokens == [4, 0]
    assert teacher.generation_config.eos_token_id == [2, 9]


def test_words_spelt_in_ids_are_refused():
    teacher = families.make("gpt-2", "causal")
    teacher.generation_config.bad_words_ids = [[5, 6], [7]]
    with pytest.raises(ValueError, match=r"^copy_init: generation_config .* got bad_words_ids\."):
        copy_init(teacher, keep_token_ids=KEEP)
    copy_init(teacher)


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


@pytest.fixture
def token_map():
    return TokenMap.of([4, 0, 2], 6)


def test_a_saved_map_is_the_same(token_map, tmp_path):
    assert TokenMap.load(tmp_path) is None
    token_map.save(tmp_path)
    loaded = TokenMap.load(tmp_path)
    assert loaded.keep_token_ids == token_map.keep_token_ids
    assert torch.equal(loaded.old_to_new, token_map.old_to_new)
    assert [path.name for path in tmp_path.iterdir()] == ["token_map.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "about", "fact"),
    [
        (None, None, "SafetensorError: "),
        ({"keep_token_ids": torch.tensor([1])}, None, "KeyError: 'num_old'"),
        ({"ids": torch.tensor([1])}, {"num_old": "6"}, "SafetensorError: "),
        ({"keep_token_ids": torch.tensor([1])}, {"num_old": "six"}, "ValueError: invalid literal"),
        ({"keep_token_ids": torch.tensor([1, 9])}, {"num_old": "6"}, "ValueError: TokenMap.of: "),
    ],
)
def test_a_damaged_map_is_named(tmp_path, tensors, about, fact):
    content = b"not a map" if tensors is None else save(tensors, about)
    (tmp_path / "token_map.safetensors").write_bytes(content)
    rule = "token_map.safetensors must be a token map, as TokenMap.save writes it, got "
    with pytest.raises(ValueError, match=f"^TokenMap.load: .*{re.escape(rule + fact)}"):
        TokenMap.load(tmp_path)


def test_a_target_takes_the_loss_s_own_fields(token_map):
    """Which decide what log_z is that of; without them it is temperature 1's."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    log_z = (logits / 2).logsumexp(-1)
    teacher = SparseTeacher(torch.arange(6)[None], logits, log_z)
    exact = (logits[:, [4, 0, 2]] / 2).logsumexp(-1)
    for given in ({"temperature": 2.0}, {"spec": LossSpec(teacher_temperature=2.0)}):
        got = token_map.target(teacher, **given)
        assert got.ids.tolist() == [[1, -1, 2, -1, 0, -1]]
        torch.testing.assert_close(got.log_z, exact)
    assert token_map.target(teacher, dropped="bucket").log_z is log_z
    with pytest.raises(TypeError, match=r"^TokenMap.target: spec= and its fields"):
        token_map.target(teacher, spec=LossSpec(), temperature=2.0)
    with pytest.raises(TypeError, match=r"^TokenMap.target: teacher .* got NoneType"):
        token_map.target(None)


def test_labels_and_ids_in_new_ids(token_map):
    labels = torch.tensor([[4, 1], [-100, 2]])
    assert token_map.labels(labels).tolist() == [[0, -100], [-100, 2]]
    assert token_map.labels(labels, ignore_index=-1).tolist() == [[0, -1], [-100, 2]]
    assert token_map.new_ids(labels).tolist() == [[0, -1], [-1, 2]]
