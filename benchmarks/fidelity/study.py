"""A teacher of the fidelity table, its text, and what its caches say about it."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mkd_fast import copy_init
from mkd_fast.benchmarks.masked_head import masking, tokenised
from mkd_fast.losses import Teacher, TeacherHead
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher import Fingerprints, TeacherCache, capture
from mkd_fast.train.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# B samples, S tokens, N tokens that count, V vocabulary, D width

SPARSE = ("topk:16", "topk:64", "topk:128")
SAMPLED = ("sampled:12", "sampled:25", "sampled:50", "sampled:100")
KINDS = ("hidden", *SPARSE, *SAMPLED)
TEMPERATURES = (1.0, 2.0)
HELD_OUT, NARROW, TRAIN = "held_out", "held_out_bfloat16", "train"  # caches
IGNORED = -100


@dataclass(frozen=True)
class Size:
    """How much is measured of one teacher; samples all have the same length.

    Attributes:
        sources: what students are trained from, "dense" first.
    """

    sources: tuple[str, ...] = ("dense",)
    sample_tokens: int = 128
    num_held_out: int = 4  # samples a language
    num_train: int = 120
    batch_size: int = 2
    num_layers: int = 6
    num_steps: int = 120
    learning_rate: float = 5e-4
    num_repetitions: int = 64
    repeated_tokens: int = 16  # of a language


@dataclass(frozen=True, eq=False)
class Text:
    """``input_ids`` and ``labels`` [n, S], -100 where no loss is taken, and each one's language."""

    input_ids: Tensor
    labels: Tensor
    languages: tuple[str, ...]

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """All samples in order, as ``capture`` takes them."""
        return [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sample_ids": rows}
            for ids, rows in zip(
                self.input_ids.split(size), torch.arange(len(self.labels)).split(size), strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class Study:
    """One teacher with its text; models and caches go into ``folder``."""

    name: str
    teacher: "PreTrainedModel"
    train: Text
    held_out: Text
    size: Size
    folder: Path

    @property
    def num_columns(self) -> int:
        """V."""
        return len(head_of(self.teacher).weight)

    @property
    def matched_layers(self) -> tuple[int, int]:
        """Of the teacher: the middle one, and the last."""
        num_layers = self.teacher.config.num_hidden_layers
        return num_layers // 2, num_layers

    def layers_of(self, student: Any) -> tuple[int, int]:
        """Of a student: those that are matched with matched_layers."""
        depth = student.config.num_hidden_layers
        return depth // 2, depth

    def student(self, num_layers: int) -> Any:
        """Every so-many-th layer of the teacher."""
        return copy_init(self.teacher, depth="stride", num_layers=num_layers)

    def cache(self, name: str) -> TeacherCache:
        """One of the caches, captured if it is new: every kind in one pass of the teacher."""
        options: dict[str, Any] = {"keep": KINDS, "temperatures": TEMPERATURES}
        text = self.held_out
        if name == HELD_OUT:
            options |= {"hidden_layers": self.matched_layers, "hidden_dtype": "int8"}
        elif name == NARROW:
            options = {
                "keep": "hidden",
                "last_hidden_dtype": "bfloat16",
                "hidden_layers": self.matched_layers,
            }
        else:
            text = self.train
            taught = {re.split(", | [+] ", source)[0] for source in self.size.sources}
            keep = [kind for kind in KINDS if kind in taught]
            options = {"keep": keep, "autocast": torch.bfloat16}
            options |= {"hidden_layers": self.matched_layers, "hidden_dtype": "int8"}
        batches = text.batches(self.size.batch_size)
        return capture(self.teacher, batches, self.folder / name, **options)


def head_of(model: Any) -> Any:
    """What makes logits."""
    return model.get_output_embeddings()


def select(teacher: Teacher, is_counted: Tensor) -> Any:
    """A teacher's tokens [B, S, ...] that count, as [N, ...]."""
    if isinstance(teacher, Tensor):
        return teacher[is_counted]
    if isinstance(teacher, TeacherHead):
        return replace(teacher, hidden=teacher.hidden[is_counted])
    parts = {field.name: getattr(teacher, field.name) for field in fields(teacher)}
    chosen: Any = {name: t[is_counted] for name, t in parts.items() if isinstance(t, Tensor)}
    return replace(teacher, **chosen)


class Replayed(nn.Module):
    """A teacher that says the same logits [B, S, V] whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> "Replayed":
        """Itself, since it has ``logits``."""
        return self


def repeated(logits_NV: Tensor, keep: Sequence[str], times: int, path: Path) -> TeacherCache:
    """A cache of the same tokens under sample ids 0, 1, ...: each has draws of its own."""
    ids = torch.zeros(1, len(logits_NV), dtype=torch.int64)
    batches: Iterator[Mapping[str, Tensor]] = (
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sample_ids": torch.tensor([n])}
        for n in range(times)
    )
    teacher = Replayed(logits_NV[None])
    origin = Fingerprints(teacher="replayed")
    return capture(teacher, batches, path, keep=keep, fingerprints=origin, resume=False)


def next_tokens(input_ids: Tensor) -> Tensor:
    """Labels [B, S] of a causal model: the last token of a sample has none."""
    return torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=IGNORED)


def causal(
    name: str, folder: str, documents: Mapping[str, Sequence[str]], size: Size, work: Path
) -> Study:
    """A language model: a token's label is the next one."""
    from transformers import AutoModelForCausalLM

    def labelled(samples: list[list[int]], languages: Sequence[str]) -> Text:
        ids = torch.tensor(samples)
        return Text(ids, next_tokens(ids), tuple(languages))

    with quiet_transformers():
        teacher: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    train, held_out, languages = _samples(documents, load_tokenizer(folder), size)
    held_out_text = labelled(held_out, languages)
    return Study(name, teacher.eval(), labelled(train, ()), held_out_text, size, work / name)


def masked(
    name: str, folder: str, documents: Mapping[str, Sequence[str]], size: Size, work: Path
) -> Study:
    """A masked language model: labels are what was masked, once for all."""
    from transformers import BertForMaskedLM

    tokenizer = load_tokenizer(folder)

    def labelled(samples: list[list[int]], languages: Sequence[str], seed: int) -> Text:
        batch = masking(tokenizer, seed)([{"input_ids": ids} for ids in samples])
        return Text(batch["input_ids"], batch["labels"], tuple(languages))

    with quiet_transformers():
        teacher: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    train, held_out, languages = _samples(documents, tokenizer, size)
    held_out_text = labelled(held_out, languages, 0)
    return Study(name, teacher.eval(), labelled(train, (), 1), held_out_text, size, work / name)


def _samples(
    documents: Mapping[str, Sequence[str]], tokenizer: "PreTrainedTokenizerFast", size: Size
) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Samples of the full length: to train on, in random order; held out; their languages."""
    text = tokenised(documents, tokenizer, size.sample_tokens)
    train = [ids for ids in text.train if len(ids) == size.sample_tokens]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held_out, languages = [], []
    for language, samples in text.held_out.items():
        full = (ids for ids in samples if len(ids) == size.sample_tokens)
        for ids in itertools.islice(full, size.num_held_out):
            held_out.append(ids)
            languages.append(language)
    return [train[row] for row in order[: size.num_train].tolist()], held_out, languages
