"""Whole recipes so small that they run in seconds: an encoder, its tokenizer, and text."""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizer import unigram
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import mkd_fast
from mkd_fast.train import DistillResult

LABELS = ("dim", "off", "on")
# Half of a language's words are names, so that sentences without a word of the task abound.
WORDS = {
    "de": {"dim": "dimme", "off": "aus", "on": "an", "rooms": ("küche", "flur", "bad", "stube")},
    "en": {"dim": "darken", "off": "off", "on": "on", "rooms": ("kitchen", "hall", "bath", "den")},
    "sw": {"dim": "fifisha", "off": "zima", "on": "washa", "rooms": ("jiko", "bafu", "ukumbi")},
}
RECIPE = """
[run]
folder = "{folder}"
device = "cpu"

[task]
kind = "{kind}"

[data]
source = "files"
train = "{train}"
test = "{test}"
vocabulary_text = "{vocabulary_text}"
max_length = 12

[teacher]
model = "{encoder}"

[finetune]
epochs = 2
batch_size = 8
learning_rate = 2e-3
checkpoint_every = 3
log_every = 2

[capture]
keep = "{keep}"

[loss]
temperature = 2.0
ce_weight = 0.5
hidden_weight = 1.0

[train]
epochs = 2
batch_size = 8
learning_rate = 2e-3
checkpoint_every = 3
log_every = 2
"""

Row = dict[str, Any]


def sentences(languages: Sequence[str], lamps: Sequence[str]) -> list[Row]:
    """A row for each language, label, room and lamp."""
    return [
        {"text": f"{words[label]} {room} {lamp}", "label": label, "language": language}
        for language in languages
        for words in [WORDS[language]]
        for label in LABELS
        for room in words["rooms"]
        for lamp in lamps
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenizer(*, has_mask: bool = False) -> PreTrainedTokenizerFast:
    """Every word of the sentences, and all letters."""
    rows = sentences(tuple(WORDS), ("lamp", "light", "lantern"))
    words = sorted({word for row in rows for word in row["text"].split()})
    return unigram(words, letters=string.ascii_lowercase, has_mask=has_mask)


def write_encoder(
    folder: Path,
    seed: int = 0,
    model_class: type[BertModel] = BertModel,
    *,
    has_mask: bool = False,
) -> Path:
    """A random encoder of four layers, as ``save_pretrained`` writes it, perhaps with a head."""
    torch.manual_seed(seed)
    pieces = tokenizer(has_mask=has_mask or model_class is not BertModel)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
        pad_token_id=pieces.pad_token_id,
    )
    model_class(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def write_decoder(folder: Path, seed: int = 0) -> Path:
    """A random causal language model of four layers and its tokenizer."""
    torch.manual_seed(seed)
    pieces = tokenizer()
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=32,
        bos_token_id=pieces.bos_token_id,
        eos_token_id=pieces.eos_token_id,
        pad_token_id=pieces.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def tagged(rows: Sequence[Row], turn: int = 0) -> list[Row]:
    """The same sentences as words: a room is an entity, and a lamp, with the action behind it.

    Args:
        rows: of ``sentences``.
        turn: 1 puts the words of each into the other order.
    """
    found = []
    for number, row in enumerate(rows):
        action, room, lamp = row["text"].split()
        is_behind = (number + turn) % 2
        words = [lamp, action, room] if is_behind else [action, lamp, room]
        tags = ["B-LAMP", "I-LAMP", "B-ROOM"] if is_behind else ["O", "B-LAMP", "B-ROOM"]
        found.append({"tokens": words, "tags": tags, "language": row["language"]})
    return found


def write_job(
    folder: Path, run_folder: str = "run", *, kind: str = "sequence_classification"
) -> Path:
    """Encoder, text in two seen languages and one unseen, and the recipe; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    train = sentences(("de", "en"), ("lamp", "light"))
    test = sentences(("de", "en", "sw"), ("lantern",))
    model_class, keep, vocabulary_text = BertModel, "logits", ""
    if kind == "token_classification":
        train = tagged(sentences(("de", "en"), ("lamp", "light", "lantern")))
        test = tagged(test, turn=1)
    elif kind in ("masked_lm", "causal_lm"):
        model_class, keep = BertForMaskedLM, "hidden"
        vocabulary_text = str(folder / "vocabulary.txt")
        lines = [row["text"] for row in sentences(("sw",), ("lamp",))]
        Path(vocabulary_text).write_text("\n".join(lines), encoding="utf-8")
    teacher = folder / "encoder"
    if kind == "causal_lm":
        write_decoder(teacher)
    else:
        write_encoder(teacher, model_class=model_class)
    recipe = folder / "recipe.toml"
    recipe.write_text(
        RECIPE.format(
            folder=folder / run_folder,
            kind=kind,
            keep=keep,
            vocabulary_text=vocabulary_text,
            train=write_rows(folder / "train.jsonl", train),
            test=write_rows(folder / "test.jsonl", test),
            encoder=teacher,
        ),
        encoding="utf-8",
    )
    return recipe


def distilled(
    folder: Path, change: Mapping[str, str] | None = None, *, kind: str = "sequence_classification"
) -> DistillResult:
    """An undisturbed run of a job in one thread, its teacher kept in the folder's ``home``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKD_FAST_HOME", str(folder / "home"))
        result = mkd_fast.distill(write_job(folder, kind=kind), change)
    torch.set_num_threads(threads)
    return result


def weights(folder: Path) -> bytes:
    """Those of a model folder."""
    return (folder / "model.safetensors").read_bytes()
