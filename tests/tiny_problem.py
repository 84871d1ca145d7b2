"""Something to train in milliseconds, with dropout so that the random state matters."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkd_fast.data.batches import Batch
from mkd_fast.losses import LossOutput
from mkd_fast.train.loop import FitResult, Step, fit
from mkd_fast.train.optim_config import OptimConfig

NUM_ROWS, ROWS_A_STEP, TOKENS_A_ROW = 24, 4, 3
STEPS_AN_EPOCH = NUM_ROWS // ROWS_A_STEP
OPTIM = OptimConfig(
    epochs=2, learning_rate=0.05, precision="float32", checkpoint_every=3, log_every=4
)
NUM_STEPS = OPTIM.epochs * STEPS_AN_EPOCH


class Model(nn.Module):
    """The mean of token embeddings, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embeddings = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 3)

    @property
    def base_model(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor) -> Tensor:
        mixed = functional.dropout(self.embeddings(input_ids).mean(1), 0.2, self.training)
        return self.head(mixed)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named_parameters()}


@dataclass
class Problem:
    """The label is the first token modulo 3.

    Args:
        meddle: called with the step's number and its loss; returns the loss that is trained on.

    Attributes:
        before_step: the weights that each step found.
        rows_of_step: the rows of each step.
        model: what is trained.
    """

    meddle: Callable[[int, Tensor, Model], Tensor] = lambda number, loss, model: loss
    first_step: int = 1
    before_step: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    rows_of_step: dict[int, list[int]] = field(default_factory=dict)
    model: Model | None = None
    weights: dict[str, float] = field(default_factory=dict)

    def at(self, step: int, num_steps: int) -> "Problem":
        return self

    def batches(self, epoch: int) -> list[list[int]]:
        rows = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(epoch))
        return [part.tolist() for part in rows.split(ROWS_A_STEP)]

    def read(self, rows: Sequence[int]) -> Step:
        sample_ids = torch.tensor(rows)
        input_ids = (sample_ids[:, None] * torch.tensor([1, 3, 5]) + 1) % 11
        mask = torch.ones_like(input_ids)
        return Step(Batch(input_ids, mask, input_ids[:, 0] % 3, sample_ids))

    def num_counted(self, step: Step) -> int:
        return len(step.batch.labels)

    def loss(self, model: Model, step: Step) -> LossOutput:
        self.model = model
        number = self.first_step + len(self.before_step)
        self.before_step[number] = model.weights()
        self.rows_of_step[number] = step.batch.sample_ids.tolist()
        loss = functional.cross_entropy(model(step.batch.input_ids), step.batch.labels)
        loss = self.meddle(number, loss, model)
        nothing = torch.zeros(())
        return LossOutput(loss, kd=nothing, ce=loss.detach(), hidden=nothing)


def train(
    folder: Path, problem: Problem | None = None, config: OptimConfig = OPTIM
) -> tuple[Model, FitResult]:
    """Train a new model on the problem, from the folder's checkpoint where there is one."""
    model = Model()
    result = fit(
        model,
        problem or Problem(),
        config,
        name="model",
        checkpoint_path=folder / "checkpoint.pt",
        metrics_path=folder / "metrics.jsonl",
        seed=7,
    )
    return model, result


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """Metric rows without what the clock decides."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ("tokens_per_s", "wait_share", "seconds", "peak_share", "peak_memory_bytes")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]
