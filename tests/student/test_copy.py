"""A depth copy is the teacher with fewer layers, bit for bit, and it refuses what it cannot do."""

import copy
import re

import pytest
import torch
from student_families import assert_equal, with_layers
from torch import nn
from transformers import BertModel

from mkd_fast.student import choose_layers, copy_init, scratch_like

FAMILIES = ("Bert", "BertWithPadOne", "Roberta", "XLMRoberta", "DistilBert")
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")


def outputs(model, pad):
    """Everything the model puts out for two texts, one of them padded."""
    input_ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    input_ids[input_ids == pad] = 12
    input_ids[1, 6:] = pad
    with torch.no_grad():
        found = model(
            input_ids=input_ids,
            attention_mask=(input_ids != pad).long(),
            output_hidden_states=True,
        )
    return [found[0], *found.hidden_states]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_gives_the_teachers_outputs(make_teacher, family, head):
    teacher = make_teacher(family, head)
    pad = teacher.config.pad_token_id
    student = copy_init(teacher, num_layers=5, keep_token_ids=range(40))
    assert type(student) is type(teacher)
    assert_equal(outputs(student, pad), outputs(teacher, pad))


@pytest.mark.parametrize("depth", ["stride", "first", "last", "first_last", [0, 2, 3]])
def test_a_depth_copy_keeps_the_layers_of_its_choice(make_teacher, depth):
    teacher = make_teacher("XLMRoberta", "ForTokenClassification")
    student = copy_init(teacher, depth, num_layers=3)
    oracle = with_layers(teacher, choose_layers(depth, 5, 3))
    assert student.config.num_hidden_layers == 3
    assert_equal(outputs(student, 1), outputs(oracle, 1))


def test_the_teacher_is_left_alone_and_shares_no_memory(make_teacher):
    teacher = make_teacher("XLMRoberta", "ForMaskedLM").train()
    before = copy.deepcopy(teacher.state_dict())
    config = teacher.config.to_dict()
    random_state = torch.get_rng_state()
    student = copy_init(teacher, num_layers=5, keep_token_ids=range(20))
    assert torch.equal(random_state, torch.get_rng_state())
    assert not student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(torch.nan)
    assert teacher.training
    assert teacher.config.to_dict() == config
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_each_tensor_keeps_the_teachers_dtype(make_teacher):
    teacher = make_teacher("Bert").to(torch.bfloat16)
    teacher.classifier.to(torch.float32)
    student = copy_init(teacher, num_layers=2)
    assert student.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert student.classifier.weight.dtype == torch.float32


def test_frozen_teacher_weights_become_trainable(make_teacher):
    teacher = make_teacher("DistilBert").requires_grad_(False)
    assert all(parameter.requires_grad for parameter in copy_init(teacher).parameters())


def test_a_model_built_without_a_pooler_has_a_student_without_one(make_teacher):
    teacher = BertModel(make_teacher("Bert").config, add_pooling_layer=False)
    student = copy_init(teacher, num_layers=2)
    assert student.pooler is None
    assert scratch_like(student, seed=0).pooler is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_head_stays_tied_or_untied(make_teacher, tied):
    teacher = make_teacher("Roberta", "ForMaskedLM", tie_word_embeddings=tied)
    student = copy_init(teacher, keep_token_ids=range(20))
    words, head = student.get_input_embeddings().weight, student.get_output_embeddings().weight
    assert (words is head) is tied
    assert torch.equal(head, teacher.get_output_embeddings().weight[:20])


def refuse(message, teacher, error=ValueError, **arguments):
    with pytest.raises(error, match=f"^copy_init: .*{re.escape(message)}"):
        copy_init(teacher, **arguments)


def test_what_is_no_transformers_model_is_refused(make_teacher):
    refuse("must be a transformers PreTrainedModel, got Linear. Unwrap", nn.Linear(2, 2), TypeError)
    wrapped = nn.DataParallel(make_teacher("Bert"))
    refuse("got DataParallel. Unwrap it first: .module (DDP), ._orig_mod", wrapped, TypeError)


def test_weights_that_are_not_there_or_not_plain_are_refused(make_teacher):
    rule = "teacher_model must hold floating-point weights on one device, got "
    meta = make_teacher("Bert").to("meta")
    refuse(f"{rule}weights on meta. Load it whole onto one device", meta)
    mixed = make_teacher("Bert")
    mixed.classifier.to("meta")
    refuse(f"{rule}weights on cpu and meta.", mixed)
    quantised = make_teacher("Bert")
    dense = quantised.classifier
    dense.weight = nn.Parameter(dense.weight.to(torch.int8), requires_grad=False)
    refuse(f"{rule}quantised weights. Dequantise it first.", quantised)


def test_tensors_that_the_config_does_not_describe_are_refused(make_teacher):
    adapted = make_teacher("Bert")
    adapted.bert.encoder.layer[4].adapter = nn.Linear(16, 2)
    refuse(
        "every tensor of the teacher must be one that its config describes, got also "
        "bert.encoder.layer.4.adapter.weight, bert.encoder.layer.4.adapter.bias. Merge adapters",
        adapted,
    )
    copy_init(adapted, "first", 2)  # the adapter goes with its layer

    headless = make_teacher("Bert")
    headless.classifier = nn.Identity()
    refuse("got none for classifier.weight, classifier.bias. The teacher is not", headless)

    relabelled = make_teacher("Bert")
    relabelled.classifier = nn.Linear(16, 7)
    refuse(
        "classifier.weight must have the shape (3, 16) that the config describes, got (7, 16).",
        relabelled,
    )


def test_ties_that_the_weights_do_not_have_are_refused(make_teacher):
    teacher = make_teacher("Bert", "ForMaskedLM", tie_word_embeddings=False)
    teacher.config.tie_word_embeddings = True
    refuse(
        "bert.embeddings.word_embeddings.weight and cls.predictions.decoder.weight must be equal, "
        "as the config ties them, got different weights.",
        teacher,
    )
