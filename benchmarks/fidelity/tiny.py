"""Two random teachers with random text: shows that the table is made, not what it says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mkd_fast.benchmarks.fidelity.study import IGNORED, Size, Study, Text, next_tokens

SIZE = Size(
    sources=(
        "dense",
        "dense + layers",
        "hidden",
        "hidden + int8 layers",
        "topk:16, renormalize",
        "sampled:12",
    ),
    sample_tokens=12,
    num_train=4,
    batch_size=2,
    num_layers=1,
    num_steps=2,
    num_repetitions=16,
    repeated_tokens=2,
)
_LANGUAGES = ("en", "de")
_CONFIG: dict[str, Any] = {  # enough columns for the largest top-k
    "vocab_size": 200,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
    "pad_token_id": 1,
}


def studies(work: Path) -> Iterator[Study]:
    """A causal teacher, and a masked one."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ids = torch.randint(4, _CONFIG["vocab_size"], (SIZE.num_train, SIZE.sample_tokens))
    causal: Any = LlamaForCausalLM(LlamaConfig(**_CONFIG)).eval()
    yield _study("causal", causal, ids, next_tokens(ids), work)
    masked: Any = BertForMaskedLM(BertConfig(**_CONFIG)).eval()
    is_masked = torch.arange(SIZE.sample_tokens) % 4 == 0
    yield _study("masked", masked, ids, ids.masked_fill(~is_masked, IGNORED), work)


def _study(name: str, teacher: Any, ids: Any, labels: Any, work: Path) -> Study:
    num_held_out = len(_LANGUAGES)
    held_out = Text(ids[:num_held_out], labels[:num_held_out], _LANGUAGES)
    return Study(name, teacher, Text(ids, labels, ()), held_out, SIZE, work / name)
