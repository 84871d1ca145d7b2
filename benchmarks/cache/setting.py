"""What the parts share: sizes, models, texts, and runs that take turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mkd_fast.data.batches import Batch, collate, evaluation_batches
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.teacher import Fingerprints, capture

ORIGIN = Fingerprints(teacher="benchmark")
_NUM_LABELS = 29


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    width: int = 384
    num_layers: int = 12
    num_columns: int = 32_000
    num_samples: int = 768
    batch_size: int = 32
    mean_tokens: int = 14
    text_tokens: int = 128
    num_texts: int = 64
    num_rounds: int = 5
    num_steps: int = 6
    num_shards: int = 2_000


TINY = Size(
    width=16,
    num_layers=4,
    num_columns=200,
    num_samples=24,
    batch_size=8,
    mean_tokens=6,
    text_tokens=9,
    num_texts=4,
    num_rounds=2,
    num_steps=2,
    num_shards=5,
)


@dataclass(frozen=True)
class Bench:
    """One run: its models and texts, made once."""

    device: torch.device
    size: Size
    folder: Path

    def _common(self) -> dict[str, Any]:
        return {
            "hidden_size": self.size.width,
            "num_hidden_layers": self.size.num_layers,
            "num_attention_heads": self.size.width // 32 or 1,
            "intermediate_size": 4 * self.size.width,
            "max_position_embeddings": 512,
        }

    @cached_property
    def classifier(self) -> Any:
        """A fine-tuned teacher's shape, its vocabulary cut to the text."""
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config = BertConfig(vocab_size=10_000, **self._common())
        config.num_labels = _NUM_LABELS
        return BertForSequenceClassification(config).eval().to(self.device)

    @cached_property
    def causal(self) -> Any:
        """A small language model."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.size.num_columns, tie_word_embeddings=True, **self._common()
        )
        return LlamaForCausalLM(config).eval().to(self.device)

    @cached_property
    def sentences(self) -> TokenisedText:
        """Short samples of all lengths around the mean."""
        rng = np.random.default_rng(0)
        lengths = rng.integers(3, 2 * self.size.mean_tokens - 3, self.size.num_samples)
        labels = rng.integers(0, _NUM_LABELS, len(lengths))
        return _text(rng, lengths, labels, 10_000)

    @cached_property
    def texts(self) -> TokenisedText:
        """Samples of one length."""
        rng = np.random.default_rng(1)
        lengths = np.full(self.size.num_texts, self.size.text_tokens)
        return _text(rng, lengths, np.zeros_like(lengths), self.size.num_columns)

    def batches(self, text: TokenisedText, batch_size: int) -> list[Batch]:
        """All of a text."""
        rows = evaluation_batches(text.lengths, batch_size=batch_size)
        return [collate(text, chosen) for chosen in rows]

    def captured(
        self, name: str, model: nn.Module, batches: Sequence[Batch], **options: Any
    ) -> Any:
        """A cache in a folder of its own."""
        return capture(
            model,
            batches,
            self.folder / name,
            fingerprints=ORIGIN,
            autocast=torch.bfloat16,
            resume=False,
            **options,
        )


def _text(rng: Any, lengths: Any, labels: Any, vocab_size: int) -> TokenisedText:
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = rng.integers(2, vocab_size, offsets[-1]).astype(np.int32)
    return TokenisedText(ids, offsets, labels.astype(np.int64), 0)


def interleaved(
    runs: Mapping[str, Callable[[], object]], num_rounds: int
) -> dict[str, list[float]]:
    """Seconds of every run in every round, after one round that is not counted."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(num_rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            runs[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios_of(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(of, to, strict=True)]
