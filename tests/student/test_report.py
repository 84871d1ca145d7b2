"""A copy accounts for every tensor, and for every parameter and byte, before and after."""

import re

import pytest
import student_families as families
import torch

from mkd_fast.student import copy_with_report
from mkd_fast.student.report import summary_of


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
    assert list(parts) == ["word embeddings", "other embeddings", "layers", "head"]
    assert sum(part.parameters_before for part in report.parts) == teacher.num_parameters()
    assert sum(part.parameters_after for part in report.parts) == student.num_parameters()
    assert all(part.bytes_after == 2 * part.parameters_after for part in report.parts)
    assert parts["word embeddings"].parameters_after == 30 * 16
    assert parts["layers"].parameters_after * 5 == parts["layers"].parameters_before * 2


def test_the_report_reads_as_markdown(make_teacher):
    report = copy_with_report(make_teacher("DistilBert"), [0, 4])[1]
    text = report.to_markdown()
    assert summary_of(text) == str(report)
    assert text.startswith("Teacher layers kept: 0 4\n")
    name = "distilbert.transformer.layer.{}.ffn.lin1.weight"
    row = re.escape(f"| `{name.format(1)}`") + r" +\| " + re.escape(f"`{name.format(4)}`")
    assert re.search(rf"{row} +\| copied +\| 24 x 16 \|", text)
    assert re.search(r"\| total +\| +(\d|,)+ \|", text)
    for table in text.split("\n\n")[1:]:
        assert len({line.count("|") for line in table.strip().split("\n")}) == 1


GROUPS = {  # of tensors by where they are, how they came, and how many they are
    "bert": [
        ("bert.embeddings", "the same", "copied", 5),
        ("bert.encoder.layer.*", "layers 1 5", "copied", 32),
        ("cls", "the same", "copied", 5),
        ("cls", "the same", "tied", 2),
    ],
    "gpt-2": [
        ("transformer.wte", "the same", "copied", 1),
        ("transformer.wpe", "the same", "copied", 1),
        ("transformer.h.*", "layers 1 5", "copied", 24),
        ("transformer.ln_f", "the same", "copied", 2),
        ("lm_head", "the same", "tied", 1),
    ],
}


@pytest.mark.parametrize(("family", "head"), [("bert", "masked"), ("gpt-2", "causal")])
def test_the_summary_has_a_row_for_a_group(family, head):
    report = copy_with_report(families.make(family, head), [1, 5])[1]
    rows = [re.split(r" *\| *", line)[1:5] for line in str(report).split("\n\n")[-1].split("\n")]
    wanted = [(f"`{name}`", source, how, str(count)) for name, source, how, count in GROUPS[family]]
    assert list(map(tuple, rows[2:-1])) == wanted
    assert sum(int(row[-1]) for row in rows[2:-1]) == len(report.tensors)


PARTS = {  # parameters of the teacher by part: words 640, positions 512, tied heads count once
    "bert": (640, 512 + 32 + 32),
    "llama": (640, 0),
    "gpt-2": (640, 512),
    "deberta-v3": (640, 32 + 256),  # the norm, and relative positions
    "modernbert": (640, 16),
}


@pytest.mark.parametrize("family", PARTS)
def test_embeddings_are_told_from_what_is_beside_them(family):
    report = copy_with_report(families.make(family))[1]
    assert tuple(part.parameters_before for part in report.parts)[:2] == PARTS[family]


SCORES = ["teacher layer", "change of hidden states", "kept"]


def test_the_report_says_the_scores():
    teacher, batches = families.make("bert"), [families.inputs()]
    report = copy_with_report(teacher, "importance", 5, calibration=batches)[1]
    table = str(report).split("\n\n")[2].split("\n")
    assert re.split(r" *\| *", table[0])[1:4] == [
        "teacher layer",
        "change of hidden states",
        "kept",
    ]
    for layer, (score, line) in enumerate(zip(report.layer_scores, table[2:], strict=True)):
        kept = "yes" if layer in report.layers else ""
        assert re.split(r" *\| *", line)[1:4] == [str(layer), f"{score:.4f}", kept]
    assert "change of" not in str(copy_with_report(teacher, "first")[1])
