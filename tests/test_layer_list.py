"""Layers are found from the model, and a model that does not tell says what to name."""

import re

import pytest
import student_families as families
import transformers as hf
from made_up_model import MadeUpConfig, MadeUpModel
from torch import nn

from mkd_fast.layer_list import find_layer_list, layer_counter
from mkd_fast.skeleton import configs_within

ALBERT = {"vocab_size": 20, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3}
TWO_STACKS = {"vocab_size": 20, "d_model": 8, "encoder_layers": 2, "decoder_layers": 3,
              "encoder_attention_heads": 2, "decoder_attention_heads": 2,
              "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 8,
              "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
              "decoder_start_token_id": 2}  # fmt: skip


def refuse(message, model, name=None):
    with pytest.raises(ValueError, match=f"^asker: .*{re.escape(message)}"):
        find_layer_list("asker", model, name)


@pytest.mark.parametrize(("family", "head"), families.CASES)
def test_layers_are_found_in_every_family(family, head):
    model = families.make(family, head)
    layers = model.get_submodule(find_layer_list("asker", model))
    assert len(layers) == families.NUM_LAYERS
    assert {type(layer).__name__ for layer in layers} < {
        *("BertLayer", "RobertaLayer", "XLMRobertaLayer", "TransformerBlock", "DebertaLayer"),
        *("DebertaV2Layer", "ModernBertEncoderLayer", "GPT2Block", "GPTNeoXLayer"),
        *(f"{decoder}DecoderLayer" for decoder in ("Llama", "Mistral", "Qwen2", "Qwen3")),
        *(f"{decoder}DecoderLayer" for decoder in ("Gemma2", "Gemma3", "SmolLM3")),
    }


def test_another_list_of_the_same_length_is_told_apart():
    model = families.make("bert")
    model.register_module("adapters", nn.ModuleList(nn.Identity() for _ in range(6)))
    assert find_layer_list("asker", model) == "encoder.layer"
    assert find_layer_list("asker", model, "adapters") == "adapters"


def test_shared_layers_are_no_list_of_them():
    albert = hf.AlbertModel(hf.AlbertConfig(**ALBERT, num_attention_heads=2, intermediate_size=8))
    rule = "AlbertModel must have one nn.ModuleList of config.num_hidden_layers = 3 layers, got "
    lists = "these lists: 'encoder.albert_layer_groups' (1), "
    refuse(rule + lists, albert)
    refuse(f"{rule}layer_list='encoder.layers' among {lists}", albert, "encoder.layers")


def test_of_two_stacks_one_must_be_named():
    model = hf.BartModel(hf.BartConfig(**TWO_STACKS))
    refuse("these lists: 'encoder.layers' (2), 'decoder.layers' (3). Name the list", model)
    name = find_layer_list("asker", model, "decoder.layers")
    assert layer_counter("asker", model, name) == (0, "decoder_layers")


def test_an_unknown_family_is_told_what_to_name_and_works_when_it_is():
    model = MadeUpModel(MadeUpConfig())
    refuse("config.num_hidden_layers = None layers, got these lists: 'blocks' (4). Name", model)
    name = find_layer_list("asker", model, "blocks")
    assert layer_counter("asker", model, name) == (0, "num_blocks")


def test_a_list_that_no_number_counts_is_refused():
    model = MadeUpModel(MadeUpConfig(num_blocks=3))
    model.register_module("twins", nn.ModuleList(nn.Identity() for _ in range(3)))
    message = (
        "asker: the config of MadeUpModel must have a number that says how many layers 'twins' "
        "has, got none that is 3 and shortens it. Build the list in __init__"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_counter("asker", model, "twins")


def test_layers_of_the_text_model_are_meant_and_their_number_is_found():
    model = families.make_multimodal()
    name = find_layer_list("asker", model)
    assert name == "model.language_model.layers"
    place, counter = layer_counter("asker", model, name)
    assert counter == "num_hidden_layers"
    assert list(configs_within(model.config))[place] is model.config.text_config
