"""A capture beside the teacher's bare forward passes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from mkd_fast.benchmarks.cache.setting import Bench, interleaved, ratios_of
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.data.batches import Batch
from mkd_fast.train.loop import to_device

# A capture of seconds has several shards, as one of hours does: they are written meanwhile.
_CAPTURE_SHARD_BYTES = 8 << 20


def capturing(bench: Bench) -> Iterator[Finding]:
    """A capture's time over that of the teacher's bare forward passes."""
    size = bench.size
    every_other = tuple(range(2, size.num_layers + 1, 2))
    kinds: dict[str, dict[str, Any]] = {
        "topk:64": {"keep": "topk:64"},
        "sampled:50": {"keep": "sampled:50"},
        "hidden": {"keep": "hidden"},
        "topk:64 + 6 layers": {"keep": "topk:64", "hidden_layers": every_other},
        "topk:64 + sampled:50 + hidden": {"keep": ("topk:64", "sampled:50", "hidden")},
    }
    texts = bench.batches(bench.texts, 8)
    yield from _beside_bare(bench, "causal", bench.causal, texts, kinds)
    kinds = {"logits + 6 layers": {"keep": "logits", "hidden_layers": every_other}}
    sentences = bench.batches(bench.sentences, 64)
    yield from _beside_bare(bench, "classifier", bench.classifier, sentences, kinds)


def _beside_bare(
    bench: Bench,
    name: str,
    model: Any,
    batches: Sequence[Batch],
    kinds: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    def bare() -> None:
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
            for batch in batches:
                on_device = to_device(batch, bench.device)
                model(input_ids=on_device.input_ids, attention_mask=on_device.attention_mask)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()

    captures = {
        kind: partial(
            bench.captured, name, model, batches, shard_bytes=_CAPTURE_SHARD_BYTES, **options
        )
        for kind, options in kinds.items()
    }
    seconds = interleaved({"bare": bare, **captures}, bench.size.num_rounds)
    for kind in kinds:
        ratios = ratios_of(seconds[kind], seconds["bare"])
        yield Finding.of(f"capture, {name}, {kind}", "x the bare forward", ratios, at_most=1.10)
