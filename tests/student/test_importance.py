"""Depth by importance: layers are ranked by how much they change the hidden states of a text."""

import re
from itertools import pairwise

import pytest
import student_families as families
import torch
from budget import assert_within_budget
from made_up_model import MadeUpConfig, MadeUpModel

from mkd_fast.student import choose_layers, copy_init, copy_with_report
from mkd_fast.student.importance import layer_changes


def halves(batch):
    """The same text in two batches, which can be read once."""
    for row in range(2):
        yield {name: tensor[row : row + 1] for name, tensor in batch.items()}


def changes(states, mask, dtype):
    """1 - cos between neighbouring hidden states, a mean over the tokens that count."""
    return torch.stack(
        [
            (1 - torch.cosine_similarity(one.to(dtype), two.to(dtype), dim=-1))[mask].mean()
            for one, two in pairwise(states)
        ]
    )


LAYERS = {  # of families without a norm behind the last layer
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "deberta": "deberta.encoder.layer",
}


@pytest.mark.parametrize("family", LAYERS)
def test_scores_are_those_of_the_hidden_states(family):
    teacher = families.make(family, "token")
    batch = families.inputs()
    with torch.no_grad():
        states = teacher(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].bool()
    found = layer_changes(teacher, halves(batch), LAYERS[family])
    exact, plain = (changes(states, mask, dtype) for dtype in (torch.float64, torch.float32))
    assert_within_budget(torch.tensor(found), exact, plain)


def with_idle_layers(family, head, idle):
    """A teacher of which some layers do nothing at all."""
    teacher = families.make(family, head)
    outputs = ("o_proj.weight", "down_proj.weight")
    for name, parameter in teacher.named_parameters():
        if name.endswith(outputs) and int(name.split("layers.")[1].split(".")[0]) in idle:
            parameter.data.zero_()
    return teacher


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
def test_layers_that_do_nothing_are_dropped_and_nothing_is_lost(family):
    teacher = with_idle_layers(family, "causal", idle=(1, 2, 4))
    batches = [families.inputs()]
    student, report = copy_with_report(teacher, "importance", calibration=batches)
    assert report.layers == (0, 3, 5)
    families.assert_equal(families.outputs(student)[:1], families.outputs(teacher)[:1])
    assert len(report.layer_scores) == families.NUM_LAYERS


def test_the_teacher_is_left_as_it_was_even_by_a_batch_that_fails():
    teacher = families.make("bert", "masked").train()
    before, hooks = torch.get_rng_state(), [module._forward_hooks for module in teacher.modules()]
    copy_init(teacher, "importance", 2, calibration=halves(families.inputs()))
    with pytest.raises(TypeError, match="must have input_ids and attention_mask"):
        copy_init(teacher, "importance", 2, calibration=[families.inputs(), {}])
    assert teacher.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(hooks)


def test_padding_does_not_count():
    teacher = families.make("bert")
    batch = families.inputs()
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)}
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    one, two = (layer_changes(teacher, [text], "encoder.layer") for text in (batch, other))
    assert one == two


def test_a_choice_by_scores_takes_the_highest_in_the_layers_order():
    scores = (0.5, 0.1, 0.9, 0.1, 0.3)
    assert choose_layers("importance", 5, 3, scores=scores) == (0, 2, 4)
    assert choose_layers("importance", 5, 4, scores=scores) == (0, 1, 2, 4)  # of equal, the lower
    assert choose_layers("importance", 5, 2, scores=(0.0, *scores[1:]), first_stays=True) == (0, 2)


def test_a_first_layer_that_must_stay_stays_whatever_its_score():
    teacher = families.make("modernbert")
    scores = copy_with_report(teacher, "importance", 6, calibration=[families.inputs()])[1]
    assert len(scores.layer_scores) == 6
    for num_layers in range(1, 6):
        student, report = copy_with_report(
            teacher, "importance", num_layers, calibration=[families.inputs()]
        )
        assert report.layers[0] == 0
        assert student.config.num_hidden_layers == num_layers


def refuse(message, teacher=None, **arguments):
    with pytest.raises(ValueError, match=f"^copy_init: .*{re.escape(message)}"):
        copy_init(teacher or families.make("bert"), **arguments)


def test_what_cannot_be_ranked_is_refused():
    batches = [families.inputs()]
    refuse(
        "depth='importance' must be given text to rank the layers on, got no calibration. Pass "
        "calibration=[tokenizer(texts, padding=True, return_tensors='pt'), ...]",
        depth="importance",
    )
    refuse("calibration must be left out where nothing is ranked on it", calibration=batches)
    refuse("must hold at least one token", depth="importance", calibration=iter(()))
    asked = iter(batches)
    refuse("num_layers must lie in [1, 6]", depth="importance", num_layers=7, calibration=asked)
    assert next(asked) is batches[0]  # a number out of range costs no pass

    made_up = MadeUpModel(MadeUpConfig())
    made_up.blocks[2].register_forward_hook(lambda block, inputs, states: states[:, 0])
    refuse(
        "MadeUpModel must hand hidden states [batch, tokens, width] from each layer of 'blocks' to "
        "the next, got other tensors. Rank its layers in another way",
        made_up,
        depth="importance",
        calibration=[{name: tensor % 20 for name, tensor in batches[0].items()}],
        layer_list="blocks",
    )
