"""Narrower students of a language model: how far from the teacher each way of copying starts.

``python -m mkd_fast.benchmarks.width`` copies SmolLM2-135M (30 layers x 576) at three quarters of
its width, every layer kept, and measures the forward KL to the teacher on held-out real text, at
the start and after a few steps of distillation: the same text, rate and steps for all. The rival
cuts each matrix top-left, as arXiv 2505.16956 does: as many heads as the teacher has, each
three quarters as long. Ours keep six heads of nine, whole, and are smaller for it.
"""

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkd_fast import copy_init, kd_loss
from mkd_fast.benchmarks.machine import provenance, slug
from mkd_fast.benchmarks.masked_head import tokenised
from mkd_fast.benchmarks.results import PROVENANCE, write_rows
from mkd_fast.data.running_text import running_text
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher.pretrained import resolve_model
from mkd_fast.train.models import load_tokenizer

MODEL = "smollm2-135m-instruct"
TOP_LEFT = "top-left"


@dataclass(frozen=True)
class Size:
    """How narrow the students are, and how much text they see.

    Attributes:
        head_dim: of the rival, whose heads are cut.
        num_heads: of ours, whose heads are kept whole.
    """

    hidden_size: int = 432
    intermediate_size: int = 1152
    head_dim: int = 48
    num_heads: int = 6
    sample_tokens: int = 64
    num_calibration: int = 16  # samples
    num_held_out: int = 16
    batch_size: int = 4
    num_steps: int = 20
    learning_rate: float = 3e-4


@dataclass(frozen=True, eq=False)
class Setting:
    """A teacher and its text, [n, S] token ids each."""

    name: str
    teacher: Any
    train: Tensor
    held_out: Tensor
    size: Size

    @property
    def calibration(self) -> list[dict[str, Tensor]]:
        """Training samples as ``copy_init`` takes them."""
        return [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for ids in self.train[: self.size.num_calibration].split(self.size.batch_size)
        ]


@dataclass(frozen=True)
class Way:
    """A way to copy; one that is trained is measured twice."""

    name: str
    compensate: bool = True
    is_trained: bool = True

    def student(self, setting: Setting) -> Any:
        """The student at its start."""
        if self.name == TOP_LEFT:
            return top_left(setting.teacher, setting.size)
        size = setting.size
        return copy_init(
            setting.teacher,
            num_layers=setting.teacher.config.num_hidden_layers,
            hidden_size=size.hidden_size,
            num_heads=size.num_heads,
            intermediate_size=size.intermediate_size,
            width=self.name,
            calibration=None if self.name == "uniform" else setting.calibration,
            compensate=self.compensate,
        )


WAYS = (
    Way(TOP_LEFT),
    Way("uniform"),
    Way("activation"),
    Way("pca"),
    Way("activation", compensate=False, is_trained=False),
    Way("pca", compensate=False, is_trained=False),
)


@dataclass(frozen=True)
class Row:
    """One way; KL in nats a token on held-out text, empty where it was not trained."""

    case: str
    variant: str
    compensated: bool
    parameters: int
    copy_seconds: float
    kl_start: float
    kl_end: float
    steps: int
    tokens_per_step: int


def top_left(teacher: Any, size: Size) -> Any:
    """The rival: the first rows and columns of everything."""
    config = copy.deepcopy(teacher.config)
    config.hidden_size, config.head_dim = size.hidden_size, size.head_dim
    config.intermediate_size = size.intermediate_size
    student = type(teacher)(config).eval()
    weights = teacher.state_dict()
    student.load_state_dict(
        {
            name: weights[name][tuple(slice(length) for length in tensor.shape)].clone()
            for name, tensor in student.state_dict().items()
        }
    )
    return student


@torch.no_grad()
def kl(setting: Setting, student: Any) -> float:
    """Mean forward KL over held-out tokens."""
    total = 0.0
    parts = setting.held_out.split(setting.size.batch_size)
    for ids in parts:
        loss = kd_loss(student(input_ids=ids).logits, setting.teacher(input_ids=ids).logits)
        total += float(loss.kd) * len(ids)
    return total / len(setting.held_out)


def train(setting: Setting, student: Any) -> None:
    """A few steps of forward KL from the teacher on each batch in turn."""
    size = setting.size
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=size.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, size.num_steps)
    batches = setting.train[size.num_calibration :].split(size.batch_size)
    for step in range(size.num_steps):
        ids = batches[step % len(batches)]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                teacher = setting.teacher(input_ids=ids).logits
            loss = kd_loss(student(input_ids=ids).logits, teacher).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    student.eval()


def measure(setting: Setting, ways: Sequence[Way] = WAYS) -> Iterator[Row]:
    """Each way in turn."""
    size = setting.size
    for way in ways:
        started = time.monotonic()
        student = way.student(setting)
        seconds = time.monotonic() - started
        start, end = kl(setting, student), float("nan")
        if way.is_trained:
            train(setting, student)
            end = kl(setting, student)
        row = Row(
            setting.name,
            way.name,
            way.compensate and way.name not in (TOP_LEFT, "uniform"),
            sum(parameter.numel() for parameter in student.parameters()),
            seconds,
            start,
            end,
            size.num_steps if way.is_trained else 0,
            size.batch_size * size.sample_tokens,
        )
        print(row, flush=True)
        yield row


def real() -> Setting:
    """SmolLM2 and English text."""
    from transformers import AutoModelForCausalLM

    size, folder = Size(), resolve_model(MODEL)
    with quiet_transformers():
        teacher: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = tokenised(running_text(["en"]), load_tokenizer(folder), size.sample_tokens)

    def full(samples: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor([ids for ids in samples if len(ids) == size.sample_tokens])
        return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]

    held_out = full(text.held_out["en"])[: size.num_held_out]
    return Setting(MODEL, teacher.eval(), full(text.train), held_out, size)


def tiny() -> Setting:
    """A random teacher and text: shows that it runs, not what it says."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = Size(
        hidden_size=12,
        intermediate_size=12,
        head_dim=2,
        num_heads=2,
        sample_tokens=8,
        num_calibration=4,
        num_held_out=2,
        batch_size=2,
        num_steps=2,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    teacher: Any = LlamaForCausalLM(config).eval()
    train, held_out = torch.randint(3, 40, (8, 8)), torch.randint(3, 40, (2, 8))
    return Setting("tiny", teacher, train, held_out, size)


def write(rows: Sequence[Row], folder: Path) -> Path:
    """Write ``<folder>/<device>/width.csv``."""
    known = provenance(torch.device("cpu"))
    path = folder / slug(known["device"]) / "width.csv"
    columns = (*(field.name for field in fields(Row)), *PROVENANCE)
    write_rows(path, columns, [{**vars(row), **known} for row in rows])
    return path


def main() -> None:
    """Measure every way and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a random model: shows that it runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, help="of distillation; 0: only where students start")
    given = parser.parse_args()
    setting = tiny() if given.tiny else real()
    ways: Sequence[Way] = WAYS
    if given.steps is not None:
        setting = replace(setting, size=replace(setting.size, num_steps=given.steps))
        ways = tuple(replace(way, is_trained=way.is_trained and given.steps > 0) for way in WAYS)
    rows: list[Row] = []
    for row in measure(setting, ways):
        rows.append(row)
        print(write(rows, given.out))


if __name__ == "__main__":
    main()
