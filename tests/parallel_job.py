"""Data-parallel trainings, as torchrun starts them: ``parallel_job.py FOLDER``, by 4 processes.

They train in groups of 2 and 4, with each way of dividing the model, and each leaves in FOLDER
what it made or ended with, as ``NAME.RANK``. Without dropout, so that what differs is rounding.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from file_limit import file_size_limit
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from mkd_fast.data.batches import Batch
from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.losses import LossOutput
from mkd_fast.stopping import Terminated
from mkd_fast.train.loop import Step, fit
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.parallel import over, sum_gradients, whole, whole_state
from mkd_fast.train.processes import ALONE, Processes, join

NUM_PROCESSES, NUM_ROWS, ROWS_A_STEP = 4, 18, 8  # the last step of an epoch has 2 rows
OPTIM = OptimConfig(
    epochs=3, learning_rate=0.02, precision="float32", checkpoint_every=4, log_every=2
)
NUM_STEPS = 9
WHOLE = [(size, parallel) for size in (2, 4) for parallel in ("ddp", "fsdp")]
IN_PARTS = [(2, "ddp"), (4, "fsdp")]  # 2 rows of a step are fewer than 4 processes' parts
# how many processes, and how they divide the model: of a training that was stopped, and of what
# resumed it
RESUMED = [((2, "fsdp"), (4, "ddp")), ((2, "ddp"), (1, "ddp")), ((1, "ddp"), (4, "fsdp"))]
Meddle = Callable[[int, Tensor], Tensor]


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=23, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=8, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


class Problem:
    """The label is the first token modulo 3; a row in five has none.

    Args:
        meddle: called with the step's number and this process's loss, which it may change.
    """

    def __init__(self, meddle: Meddle = lambda number, loss: loss) -> None:
        self.meddle, self.number = meddle, 0
        self.weights: dict[str, float] = {}

    def at(self, step: int, num_steps: int) -> "Problem":
        return self

    def batches(self, epoch: int) -> list[list[int]]:
        rows = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(epoch))
        return [part.tolist() for part in rows.split(ROWS_A_STEP)]

    def read(self, rows: list[int]) -> Step:
        sample_ids = torch.tensor(rows)
        input_ids = (sample_ids[:, None] * torch.tensor([1, 3, 5, 7]) + 1) % 23
        mask = torch.arange(4) < 2 + sample_ids[:, None] % 3
        labels = torch.where(sample_ids % 5 == 1, NO_LABEL, input_ids[:, 0] % 3)
        return Step(Batch(input_ids, mask.long(), labels, sample_ids))

    def num_counted(self, step: Step) -> int:
        return int((step.batch.labels != NO_LABEL).sum())

    def loss(self, model: Any, step: Step) -> LossOutput:
        self.number += 1
        batch = step.batch
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        loss = functional.cross_entropy(out.logits, batch.labels, reduction="sum")
        loss = loss / (batch.labels != NO_LABEL).sum().clamp(min=1)
        loss = self.meddle(self.number, loss)
        nothing = torch.zeros(())
        return LossOutput(loss, kd=nothing, ce=loss.detach(), hidden=nothing)


def train(
    folder: Path,
    processes: Processes,
    parallel: str,
    problem: Problem | None = None,
    dtype: torch.dtype = torch.float32,
    **optim: Any,
) -> dict[str, Tensor]:
    """Train a new model, from the folder's checkpoint where there is one; its whole state."""
    model = make_model().to(dtype)
    fit(
        model,
        problem or Problem(),
        replace(OPTIM, parallel=parallel, **optim),
        name="model",
        checkpoint_path=folder / "checkpoint",
        metrics_path=folder / "metrics.jsonl",
        seed=7,
        shows_progress=False,
        processes=processes,
    )
    return whole_state(model)


def gradients_of_parts(folder: Path, processes: Processes, *, parallel: str) -> list[list[Tensor]]:
    """Of a model's bias, after each of two parts of a step, where there are any."""
    model = make_model()
    trained_over, found = over(model, parallel, processes), []
    ids = torch.full((1, 4), 1 + processes.rank)
    for is_last in (False, True):
        sum_gradients(trained_over, after=is_last)
        trained_over(input_ids=ids).logits.square().sum().backward()
        bias = model.classifier.bias.grad
        found.append([] if bias is None else [whole(bias).clone()])
    return found


class StoppedError(Exception):
    """All processes stop."""


def stop_at(step: int) -> Meddle:
    def meddle(number: int, loss: Tensor) -> Tensor:
        if number == step:
            raise StoppedError
        return loss

    return meddle


def end_of(
    folder: Path, processes: Processes, *, parallel: str, meddle: Meddle = lambda number, loss: loss
) -> str:
    """What a training ends with."""
    try:
        train(folder, processes, parallel, Problem(meddle))
    except (StoppedError, Terminated, FloatingPointError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    everyone = join(torch.device("cpu"))
    pair = Processes(everyone.rank, 2, dist.new_group([0, 1]), dist.new_group([0, 1]))
    of = {1: ALONE, 2: pair, 4: everyone}

    def together(name: str, size: int, work: Callable[[Path, Processes], Any]) -> None:
        if everyone.rank < size:
            number = len(list(folder.glob(f"{name}.{everyone.rank}*")))
            made = work(folder / name, of[size])
            torch.save(made, folder / f"{name}.{everyone.rank}.{number}")
        everyone.wait_for_all()

    for size, parallel in WHOLE:
        together(f"{parallel}-{size}", size, partial(train, parallel=parallel))
    for size, parallel in IN_PARTS:
        in_parts = partial(train, parallel=parallel, accumulate=2, checkpointing=True)
        together(f"{parallel}-parts-{size}", size, in_parts)
    for (size, parallel), (size_then, parallel_then) in RESUMED:
        name = f"{parallel}-{size}-{parallel_then}-{size_then}"
        together(name, size, partial(end_of, parallel=parallel, meddle=stop_at(7)))
        together(name, size_then, partial(train, parallel=parallel_then))

    for parallel in ("ddp", "fsdp"):
        together(f"summed-{parallel}", 2, partial(gradients_of_parts, parallel=parallel))

    def by_rank_1(act: Callable[[Tensor], Tensor], step: int) -> Meddle:
        return lambda number, loss: act(loss) if (number, everyone.rank) == (step, 1) else loss

    def terminate(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    spoilt_gradients = by_rank_1(lambda loss: loss * torch.nan, 3)
    spoilt_value = by_rank_1(lambda loss: loss + torch.inf, 3)
    together("nan", 2, partial(end_of, parallel="ddp", meddle=spoilt_gradients))
    together("inf", 2, partial(end_of, parallel="fsdp", meddle=spoilt_value))
    together("sigterm", 2, partial(end_of, parallel="ddp", meddle=by_rank_1(terminate, 5)))
    together("sigterm", 2, partial(train, parallel="ddp"))
    together("full", 2, partial(end_of, parallel="ddp", meddle=stop_at(7)))
    with file_size_limit(2_000 if everyone.rank == 1 else 1_000_000):
        together("full", 2, partial(end_of, parallel="ddp"))
    together("full", 2, lambda at, all_: sorted(path.name for path in at.iterdir()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
