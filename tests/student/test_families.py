"""A copy of any family with any head: the teacher's outputs bit for bit, as saved and loaded."""

import copy

import pytest
import student_families as families
import torch
from torch import nn

from mkd_fast.layer_list import find_layer_list
from mkd_fast.student import copy_init

# Each begins with layer 0, for ModernBERT's sake; the gaps move every kind of layer.
KEPT = [0, 2, 3, 5]


def with_layers(teacher, layers):
    """The teacher itself with a shorter list of layers: what a depth copy has to equal."""
    shorter = copy.deepcopy(teacher)
    parent, _, child = find_layer_list("copy_init", teacher).rpartition(".")
    owner = shorter.get_submodule(parent)
    setattr(owner, child, nn.ModuleList(getattr(owner, child)[layer] for layer in layers))
    config = shorter.config
    config.num_hidden_layers = len(layers)
    config.use_cache = False  # its layers still go by their old numbers
    if getattr(config, "layer_types", None) is not None:  # by which Qwen and Gemma choose masks
        config.layer_types = [config.layer_types[layer] for layer in layers]
    return shorter


def assert_equal(found, wanted):
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("family", "head"), families.CASES)
def test_keeping_everything_gives_the_teachers_outputs(family, head):
    teacher = families.make(family, head)
    student = copy_init(teacher, num_layers=families.NUM_LAYERS)
    assert type(student) is type(teacher)
    assert student.config.to_dict() == teacher.config.to_dict()
    assert_equal(families.outputs(student), families.outputs(teacher))
    shared = {tensor.data_ptr() for tensor in teacher.state_dict().values() if tensor.numel()}
    assert not any(tensor.data_ptr() in shared for tensor in student.state_dict().values())


@pytest.mark.parametrize(("family", "head"), families.CASES)
def test_a_depth_copy_equals_running_only_those_layers(family, head, tmp_path):
    teacher = families.make(family, head)
    student = copy_init(teacher, KEPT)
    assert student.config.num_hidden_layers == len(KEPT)
    wanted = families.outputs(with_layers(teacher, KEPT))
    assert_equal(families.outputs(student), wanted)
    student.save_pretrained(tmp_path)
    assert_equal(families.outputs(type(student).from_pretrained(tmp_path)), wanted)
