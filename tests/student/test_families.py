"""A copy of any family with any head: the teacher's outputs bit for bit, as saved and loaded."""

import pytest
import student_families as families
import torch

from mkd_fast.student import copy_init

# Each begins with layer 0, for ModernBERT's sake; the gaps move every kind of layer.
KEPT = [0, 2, 3, 5]


@pytest.mark.parametrize(("family", "head"), families.CASES)
def test_keeping_everything_gives_the_teachers_outputs(family, head):
    teacher = families.make(family, head)
    student = copy_init(teacher, num_layers=families.NUM_LAYERS)
    assert type(student) is type(teacher)
    assert student.config.to_dict() == teacher.config.to_dict()
    families.assert_equal(families.outputs(student), families.outputs(teacher))
    shared = {tensor.data_ptr() for tensor in teacher.state_dict().values() if tensor.numel()}
    assert not any(tensor.data_ptr() in shared for tensor in student.state_dict().values())


@pytest.mark.parametrize(("family", "head"), families.CASES)
def test_a_depth_copy_equals_running_only_those_layers(family, head, tmp_path):
    teacher = families.make(family, head)
    student = copy_init(teacher, KEPT)
    assert student.config.num_hidden_layers == len(KEPT)
    wanted = families.outputs(families.with_layers(teacher, KEPT))
    families.assert_equal(families.outputs(student), wanted)
    student.save_pretrained(tmp_path)
    families.assert_equal(families.outputs(type(student).from_pretrained(tmp_path)), wanted)


@pytest.fixture
def memory_of_nan():
    """New memory is filled with NaN, so that a value that nothing was written to is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_what_is_not_drawn_at_random_is_all_filled_in(family, memory_of_nan):
    assert torch.empty(3).isnan().all()
    teacher = families.make(family)
    student = copy_init(teacher, KEPT)
    assert not any(tensor.isnan().any() for tensor in (*student.parameters(), *student.buffers()))
    oracle = families.with_layers(teacher, KEPT)
    families.assert_equal(families.outputs(student), families.outputs(oracle))


@pytest.mark.parametrize("family", ["gpt-neox", "gemma3", "modernbert", "deberta-v3"])
def test_a_teacher_that_was_cast_has_a_student_that_says_the_same(family):
    teacher = families.make(family, "sequence").bfloat16()  # its rotary frequencies too
    student = copy_init(teacher, KEPT)
    oracle = families.with_layers(teacher, KEPT)
    families.assert_equal(families.outputs(student), families.outputs(oracle))
