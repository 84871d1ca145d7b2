"""Starts that a copy is compared with: the same model, with none or some of its weights."""

import copy

import pytest
import student_families as families
import torch
from made_up_model import MadeUpConfig, MadeUpModel

from mkd_fast.student import copy_init, embeddings_only, scratch_like

EMBEDDINGS = {  # what comes from the student, of each way of embedding tokens
    "bert": {
        *(f"bert.embeddings.{table}_embeddings.weight" for table in ("word", "position")),
        "bert.embeddings.token_type_embeddings.weight",
        *(f"bert.embeddings.LayerNorm.{name}" for name in ("weight", "bias")),
    },
    "deberta-v3": {
        "deberta.embeddings.word_embeddings.weight",
        *(f"deberta.embeddings.LayerNorm.{name}" for name in ("weight", "bias")),
        "deberta.encoder.rel_embeddings.weight",
        *(f"deberta.encoder.LayerNorm.{name}" for name in ("weight", "bias")),  # of those
    },
    "modernbert": {"model.embeddings.tok_embeddings.weight", "model.embeddings.norm.weight"},
    "gpt-2": {"transformer.wte.weight", "transformer.wpe.weight"},
    "llama": {"model.embed_tokens.weight"},
}


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


@pytest.mark.parametrize("family", EMBEDDINGS)
def test_embeddings_and_nothing_else_are_the_students(family):
    student = families.make(family, "token")
    before = copy.deepcopy(student.state_dict())
    random_state = torch.get_rng_state()
    start, scratch = (make(student.train(), seed=1) for make in (embeddings_only, scratch_like))
    assert torch.equal(random_state, torch.get_rng_state())
    assert type(start) is type(student)
    assert start.config.to_dict() == student.config.to_dict()
    assert (start.training, student.training) == (False, True)
    assert not any(module._forward_pre_hooks for module in student.modules())
    for name, tensor in start.state_dict().items():
        wanted = before[name] if name in EMBEDDINGS[family] else scratch.state_dict()[name]
        assert torch.equal(tensor, wanted), name
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.fill_(torch.nan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(("family", "head"), [("roberta", "masked"), ("gemma2", "causal")])
def test_a_head_tied_to_the_words_comes_with_them(family, head):
    student = families.make(family, head)
    start = embeddings_only(student, seed=1)
    assert torch.equal(start.get_output_embeddings().weight, student.get_input_embeddings().weight)
    assert start.get_output_embeddings().weight is start.get_input_embeddings().weight


def test_embeddings_of_a_trimmed_student_in_its_dtype():
    student = copy_init(families.make("xlm-r", "sequence").bfloat16(), keep_token_ids=range(20))
    start = embeddings_only(student, seed=0)
    words = start.get_input_embeddings().weight
    assert words.shape == (20, 16)
    assert torch.equal(words, student.get_input_embeddings().weight)
    assert {parameter.dtype for parameter in start.parameters()} == {torch.bfloat16}


def test_an_unknown_family_names_its_layers_here_too():
    student = MadeUpModel(MadeUpConfig())
    with pytest.raises(ValueError, match=r"^embeddings_only: MadeUpModel must have one"):
        embeddings_only(student, seed=0)
    start = embeddings_only(student, seed=0, layer_list="blocks")
    assert torch.equal(start.positions, student.positions)
    assert not torch.equal(start.blocks[0].mix.weight, student.blocks[0].mix.weight)
