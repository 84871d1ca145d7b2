"""Layers keep what was theirs: attention, rotation, cache; what their place decides is refused."""

import re

import pytest
import student_families as families
import torch
import transformers as hf
from made_up_model import MadeUpConfig, MadeUpModel

from mkd_fast.student import copy_init

FULL, SLIDING = "full_attention", "sliding_attention"
BY_LAYER = [  # what the student's config says, layer by layer
    ("gemma2", [0, 2, 4], {"layer_types": [SLIDING] * 3}),
    ("gemma2", [1, 4, 5], {"layer_types": [FULL, SLIDING, FULL]}),
    ("gemma3", [2, 5], {"layer_types": [FULL] * 2}),
    ("gemma3", [0, 1, 5], {"layer_types": [SLIDING, SLIDING, FULL], "sliding_window_pattern": 3}),
    ("gemma3", [1, 2, 4, 5], {"layer_types": [SLIDING, FULL] * 2, "sliding_window_pattern": None}),
    ("modernbert", [0, 3], {"layer_types": [FULL] * 2, "global_attn_every_n_layers": None}),
    ("modernbert", [0, 1, 5], {"layer_types": [FULL, SLIDING, SLIDING]}),
    ("modernbert", [0, 2], {"layer_types": [FULL, SLIDING], "global_attn_every_n_layers": 3}),
    ("qwen2", [0, 3, 4], {"layer_types": [FULL, SLIDING, SLIDING], "max_window_layers": 1}),
    ("qwen3", [4, 5], {"layer_types": [SLIDING] * 2, "max_window_layers": 0}),
    ("smollm3", [2, 3, 5], {"no_rope_layers": [0, 1, 0], "layer_types": [SLIDING, FULL, SLIDING]}),
]


@pytest.mark.parametrize(("family", "layers", "wanted"), BY_LAYER)
def test_what_a_config_says_by_layer_follows_the_layers(family, layers, wanted, tmp_path):
    teacher = families.make(family)
    student = copy_init(teacher, layers)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    for config in (student.config, loaded.config):
        assert {name: getattr(config, name, None) for name in wanted} == wanted
    oracle = families.outputs(families.with_layers(teacher, layers))
    families.assert_equal(families.outputs(student), oracle)
    families.assert_equal(families.outputs(loaded), oracle)


def test_a_list_longer_than_the_layers_is_cut():
    teacher = families.make("smollm3", no_rope_layers=[1, 1, 0] * 3)
    assert copy_init(teacher, [0, 2, 5]).config.no_rope_layers == [1, 0, 0]


def test_a_list_of_other_things_stays_whatever_its_length():
    teacher = families.make("deberta-v3", num_hidden_layers=2)
    assert teacher.config.pos_att_type == ["c2p", "p2c"]
    assert copy_init(teacher, [1]).config.pos_att_type == ["c2p", "p2c"]


@pytest.mark.parametrize("family", families.CAUSAL)
def test_generation_from_a_cache_is_that_without_one(family):
    teacher = families.make(family, "causal")
    student = copy_init(teacher, [1, 2, 3, 5])
    prompt = {name: tensor[:1] for name, tensor in families.inputs().items()}
    settings = {"do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8}
    cached = student.generate(**prompt, **settings, use_cache=True)
    assert cached.shape[1] == prompt["input_ids"].shape[1] + 8
    assert torch.equal(cached, student.generate(**prompt, **settings, use_cache=False))
    oracle = families.with_layers(teacher, [1, 2, 3, 5])
    assert torch.equal(cached, oracle.generate(**prompt, **settings, use_cache=False))


@pytest.mark.parametrize(
    ("depth", "num_layers", "layers"),
    [
        ("stride", 3, (0, 2, 5)),  # of the other five, two as even as can be
        ("last", 3, (0, 4, 5)),
        ("first", 3, (0, 1, 2)),
        ("first_last", 3, (0, 1, 5)),
        ("last", 1, (0,)),
    ],
)
def test_a_first_layer_built_unlike_the_others_stays(depth, num_layers, layers):
    teacher = families.make("modernbert", "masked")
    student = copy_init(teacher, depth, num_layers)
    oracle = families.with_layers(teacher, layers)
    families.assert_equal(families.outputs(student), families.outputs(oracle))


def refuse(message, teacher, layers, **arguments):
    with pytest.raises(ValueError, match=f"^copy_init: .*{re.escape(message)}"):
        copy_init(teacher, layers, **arguments)


def test_layers_that_leave_it_out_are_refused():
    refuse(
        "layer 2 of ModernBertModel must be built the same as layer 0 of the student, got "
        "attn_norm 'Identity' instead of 'LayerNorm' there. Name layers with depth=[...], and keep "
        "layer 0.",
        families.make("modernbert"),
        [2, 3],
    )


def test_attention_scaled_by_the_layers_number_is_refused():
    teacher = families.make("gpt-2", scale_attn_by_inverse_layer_idx=True)
    refuse("layer 5 of GPT2Model must be built the same as layer 1 of", teacher, [0, 5])
    assert copy_init(teacher, "first", 2).config.n_layer == 2


def test_the_text_model_of_a_multimodal_one_is_cut():
    teacher = families.make_multimodal()
    student = copy_init(teacher, [1, 2, 4])
    assert student.config.text_config.layer_types == [SLIDING, FULL, SLIDING]
    assert student.config.vision_config.num_hidden_layers == 6
    batch = families.inputs()
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    oracle = families.with_layers(teacher, [1, 2, 4])
    families.assert_equal(families.outputs(student, **batch), families.outputs(oracle, **batch))
    eyes = {name: w for name, w in teacher.state_dict().items() if "vision_tower" in name}
    assert any(".layers.5." in name for name in eyes)
    assert all(torch.equal(student.state_dict()[name], weight) for name, weight in eyes.items())
    refuse("keep_token_ids must be left out for a model that reads more", teacher, [0],
           keep_token_ids=range(20))  # fmt: skip


def test_an_unknown_family_works_when_its_layers_are_named(tmp_path):
    teacher = MadeUpModel(MadeUpConfig()).eval()
    batch = {name: tensor % 20 for name, tensor in families.inputs().items()}
    student = copy_init(teacher, [0, 2, 3], layer_list="blocks")
    assert (student.config.num_blocks, student.config.breadth) == (3, 4)
    assert student.config.slopes == [0.5, 2.5, 3.5]
    oracle = families.with_layers(teacher, [0, 2, 3], "blocks")
    families.assert_equal(families.outputs(student, **batch), families.outputs(oracle, **batch))
    student.save_pretrained(tmp_path)
    loaded = MadeUpModel.from_pretrained(tmp_path)
    families.assert_equal(families.outputs(loaded, **batch), families.outputs(oracle, **batch))


def test_the_decoder_of_two_stacks_can_be_cut():
    sizes = {"vocab_size": 40, "d_model": 8, "num_heads": 2, "d_kv": 4, "d_ff": 8}
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    teacher = hf.T5ForConditionalGeneration(
        hf.T5Config(**sizes, **tokens, num_layers=2, num_decoder_layers=4)
    ).eval()
    student = copy_init(teacher, [0, 3], layer_list="decoder.block")
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 2)
    theirs = teacher.decoder.block[3].layer[2].DenseReluDense.wi.weight
    assert torch.equal(student.decoder.block[1].layer[2].DenseReluDense.wi.weight, theirs)
    refuse("layer 1 of T5ForConditionalGeneration must be", teacher, [1, 3],
           layer_list="decoder.block")  # fmt: skip
