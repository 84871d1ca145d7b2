"""A study of tiny_job's problem that runs in seconds, and what is read of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_job

RECIPE = """
[run]
folder = "{folder}"
device = "cpu"

[task]
kind = "{kind}"

[data]
source = "files"
train = "{train}"
dev = "{dev}"
test = "{test}"
vocabulary_text = "{vocabulary}"
seen = ["de", "en"]
max_length = 12

[teacher]
model = "{encoder}"

[finetune]
epochs = 6
batch_size = 8
learning_rate = 3e-3

[capture]
keep = "{keep}"

[loss]
temperature = 2.0
hidden_weight = 1.0

[train]
epochs = 2
batch_size = 8
precision = "float32"

[study]
starts = ["scratch", "finetuned"]
objectives = ["labels", "kl"]
fractions = [1.0, 0.25]
seeds = [0, 1]
num_layers = [2]
depths = ["first"]
rates = [1e-3, 3e-3]
probe_steps = 4
min_steps = 5
curve_points = 3
curve_rows = 8
"""
# Cells of it: 2 starts x 2 objectives x 2 fractions x 2 seeds, and 1 depth x 2 fractions x 2 seeds.
NUM_CELLS, NUM_PROBES = 20, 8


def write_study(folder: Path, *, kind: str = "sequence_classification") -> Path:
    """Encoder, text in two seen languages and one unseen, and the recipe; returns its path.

    The encoder has no head for the task; a causal language model is one already.
    """
    sentences, write = tiny_job.sentences, tiny_job.write_rows
    says_tokens = kind in ("masked_lm", "causal_lm")
    train = sentences(("de", "en"), ("lamp", "light"))
    rows = sentences(("de", "en"), ("lantern",))
    if says_tokens:  # every word is to be said, so none of them is new: what is new is their order
        rows = sentences(("de", "en"), ("lamp", "light", "lantern"))
        held_out = [(number + number // 3) % 3 == 2 for number in range(len(rows))]
        train = [row for row, is_out in zip(rows, held_out, strict=True) if not is_out]
        rows = [row for row, is_out in zip(rows, held_out, strict=True) if is_out]
    dev, test = rows[::2], rows[1::2] + sentences(("sw",), ("lantern",))
    vocabulary = folder / "vocabulary.txt"
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.write_text("\n".join(row["text"] for row in sentences(("sw",), ("lamp",))))
    if kind == "causal_lm":
        encoder = tiny_job.write_decoder(folder / "encoder")
    else:
        encoder = tiny_job.write_encoder(folder / "encoder", has_mask=says_tokens)
    if kind == "token_classification":
        train, dev, test = map(tiny_job.tagged, (train, dev, test))
    recipe = folder / "recipe.toml"
    recipe.write_text(
        RECIPE.format(
            folder=folder / "run",
            kind=kind,
            keep="hidden" if says_tokens else "logits",
            train=write(folder / "train.jsonl", train),
            dev=write(folder / "dev.jsonl", dev),
            test=write(folder / "test.jsonl", test),
            vocabulary=vocabulary,
            encoder=encoder,
        ),
        encoding="utf-8",
    )
    return recipe


def rows_of(folder: Path, name: str = "cells") -> list[dict[str, Any]]:
    """Rows of a JSONL file of a study."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what depends on the moment it was made."""
    kept = {name: value for name, value in row.items() if name not in ("seconds", "wall_seconds")}
    if "curve" in kept:
        kept["curve"] = [without_clock(point) for point in kept["curve"]]
    return kept
