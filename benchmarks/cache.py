"""``mkd-fast bench cache``: what keeping a teacher costs, and what reading it is worth.

Teachers have 12 layers of width 384 and random weights, students 6 of them: speed does not depend
on what a model knows. ``classifier`` is the main job's shape (a few tokens a sample, logits and
six hidden layers), ``causal`` a language model with 32,000 columns. What is compared is
interleaved, round by round, and ratios are taken within a round. Fingerprinting the teacher, once
a capture and as fast as the disk, is not part of a capture's time here.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mkd_fast import copy_init, kd_loss, linear_kd_loss
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.data.batches import Batch, collate, evaluation_batches
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.losses import LossSpec
from mkd_fast.teacher import Fingerprints, TeacherCache, capture
from mkd_fast.train.device import autocast
from mkd_fast.train.loop import Step, to_device
from mkd_fast.train.prefetch import prefetch
from mkd_fast.train.tasks import DistillTask, LabelTask

ORIGIN = Fingerprints(teacher="benchmark")
_SPEC = LossSpec(temperature=2.0, ce_weight=0.5, hidden_weight=1.0)
_NUM_LABELS = 29
# A capture of seconds has several shards, as one of hours does: they are written meanwhile.
_CAPTURE_SHARD_BYTES = 8 << 20


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


def measure(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    """Everything, one finding after another."""
    size = TINY if is_tiny else Size()
    with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as folder:
        bench = Bench(device, size, Path(folder))
        yield from _capture(bench)
        yield from _training(bench)
        yield from _reading(bench)
        yield _same_curves(bench)
        yield from _opening(bench)


def _interleaved(
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


def _ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(of, to, strict=True)]


def _capture(bench: Bench) -> Iterator[Finding]:
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
    yield from _capture_of(bench, "causal", bench.causal, texts, kinds)
    kinds = {"logits + 6 layers": {"keep": "logits", "hidden_layers": every_other}}
    sentences = bench.batches(bench.sentences, 64)
    yield from _capture_of(bench, "classifier", bench.classifier, sentences, kinds)


def _capture_of(
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
    seconds = _interleaved({"bare": bare, **captures}, bench.size.num_rounds)
    for kind in kinds:
        ratios = _ratios(seconds[kind], seconds["bare"])
        yield Finding.of(f"capture, {name}, {kind}", "x the bare forward", ratios, at_most=1.10)


@dataclass(frozen=True)
class _Trainee:
    """A student with its optimizer, which takes steps of one task."""

    bench: Bench
    task: LabelTask
    model: nn.Module
    optimizer: torch.optim.Optimizer
    teacher: Any = None

    @classmethod
    def of(cls, bench: Bench, task: LabelTask, teacher: Any = None) -> "_Trainee":
        model = copy_init(bench.classifier, depth="stride", num_layers=bench.size.num_layers // 2)
        model.train()
        return cls(bench, task, model, torch.optim.AdamW(model.parameters(), fused=True), teacher)

    def steps(self) -> tuple[float, float]:
        """Take some; seconds that they took, and that they waited for their data."""
        rows = itertools.islice(itertools.cycle(self.task.batches(0)), self.bench.size.num_steps)
        waited, started = 0.0, time.perf_counter()
        steps = prefetch(self.task.read, list(rows))
        while True:
            asked = time.perf_counter()
            step = next(steps, None)
            waited += time.perf_counter() - asked
            if step is None:
                return time.perf_counter() - started, waited
            self._take(to_device(step, self.bench.device))

    def _take(self, step: Step) -> None:
        with autocast(self.bench.device, "auto"):
            if self.teacher is None:
                out = self.task.loss(self.model, step)
            else:
                out = _live_loss(self.teacher, self.model, step.batch)
        out.loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _live_loss(teacher: Any, student: Any, batch: Batch) -> Any:
    """``DistillTask.loss`` with the teacher beside it in place of its cache."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        said = teacher(**inputs, output_hidden_states=True)
    out = student(**inputs, output_hidden_states=True)
    num_layers = len(out.hidden_states)
    return kd_loss(
        out.logits,
        said.logits,
        batch.labels,
        student_hidden=list(out.hidden_states[1:]),
        teacher_hidden=[said.hidden_states[2 * layer] for layer in range(1, num_layers)],
        hidden_mask=batch.attention_mask.bool(),
        spec=_SPEC,
    )


def _training(bench: Bench) -> Iterator[Finding]:
    """A step from the cache beside one with a live teacher, and one that needs no teacher."""
    size, text = bench.size, bench.sentences
    layers = tuple(range(2, size.num_layers + 1, 2))
    batches = bench.batches(text, 64)
    cache = bench.captured(
        "training", bench.classifier, batches, keep="logits", hidden_layers=layers
    )
    matched = tuple((number, layer) for number, layer in enumerate(layers, start=1))
    distil = DistillTask(text, size.batch_size, 0, text, cache, _SPEC, matched)
    trainees = {
        "cache": _Trainee.of(bench, distil),
        "live": _Trainee.of(bench, LabelTask(text, size.batch_size, 0), bench.classifier),
        "labels": _Trainee.of(bench, LabelTask(text, size.batch_size, 0)),
        "cache, logits": _Trainee.of(
            bench, replace(distil, spec=replace(_SPEC, hidden_weight=0.0), matched_layers=())
        ),
    }
    waits: list[float] = []
    took: list[float] = []

    def from_cache() -> None:
        seconds, waited = trainees["cache"].steps()
        waits.append(waited / seconds)
        took.append(seconds)

    runs = {name: trainee.steps for name, trainee in trainees.items()} | {"cache": from_cache}
    seconds = _interleaved(runs, size.num_rounds)
    yield Finding.of("training step", "share of it waiting for the cache", waits[1:], at_most=0.03)
    ratios = _ratios(seconds["live"], seconds["cache"])
    yield Finding.of("training step", "x, with a live 12-layer teacher", ratios, at_least=1.5)
    ratios = _ratios(seconds["cache, logits"], seconds["labels"])
    yield Finding.of("training step, logits", "x of labels alone", ratios, at_most=1.10)
    ratios = _ratios(seconds["cache"], seconds["labels"])
    yield Finding.of("training step, logits + 6 layers", "x of labels alone", ratios)
    taken = itertools.islice(itertools.cycle(distil.batches(0)), size.num_steps)
    num_tokens = int(sum(text.lengths[rows].sum() for rows in taken))
    consumed = [num_tokens / seconds for seconds in took[1:]]
    yield Finding.of("training step", "tokens/s", consumed)
    orders = {
        "in order": np.arange(len(text)),
        "at random": np.random.default_rng(2).permutation(len(text)),
    }
    for order, rows in orders.items():
        chunks = np.array_split(rows, max(1, len(rows) // size.batch_size))
        served = _tokens_per_s(cache, text, chunks, size.num_rounds, layers)
        ratios = [rate / statistics.median(consumed) for rate in served]
        what = "x what a training step consumes"
        yield Finding.of(f"reading logits + 6 layers, {order}", what, ratios, at_least=20.0)


def _tokens_per_s(
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


def _reading(bench: Bench) -> Iterator[Finding]:
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
        rates = partial(_tokens_per_s, cache, text, num_rounds=size.num_rounds, keep=kind)
        at_random = rates(chunks)
        yield Finding.of(f"reading {kind}", "tokens/s at random", at_random)
        ratios = _ratios(rates(in_order), at_random)
        yield Finding.of(f"reading {kind}", "x at random, in order", ratios)
        ratios = _ratios(rates(chunks, is_cold=True), at_random)
        yield Finding.of(f"reading {kind}", "x the page cache's, from disk", ratios)


def _same_curves(bench: Bench) -> Finding:
    """The largest relative difference of two loss curves: from ``hidden``, and from ``logits``."""
    batches = bench.batches(bench.texts, 8)
    cache = capture(
        bench.causal,
        batches,
        bench.folder / "curves",
        keep=("hidden", "logits"),
        fingerprints=ORIGIN,
        resume=False,
    )
    curves = {keep: _curve(bench, cache, keep, batches) for keep in ("hidden", "logits")}
    off = [abs(a - b) / abs(b) for a, b in zip(curves["hidden"], curves["logits"], strict=True)]
    num_steps = len(off)
    return Finding.of(
        "loss curve", f"hidden's off logits' in {num_steps} steps", [max(off)], at_most=1e-4
    )


def _curve(bench: Bench, cache: TeacherCache, keep: str, batches: Sequence[Batch]) -> list[float]:
    student = copy_init(bench.causal, depth="stride", num_layers=bench.size.num_layers // 2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for number in range(2 * bench.size.num_steps):
        batch = to_device(batches[number % len(batches)], bench.device)
        target = cache.batch(batch.sample_ids.cpu(), keep=keep).to(bench.device)
        mask = batch.attention_mask
        states = student.model(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        out = linear_kd_loss(
            states, student.lm_head.weight, target.teacher, mask=mask.bool(), temperature=2.0
        )
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(out.loss.item())
    return losses


class Echo(nn.Module):
    """A teacher that needs no time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(80.0).reshape(10, 8).sin())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """A row of the table for each sample."""
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.table[input_ids[:, 0] % 10])


def _opening(bench: Bench) -> Iterator[Finding]:
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
