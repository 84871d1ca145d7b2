"""A depth copy is the teacher with fewer layers, bit for bit, and it refuses what it cannot do."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers import BertModel

from mkd_fast.layer_list import find_layer_list
from mkd_fast.student import choose_layers, copy_init, copy_with_report, scratch_like

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


def with_layers(teacher, layers):
    """The teacher itself with a shorter list of layers: what a depth copy has to equal."""
    shorter = copy.deepcopy(teacher)
    parent, _, child = find_layer_list("copy_init", teacher).rpartition(".")
    kept = [getattr(shorter.get_submodule(parent), child)[i] for i in layers]
    setattr(shorter.get_submodule(parent), child, nn.ModuleList(kept))
    return shorter


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_gives_the_teachers_outputs(make_teacher, family, head):
    teacher = make_teacher(family, head)
    pad = teacher.config.pad_token_id
    student = copy_init(teacher, num_layers=5, keep_token_ids=range(40))
    assert type(student) is type(teacher)
    for got, wanted in zip(outputs(student, pad), outputs(teacher, pad), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("depth", ["stride", "first", "last", "first_last", [0, 2, 3]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_depth_copy_equals_running_only_those_layers(make_teacher, family, depth):
    teacher = make_teacher(family, "ForTokenClassification")
    pad = teacher.config.pad_token_id
    student = copy_init(teacher, depth, num_layers=3)
    oracle = with_layers(teacher, choose_layers(depth, 5, 3))
    assert student.config.num_hidden_layers == 3
    for got, wanted in zip(outputs(student, pad), outputs(oracle, pad), strict=True):
        assert torch.equal(got, wanted)


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


def test_scratch_has_the_students_shape_and_weights_of_its_seed(make_teacher):
    student = copy_init(make_teacher("XLMRoberta").double(), keep_token_ids=range(20))
    random_state = torch.get_rng_state()
    first, same, other = (scratch_like(student, seed) for seed in (1, 1, 2))
    assert torch.equal(random_state, torch.get_rng_state())
    assert first.config.to_dict() == student.config.to_dict()
    assert not first.training
    name = "roberta.encoder.layer.0.output.dense.weight"
    for key, tensor in student.state_dict().items():
        assert first.state_dict()[key].shape == tensor.shape
        assert first.state_dict()[key].dtype == tensor.dtype
        assert torch.equal(first.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], student.state_dict()[name])


def test_the_report_accounts_for_every_tensor(make_teacher):
    teacher = make_teacher("Bert", "ForMaskedLM")
    student, report = copy_with_report(teacher, [1, 3], keep_token_ids=range(30))
    assert report.layers == (1, 3)
    assert [row.name for row in report.tensors] == list(student.state_dict())
    assert {row.name: row.shape for row in report.tensors} == {
        name: tuple(tensor.shape) for name, tensor in student.state_dict().items()
    }
    rows = {row.name: row for row in report.tensors}
    query = "attention.self.query.weight"
    assert rows[f"bert.encoder.layer.1.{query}"].source == f"bert.encoder.layer.3.{query}"
    assert rows["bert.embeddings.word_embeddings.weight"].how == "kept tokens' rows"
    assert rows["cls.predictions.decoder.weight"].how == (
        "tied to bert.embeddings.word_embeddings.weight"
    )


def test_the_parts_add_up_to_the_models(make_teacher):
    teacher = make_teacher("Bert", "ForMaskedLM").to(torch.bfloat16)
    student, report = copy_with_report(teacher, num_layers=2, keep_token_ids=range(30))
    parts = {part.part: part for part in report.parts}
    assert list(parts) == ["word embeddings", "layers", "other embeddings", "head"]
    assert sum(part.parameters_before for part in report.parts) == teacher.num_parameters()
    assert sum(part.parameters_after for part in report.parts) == student.num_parameters()
    assert all(part.bytes_after == 2 * part.parameters_after for part in report.parts)
    assert parts["word embeddings"].parameters_after == 30 * 16
    assert parts["layers"].parameters_after * 5 == parts["layers"].parameters_before * 2


def test_the_report_reads_as_markdown(make_teacher):
    report = copy_with_report(make_teacher("DistilBert"), [0, 4])[1]
    text = report.to_markdown()
    assert str(report) == text
    assert text.startswith("Teacher layers kept: 0 4\n")
    name = "distilbert.transformer.layer.{}.ffn.lin1.weight"
    row = re.escape(f"| `{name.format(1)}`") + r" +\| " + re.escape(f"`{name.format(4)}`")
    assert re.search(rf"{row} +\| copied +\| 24 x 16 \|", text)
    assert re.search(r"\| total +\| +(\d|,)+ \|", text)
    for table in text.split("\n\n")[1:]:
        assert len({line.count("|") for line in table.strip().split("\n")}) == 1


def refuse(message, teacher, error=ValueError, **arguments):
    with pytest.raises(error, match=f"^copy_init: .*{re.escape(message)}"):
        copy_init(teacher, **arguments)


def test_a_narrower_student_is_refused(make_teacher):
    message = (
        "hidden_size must be the teacher's 16, for only depth and vocabulary are reduced, got 8"
    )
    refuse(message, make_teacher("Bert"), hidden_size=8)
    assert copy_init(make_teacher("Bert"), hidden_size=16).config.hidden_size == 16


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
