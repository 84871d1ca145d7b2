"""Tiny random models of every family that a student can be copied from, with every kind of head."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.auto import modeling_auto as auto

from mkd_fast.layer_list import find_layer_list

VOCAB_SIZE, NUM_LAYERS = 40, 6
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}
WINDOW = {"sliding_window": 4}
SINCE_LAYER_3 = {**WINDOW, "use_sliding_window": True, "max_window_layers": 3}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DEBERTA_V3 = {
    **DISENTANGLED,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
OWN_NAMES = {"vocab_size": VOCAB_SIZE, "num_labels": 3, "pad_token_id": 0}

CONFIGS: dict[str, Callable[..., Any]] = {
    "bert": lambda: hf.BertConfig(**SHAPE),
    "bert, pad 1": lambda: hf.BertConfig(**{**SHAPE, "pad_token_id": 1}),  # multilingual-e5-small
    "bert decoder": lambda: hf.BertConfig(**SHAPE, is_decoder=True),
    "roberta": lambda: hf.RobertaConfig(**{**SHAPE, "pad_token_id": 1}, type_vocab_size=1),
    "xlm-r": lambda: hf.XLMRobertaConfig(**{**SHAPE, "pad_token_id": 1}, type_vocab_size=1),
    "distilbert": lambda: hf.DistilBertConfig(
        **OWN_NAMES, dim=16, n_layers=6, n_heads=2, hidden_dim=24, max_position_embeddings=32
    ),
    "deberta": lambda: hf.DebertaConfig(**SHAPE, **DISENTANGLED),
    "deberta-v2": lambda: hf.DebertaV2Config(**SHAPE, **DISENTANGLED, conv_kernel_size=3),
    "deberta-v3": lambda: hf.DebertaV2Config(**SHAPE, **DEBERTA_V3),
    "modernbert": lambda: hf.ModernBertConfig(
        **SHAPE, cls_token_id=1, sep_token_id=2, local_attention=8, global_attn_every_n_layers=3
    ),
    "gpt-2": lambda: hf.GPT2Config(
        **OWN_NAMES, n_embd=16, n_layer=6, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    ),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**SHAPE),
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "llama, tied": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),  # smollm, smollm2
    "mistral": lambda: hf.MistralConfig(**GROUPED, **WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED, **SINCE_LAYER_3),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, **SINCE_LAYER_3),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, **WINDOW, query_pre_attn_scalar=8),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GROUPED, **WINDOW, query_pre_attn_scalar=8, sliding_window_pattern=3
    ),
    "smollm3": lambda: hf.SmolLM3Config(
        **GROUPED, **WINDOW, use_sliding_window=True, no_rope_layer_interval=3
    ),
}
HEADS = {
    "bare": auto.MODEL_MAPPING,
    "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING,
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING,
}


NOT_BOTH = {  # a class that can be an encoder or a decoder is tested as either
    *((family, "causal") for family in ("bert", "bert, pad 1", "roberta", "xlm-r")),
    ("bert decoder", "masked"),
}
CASES = [
    (family, head)
    for family in CONFIGS
    for head, classes in HEADS.items()
    if type(CONFIGS[family]()) in classes and (family, head) not in NOT_BOTH
]
CAUSAL = [family for family in CONFIGS if (family, "causal") in CASES]


def make_multimodal() -> Any:
    """Gemma 3 with eyes, whose two models have as many layers; they are found by name alone."""
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
            "num_hidden_layers": NUM_LAYERS, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = hf.Gemma3Config(
        text_config=CONFIGS["gemma3"](),
        vision_config=hf.SiglipVisionConfig(**eyes),
        mm_tokens_per_image=4,
        image_token_index=39,
        boi_token_index=38,
        eoi_token_index=37,
    )
    return _random(hf.Gemma3ForConditionalGeneration, config)


def make(family: str, head: str = "bare", **settings: Any) -> Any:
    """A teacher in eval mode; every parameter is random, so that none can be lost unseen."""
    config = CONFIGS[family]()
    for name, value in settings.items():
        setattr(config, name, value)
    return _random(HEADS[head][type(config)], config)


def _random(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    teacher = model_class(config).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return teacher


def inputs(pad: int = 0) -> dict[str, torch.Tensor]:
    """Two texts, one padded, both longer than the windows above; no token is a special one."""
    input_ids = torch.randint(3, VOCAB_SIZE, (2, 13), generator=torch.Generator().manual_seed(1))
    input_ids[1, 9:] = pad
    return {"input_ids": input_ids, "attention_mask": (input_ids != pad).long()}


def outputs(model: Any, **batch: torch.Tensor) -> list[torch.Tensor]:
    """What the model says and every hidden state on the way."""
    batch = batch or inputs(model.config.get_text_config().pad_token_id)
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True)
    return [found[0], *found.hidden_states]


def with_layers(teacher: Any, layers: Sequence[int], layer_list: str | None = None) -> Any:
    """The teacher itself with a shorter list of layers: what a depth copy has to equal."""
    shorter = copy.deepcopy(teacher)
    parent, _, child = find_layer_list("with_layers", teacher, layer_list).rpartition(".")
    owner = shorter.get_submodule(parent)
    setattr(owner, child, nn.ModuleList(getattr(owner, child)[layer] for layer in layers))
    config = shorter.config.get_text_config()
    config.num_hidden_layers = len(layers)
    config.use_cache = False  # its layers still go by their old numbers
    if getattr(config, "layer_types", None) is not None:  # by which Qwen and Gemma choose masks
        config.layer_types = [config.layer_types[layer] for layer in layers]
    return shorter


def assert_equal(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    """Bit for bit."""
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)
