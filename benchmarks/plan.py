"""``mkd-fast bench plan``: what ``mkd-fast plan`` predicts beside what stages of real runs held.

Each case is a recipe of a random teacher, a tokenizer of made-up words and made-up text, whose
stages run one after the other, each in a fresh process that says what it had in memory at most, its
checkpoint included. Predictions are made in processes of their own, from the recipe. On the CPU,
whatever there is.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mkd_fast.benchmarks import results
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.evaluate.tables import Table, TableRow
from mkd_fast.files import make_folder
from mkd_fast.quiet import quiet_transformers

NUM_WORDS, NUM_STEPS = 1000, 3
_ENCODER = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12}
_DECODER = {
    "hidden_size": 576,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """A recipe, and other settings that its student is trained with.

    Attributes:
        name: in the results.
        kind: of the task.
        shape: of the teacher; the student has half of its layers.
        batch_size: samples of a step, all of ``length`` tokens.
        length: tokens of a sample.
        recipe: other settings, by section.
        trainings: settings of ``[train]``, by name.
        has_whole_logits: whether the student is trained by ``kd_loss`` of whole logits too, which
            no recipe asks for.
    """

    name: str
    kind: str
    shape: dict[str, Any]
    batch_size: int
    length: int
    recipe: dict[str, dict[str, Any]]
    trainings: dict[str, dict[str, Any]]
    has_whole_logits: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that are run once."""
        is_ready = self.recipe.get("teacher", {}).get("finetuned", False)
        return (*(() if is_ready else ("fine-tune",)), "capture", "copy")

    @property
    def jobs(self) -> list[tuple[str, dict[str, Any], bool]]:
        """Of trainings: name, settings, and whether of whole logits."""
        jobs = [(f"train, {name}", changed, False) for name, changed in self.trainings.items()]
        return jobs + [("train, whole logits", {}, True)] * self.has_whole_logits

    def config(self, folder: Path) -> dict[str, Any]:
        """The recipe as ``from_dict`` takes it."""
        optim = {"epochs": 1, "batch_size": self.batch_size}
        sections: dict[str, dict[str, Any]] = {
            "run": {"folder": str(folder / "run"), "device": "cpu"},
            "task": {"kind": self.kind},
            "data": {
                "train": str(folder / "train.jsonl"),
                "test": str(folder / "test.jsonl"),
                "max_length": self.length,
            },
            "teacher": {"model": str(folder / "teacher")},
            "finetune": optim,
            "train": optim,
            "student": {"num_layers": self.shape["num_hidden_layers"] // 2, "vocabulary": "all"},
            "scratch": {"enabled": False},
        }
        for name, settings in self.recipe.items():
            sections[name] = {**sections.get(name, {}), **settings}
        return sections

    def prepare(self, folder: Path) -> None:
        """Write teacher, tokenizer and text."""
        rng = np.random.default_rng(0)
        make_folder(folder)
        for name, num_rows in (("train", NUM_STEPS * self.batch_size), ("test", 4)):
            words = rng.integers(0, NUM_WORDS, (num_rows, self.length))
            rows = (
                {"text": " ".join(f"w{n}" for n in row), "label": "ab"[i % 2], "language": "en"}
                for i, row in enumerate(words)
            )
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        _tokenizer().save_pretrained(folder / "teacher")
        torch.manual_seed(0)
        with quiet_transformers():
            self._teacher().save_pretrained(folder / "teacher")

    def _teacher(self) -> Any:
        from transformers import (
            BertConfig,
            BertForSequenceClassification,
            LlamaConfig,
            LlamaForCausalLM,
        )

        shape: dict[str, Any] = {
            "intermediate_size": 4 * self.shape["hidden_size"],
            **self.shape,
        }
        if self.kind == "causal_lm":
            return LlamaForCausalLM(LlamaConfig(**shape))
        shape |= {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
        return BertForSequenceClassification(BertConfig(**shape))


def _tokenizer() -> Any:
    """A token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*special, *(f"w{number}" for number in range(NUM_WORDS))]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


CASES = (
    Case(
        "encoder, 64 x 64",
        "sequence_classification",
        {"vocab_size": 10_000, **_ENCODER},
        batch_size=64,
        length=64,
        recipe={"finetune": {"batch_size": 32}, "loss": {"hidden_weight": 1.0}},
        trainings={
            "as it is": {},
            "32 x 64": {"batch_size": 32},
            "in 4 parts": {"accumulate": 4},
        },
    ),
    Case(
        "causal language model, 8 x 128",
        "causal_lm",
        {"vocab_size": 49_152, "intermediate_size": 1536, **_DECODER},
        batch_size=8,
        length=128,
        recipe={"teacher": {"finetuned": True}, "capture": {"keep": "topk:64", "batch_size": 8}},
        trainings={
            "linear loss": {},
            "layers computed twice": {"checkpointing": True},
            "moments of 8 bits": {"optimizer": "adamw8bit"},
        },
        has_whole_logits=True,
    ),
)
_TINY_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 1100,
}
TINY = replace(CASES[0], shape=_TINY_SHAPE, batch_size=4, length=8, trainings={"as it is": {}})


def measure(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    """Every stage of every case, once; Linux tells a process's peak."""
    for case in [TINY] if is_tiny else CASES:
        with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as made:
            folder = Path(made)
            case.prepare(folder)
            predicted = _run(case, folder, "plan", {}, is_whole=False)
            for stage in case.stages:
                held = _run(case, folder, stage, {}, is_whole=False)
                yield from _compared(f"{case.name}: {stage}", predicted[stage], held)
            for name, settings, is_whole in case.jobs:
                told = predicted["train"]
                if settings or is_whole:
                    told = _run(case, folder, "plan", settings, is_whole=is_whole)["train"]
                held = _run(case, folder, "train", settings, is_whole=is_whole)
                yield from _compared(f"{case.name}: {name}", told, held)


def _compared(what: str, predicted: float, held: float) -> Iterator[Finding]:
    yield Finding.of(what, "MiB held at most", [held / 2**20])
    yield Finding.of(what, "MiB predicted", [predicted / 2**20])
    off = abs(predicted / held - 1)
    yield Finding.of(what, "of it the prediction is off", [off], at_most=0.1)


def _run(case: Case, folder: Path, what: str, train: dict[str, Any], *, is_whole: bool) -> Any:
    """What a fresh process finds: a stage's bytes, or the plan's for each stage."""
    asked = json.dumps([case.config(folder), what, train, is_whole])
    done = subprocess.run(
        [sys.executable, "-m", "mkd_fast.benchmarks.plan_run", asked],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MKD_FAST_HOME": str(folder / "home")},
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[results.Row]) -> str:
    """Markdown: a row for each stage that was measured."""
    by_case: dict[str, list[str]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row["p50"])
    lines = tuple(
        TableRow((case, f"{float(held):,.0f}", f"{float(told):,.0f}", _signed(held, told)))
        for case, (held, told, _) in by_case.items()
    )
    heads = ("", "MiB held", "MiB predicted", "off")
    return Table("", heads, (lines,)).to_markdown().lstrip()


def _signed(held: str, told: str) -> str:
    return f"{float(told) / float(held) - 1:+.1%}"
