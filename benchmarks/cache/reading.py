"""Opening a cache, and reading it in order and at random, from memory and from the disk."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mkd_fast.benchmarks.cache.setting import ORIGIN, Bench, ratios_of
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.teacher import TeacherCache, capture


def tokens_per_s(
    cache: TeacherCache,
    text: TokenisedText,
    chunks: Sequence[Any],
    num_rounds: int,
    hidden_layers: Sequence[int] = (),
    *,
    is_cold: bool = False,
    **options: Any,
) -> list[float]:
    """Of whole passes over a cache, padding not counted."""
    rates = []
    for _ in range(num_rounds):
        if is_cold:
            forget(cache.path)
            cache = TeacherCache.open(cache.path)
        started = time.perf_counter()
        for rows in chunks:
            cache.batch(rows, hidden_layers=hidden_layers, **options)
        rates.append(int(text.lengths.sum()) / (time.perf_counter() - started))
    return rates


def forget(folder: Path) -> None:
    """Ask the system to drop a folder's files from its page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(bench: Bench) -> Iterator[Finding]:
    """Tokens a second from each kind: at random and in order, from the page cache and the disk."""
    keep = ("topk:64", "sampled:50", "hidden")
    size, text = bench.size, bench.texts
    cache = bench.captured(
        "reading", bench.causal, bench.batches(text, 8), keep=keep, shard_bytes=1 << 20
    )
    shuffled = np.random.default_rng(3).permutation(len(text))
    chunks = np.array_split(shuffled, max(1, len(text) // 8))
    in_order = np.array_split(np.arange(len(text)), max(1, len(text) // 8))
    for kind in keep:
        rates = partial(tokens_per_s, cache, text, num_rounds=size.num_rounds, keep=kind)
        at_random = rates(chunks)
        yield Finding.of(f"reading {kind}", "tokens/s at random", at_random)
        ratios = ratios_of(rates(in_order), at_random)
        yield Finding.of(f"reading {kind}", "x at random, in order", ratios)
        ratios = ratios_of(rates(chunks, is_cold=True), at_random)
        yield Finding.of(f"reading {kind}", "x the page cache's, from disk", ratios)


class Echo(nn.Module):
    """A teacher that needs no time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(80.0).reshape(10, 8).sin())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """A row of the table for each sample."""
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.table[input_ids[:, 0] % 10])


def opening(bench: Bench) -> Iterator[Finding]:
    """What opening and a first batch take where there are many shards."""
    num_shards = bench.size.num_shards
    ids = torch.arange(4 * num_shards).view(num_shards, 4, 1)
    batches = [
        {"input_ids": chunk, "attention_mask": torch.ones_like(chunk), "sample_ids": chunk[:, 0]}
        for chunk in ids
    ]
    path = bench.folder / "opening"
    capture(Echo(), batches, path, keep="logits", fingerprints=ORIGIN, shard_bytes=100)
    opened, first = [], []
    for _ in range(bench.size.num_rounds):
        started = time.perf_counter()
        cache = TeacherCache.open(path)
        opened.append(1e3 * (time.perf_counter() - started))
        cache.batch(np.arange(0, len(cache), max(1, len(cache) // 32)))
        first.append(1e3 * (time.perf_counter() - started) - opened[-1])
    assert len(cache.manifest.shards) == num_shards, "a shard for every batch"
    case = f"opening {num_shards:,} shards"
    yield Finding.of(case, "ms", opened)
    yield Finding.of(case, "ms, first batch of 32 samples", first)
