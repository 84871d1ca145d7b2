"""``mkd-fast bench plan``: what ``mkd-fast plan`` predicts beside what stages of real runs held.

Each case is a recipe of a random teacher, a tokenizer of made-up words and made-up text, whose
stages run one after the other, each in a fresh process that says what it had in memory at most. The
prediction is made in a process of its own too, from the recipe. On the CPU, whatever there is.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mkd_fast.benchmarks.findings import Finding
from mkd_fast.files import make_folder
from mkd_fast.quiet import quiet_transformers

NUM_WORDS, NUM_STEPS = 1000, 4
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
    """A recipe.

    Attributes:
        name: in the results.
        kind: of the task.
        shape: of the teacher; the student has half of its layers.
        batch_size: samples of a step, all of ``length`` tokens.
        length: tokens of a sample.
        train: settings of ``[train]``.
        recipe: other settings, by section.
        is_dense: the loss is ``kd_loss`` of whole logits, which no recipe asks for.
    """

    name: str
    kind: str
    shape: dict[str, Any]
    batch_size: int
    length: int
    train: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_dense: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that are run."""
        is_ready = self.recipe.get("teacher", {}).get("finetuned", False)
        return (*(() if is_ready else ("fine-tune",)), "capture", "copy", "train")

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
            "train": {**optim, **self.train},
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

        shape = {"intermediate_size": 4 * self.shape["hidden_size"], **self.shape}
        if self.kind == "causal_lm":
            return LlamaForCausalLM(LlamaConfig(**shape))
        labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
        return BertForSequenceClassification(BertConfig(**shape, **labels))


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


_READY = {"teacher": {"finetuned": True}}
_HIDDEN = {"loss": {"hidden_weight": 1.0}}
_OF_ENCODER = Case("encoder", "sequence_classification", {"vocab_size": 10_000, **_ENCODER}, 32, 40)
_OF_DECODER = Case(
    "causal language model, linear loss",
    "causal_lm",
    {"vocab_size": 49_152, "intermediate_size": 1536, **_DECODER},
    8,
    128,
    recipe={**_READY, "capture": {"keep": "topk:64", "batch_size": 8}},
)
CASES = (
    replace(_OF_ENCODER, name="encoder, 32 x 40", recipe=_HIDDEN),
    replace(_OF_ENCODER, name="encoder, 64 x 64", batch_size=64, length=64, recipe=_READY),
    replace(
        _OF_ENCODER,
        name="encoder, 64 x 64, in 4 parts",
        batch_size=64,
        length=64,
        train={"accumulate": 4},
        recipe=_READY,
    ),
    _OF_DECODER,
    replace(
        _OF_DECODER,
        name="causal language model, layers computed twice",
        train={"checkpointing": True},
    ),
    replace(
        _OF_DECODER,
        name="causal language model, moments of 8 bits",
        train={"optimizer": "adamw8bit"},
    ),
    replace(_OF_DECODER, name="causal language model, whole logits", is_dense=True),
)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 1100}


def measure(device: torch.device, *, is_tiny: bool) -> Iterator[Finding]:
    """Every stage of every case; where the system does not tell a process's peak, nothing."""
    cases = [replace(CASES[0], shape=TINY, batch_size=4, length=8)] if is_tiny else CASES
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="mkd_fast_bench_") as made:
            folder = Path(made)
            case.prepare(folder)
            predicted = _run(case, folder, "plan")
            for stage in case.stages:
                held = _run(case, folder, stage)
                what = f"{case.name}: {stage}"
                yield Finding.of(what, "MiB held at most", [held / 2**20])
                yield Finding.of(what, "MiB predicted", [predicted[stage] / 2**20])
                off = abs(predicted[stage] / held - 1)
                yield Finding.of(what, "of it the prediction is off", [off], at_most=0.1)


def _run(case: Case, folder: Path, what: str) -> Any:
    """What a fresh process finds: a stage's bytes, or the plan's for each stage."""
    asked = json.dumps([case.config(folder), what, case.is_dense])
    done = subprocess.run(
        [sys.executable, "-m", "mkd_fast.benchmarks.plan_run", asked],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MKD_FAST_HOME": str(folder / "home")},
    )
    return json.loads(done.stdout.splitlines()[-1])
