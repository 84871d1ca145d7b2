"""What a narrower student keeps by calibration text, and what it makes up for."""

import pytest
import student_families as families
import torch

from mkd_fast.student import copy_init

CALIBRATION = [families.inputs()]


def make(family="llama", head="sequence"):
    return families.make(family, head, num_attention_heads=4, num_key_value_heads=2)


def read_by(model, name, **batch):
    """What a matrix hands on for a text."""
    seen = []
    hook = model.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(**(batch or families.inputs()))
    hook.remove()
    return seen[0]


def test_the_units_that_do_most_are_kept():
    teacher = make()
    loud, quiet_heads = [1, 4, 5, 11], [0, 1]
    with torch.no_grad():
        words = teacher.get_input_embeddings().weight
        words.mul_(0.1)[:, loud] *= 1000
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, : 8 * len(quiet_heads)] *= 1e-3
            layer.self_attn.o_proj.weight[:, 24:] *= 10
            layer.mlp.up_proj.weight[::2] *= 1e-3
    student = copy_init(
        teacher,
        num_layers=6,
        hidden_size=4,
        num_heads=1,
        num_key_value_heads=1,
        intermediate_size=12,
        width="activation",
        calibration=CALIBRATION,
        compensate=False,
    )
    assert torch.equal(student.get_input_embeddings().weight, words[:, loud])
    for ours, theirs in zip(student.model.layers, teacher.model.layers, strict=True):
        query = theirs.self_attn.q_proj.weight[24:][:, loud]
        assert torch.equal(ours.self_attn.q_proj.weight, query)
        assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight[loud][:, 1::2])


@pytest.mark.parametrize("width", ["activation", "pca"])
def test_what_reads_the_stream_is_closer_to_the_teacher_when_it_is_made_up_for(width):
    teacher = make("llama", "causal")
    name = "model.layers.0.self_attn.q_proj"
    wanted = read_by(teacher, name)
    errors = {}
    for compensate in (True, False):
        student = copy_init(
            teacher,
            num_layers=6,
            hidden_size=8,
            width=width,
            calibration=CALIBRATION,
            compensate=compensate,
        )
        errors[compensate] = (read_by(student, name) - wanted)[0].square().mean()
    assert errors[True] < errors[False]


def test_units_that_repeat_others_are_read_from_them():
    teacher = make("llama", "causal")
    with torch.no_grad():
        for name, tensor in teacher.state_dict().items():
            if tensor.ndim == 1 and "norm" in name:
                tensor[8:] = tensor[:8]
            elif "embed" in name:
                tensor[:, :8] *= 1.5  # the first half does more, and so it is kept
                tensor[:, 8:] = tensor[:, :8] / 1.5
            elif "o_proj" in name or "down_proj" in name:
                tensor[:8] *= 1.5
                tensor[8:] = tensor[:8] / 1.5
    student = copy_init(
        teacher, num_layers=6, hidden_size=8, width="activation", calibration=CALIBRATION
    )
    plain = copy_init(
        teacher, num_layers=6, hidden_size=8, width="activation", calibration=CALIBRATION,
        compensate=False,
    )  # fmt: skip
    wanted, found, without = (families.outputs(model)[0][0] for model in (teacher, student, plain))
    assert (found - wanted).norm() < (without - wanted).norm()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_embeddings_that_grow_with_the_width_come_out_as_large(family):
    teacher = make(family, "causal")
    student = copy_init(teacher, num_layers=6, hidden_size=8)
    batch = {"input_ids": families.inputs()["input_ids"]}
    wanted, found = (
        model(**batch, output_hidden_states=True).hidden_states[0] for model in (teacher, student)
    )
    torch.testing.assert_close(found, wanted[..., ::2])
