"""Tiny random models of the families that must stream, with every kind of head."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

VOCAB_SIZE = 61
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GPT2 = {"vocab_size": VOCAB_SIZE, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}


@dataclass(frozen=True)
class Family:
    config: Any
    model_class: Any

    def model(self) -> Any:
        torch.manual_seed(0)
        model = self.model_class(self.config).eval()
        with torch.no_grad():  # norms and biases start as ones and zeros: those would hide mistakes
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model


def _causal(config: Any) -> Family:
    return Family(config, hf.AutoModelForCausalLM._model_mapping[type(config)])


FAMILIES = {
    "bert classifier": Family(
        hf.BertConfig(**_SIZES, num_labels=5), hf.BertForSequenceClassification
    ),
    "bert masked": Family(hf.BertConfig(**_SIZES), hf.BertForMaskedLM),
    "xlm-r classifier": Family(
        hf.XLMRobertaConfig(**_SIZES, num_labels=5), hf.XLMRobertaForSequenceClassification
    ),
    "xlm-r masked": Family(hf.XLMRobertaConfig(**_SIZES), hf.XLMRobertaForMaskedLM),
    "gpt-2": _causal(hf.GPT2Config(**_GPT2)),
    "gpt-2 classifier": Family(
        hf.GPT2Config(**_GPT2, num_labels=5, pad_token_id=1), hf.GPT2ForSequenceClassification
    ),
    "llama": _causal(hf.LlamaConfig(**_GROUPED)),
    "llama tied": _causal(hf.LlamaConfig(**_GROUPED, tie_word_embeddings=True)),
    "llama classifier": Family(
        hf.LlamaConfig(**_GROUPED, num_labels=5), hf.LlamaForSequenceClassification
    ),
    "mistral": _causal(hf.MistralConfig(**_GROUPED, sliding_window=4)),
    "qwen2": _causal(hf.Qwen2Config(**_GROUPED)),
    "qwen3": _causal(hf.Qwen3Config(**_GROUPED)),
    "gemma2": _causal(
        hf.Gemma2Config(**{**_GROUPED, **_SLIDING, "num_hidden_layers": 4}, query_pre_attn_scalar=8)
    ),
    "gemma3": _causal(hf.Gemma3TextConfig(**{**_GROUPED, **_SLIDING, "num_hidden_layers": 4})),
    "smollm3": _causal(hf.SmolLM3Config(**_GROUPED)),
    "modernbert masked": Family(
        hf.ModernBertConfig(
            **_SIZES, sep_token_id=2, cls_token_id=3, bos_token_id=2, eos_token_id=3
        ),
        hf.ModernBertForMaskedLM,
    ),
    "mixtral": _causal(hf.MixtralConfig(**_GROUPED, num_local_experts=4)),
}
