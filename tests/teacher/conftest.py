"""Tiny teachers and ragged batches."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich_cache import OPTIONS, SHARDS
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from mkd_fast.teacher import capture

VOCAB_SIZE = 61


@dataclass(frozen=True)
class TokenBatch:
    input_ids: Tensor
    attention_mask: Tensor
    sample_ids: Tensor


@pytest.fixture(scope="session")
def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=5,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def causal() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def rich(tmp_path_factory, causal, make_batches) -> Path:
    """A cache of everything, which tests copy before they damage it."""
    folder = tmp_path_factory.mktemp("rich") / "cache"
    capture(causal, make_batches(), folder, **OPTIONS)
    assert sorted(path.name for path in folder.glob("shard-*")) == SHARDS
    return folder


class Echo(nn.Module):
    """A teacher that needs no time: its logits are a table's rows for the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(VOCAB_SIZE * 6.0).reshape(VOCAB_SIZE, 6).sin())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids[:, 0]])


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="session")
def make_batches() -> Callable[..., list[TokenBatch]]:
    """Batches of random tokens: every sample has 1 to ``longest`` tokens, padded on one side."""

    def make(
        num_batches: int = 5, batch_size: int = 3, longest: int = 7, side: str = "right"
    ) -> list[TokenBatch]:
        rng = random.Random(num_batches * 100 + batch_size)
        sample_ids = rng.sample(range(10_000), num_batches * batch_size)
        batches = []
        for first in range(0, len(sample_ids), batch_size):
            lengths = [rng.randint(1, longest) for _ in range(batch_size)]
            mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
            if side == "left":
                mask = mask.flip(1)
            ids = [[rng.randrange(VOCAB_SIZE) for _ in row] for row in mask]
            batches.append(
                TokenBatch(
                    torch.tensor(ids),
                    mask.long(),
                    torch.tensor(sample_ids[first : first + batch_size]),
                )
            )
        return batches

    return make
