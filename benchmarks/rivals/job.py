"""What every trainer trains: models, text and the teacher's outputs, prepared once in a folder.

Teachers have 12 layers and students every other of them, copied. Weights and text are random:
speed and memory do not depend on what a model knows. Lengths are those of spoken commands, a few
tokens to 40 and 14 on average. An epoch is whole, so that every trainer reads every sample.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW

from mkd_fast import copy_init
from mkd_fast.data.batches import collate, evaluation_batches, length_grouped_batches
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.losses import LossSpec
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher import Fingerprints, capture
from mkd_fast.train.device import autocast, computes_faster_in_bfloat16
from mkd_fast.train.optim_config import OptimConfig, Precision

PAD_ID = 0
NUM_LABELS = 29
WARM_UP_STEPS = 2  # of an epoch, not timed: optimizers make their state in the first


@dataclass(frozen=True)
class Job:
    """One epoch of one student.

    Attributes:
        folder: where ``prepare`` puts everything.
        kind: "classifier", a BERT with ``NUM_LABELS`` labels, or "language model", a Llama.
        width: of both models.
        num_layers: of the teacher; the student has half.
        num_columns: the vocabulary of both.
        batch_size: samples a step.
        num_steps: of the epoch.
        mean_tokens: of a sample.
        longest: sample, in tokens.
        precision: as in a recipe; "float64" only where plain torch computes everything.
        has_our_order: batches are ours, whoever trains; else each deals them out as it would.
    """

    folder: str
    kind: Literal["classifier", "language model"]
    width: int = 384
    num_layers: int = 12
    num_columns: int = 10_000
    batch_size: int = 32
    num_steps: int = 16
    mean_tokens: int = 14
    longest: int = 40
    precision: Precision | Literal["float64"] = "auto"
    has_our_order: bool = False

    @property
    def spec(self) -> LossSpec:
        """The loss; GKDTrainer knows no temperature but 1, and no labels beside the teacher."""
        if self.kind == "classifier":
            return LossSpec(temperature=2.0, ce_weight=0.5)
        return LossSpec()

    @property
    def optim(self) -> OptimConfig:
        """Of ours, and what the others are set to: the rest are torch's defaults for all."""
        precision = "float32" if self.precision == "float64" else self.precision
        return OptimConfig(1, self.batch_size, precision=precision)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def is_bfloat16(self) -> bool:
        """Whether ``precision`` means bfloat16 autocast on this CPU."""
        device = torch.device("cpu")
        is_auto = self.precision == "auto" and computes_faster_in_bfloat16(device)
        return is_auto or self.precision == "bfloat16"

    @property
    def text(self) -> TokenisedText:
        """Samples of 3 tokens and more; of fewer steps, the beginning of that of more."""
        of_lengths, of_ids, of_labels = (np.random.default_rng(number) for number in range(3))
        num_samples = self.batch_size * self.num_steps
        spread = of_lengths.gamma(3.0, (self.mean_tokens - 3) / 3, num_samples)
        lengths = np.minimum(3 + spread, self.longest).astype(np.int64)
        ids = of_ids.integers(PAD_ID + 1, self.num_columns, lengths.sum(), np.int32)
        labels = of_labels.integers(0, NUM_LABELS, num_samples)
        return TokenisedText(ids, np.concatenate(([0], np.cumsum(lengths))), labels, PAD_ID)

    @property
    def batches(self) -> list[list[int]]:
        """Ours of the epoch, by row."""
        lengths = self.text.lengths
        return length_grouped_batches(lengths, batch_size=self.batch_size, seed=0, epoch=0)

    @property
    def cache(self) -> Path:
        """Of the teacher's outputs, computed as precisely as the student's."""
        return Path(self.folder) / f"cache {self.precision}"

    def teacher(self) -> Any:
        """The teacher, read from its files."""
        return self._model("teacher").eval().requires_grad_(False)

    def student(self) -> Any:
        """The student as it was copied; it has no dropout."""
        return self._model("student")

    def _model(self, name: str) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        kinds = {
            "classifier": AutoModelForSequenceClassification,
            "language model": AutoModelForCausalLM,
        }
        with quiet_transformers():
            model = kinds[self.kind].from_pretrained(Path(self.folder) / name)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # else it may stay mapped from its file
        return model.to(self.dtype)

    def _random_teacher(self) -> Any:
        from transformers import (
            BertConfig,
            BertForSequenceClassification,
            LlamaConfig,
            LlamaForCausalLM,
        )

        shape: dict[str, Any] = {
            "vocab_size": self.num_columns,
            "hidden_size": self.width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.width // 32 or 1,
            "intermediate_size": 4 * self.width,
            "max_position_embeddings": 512,
            "pad_token_id": PAD_ID,
            "initializer_range": 0.1,  # so that halves of the layers say something else
        }
        torch.manual_seed(0)
        if self.kind == "language model":
            return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape))
        shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(**shape)
        config.num_labels = NUM_LABELS
        return BertForSequenceClassification(config)

    def prepare(self) -> None:
        """Write the models."""
        teacher = self._random_teacher().eval()
        student = copy_init(teacher, depth="stride", num_layers=self.num_layers // 2)
        with quiet_transformers():
            teacher.save_pretrained(Path(self.folder) / "teacher")
            student.save_pretrained(Path(self.folder) / "student")

    def capture(self) -> float:
        """Write the cache; seconds that it took, the teacher being in memory."""
        teacher, text = self.teacher(), self.text
        rows = evaluation_batches(text.lengths, batch_size=2 * self.batch_size)
        started = time.perf_counter()
        capture(
            teacher,
            [collate(text, chosen) for chosen in rows],
            self.cache,
            keep="logits" if self.kind == "classifier" else ("hidden", "topk:64"),
            fingerprints=Fingerprints(teacher="benchmark"),
            autocast=torch.bfloat16 if self.is_bfloat16 else None,
            resume=False,
        )
        return time.perf_counter() - started

    def autocast(self) -> Any:
        """For those who leave precision to their users."""
        return autocast(torch.device("cpu"), self.optim.precision)

    def optimizer(self, model: nn.Module) -> tuple[AdamW, Any]:
        """AdamW and the learning rates of ours, for those who are handed them."""
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": self.optim.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.optim.learning_rate, fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate)

    def learning_rate(self, num_done: int) -> float:
        """The share of the peak at a step, by how many were done before."""
        rate = self.optim.learning_rate_at(num_done + 1, self.num_steps)
        return rate / self.optim.learning_rate


@dataclass
class Trained:
    """What a trainer tells of its steps, in their order.

    Attributes:
        losses: float32 ``[]`` tensors.
        num_tokens: real tokens, padding not counted.
        ended: seconds of ``time.perf_counter()`` after each step.
    """

    losses: list[torch.Tensor] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second, beyond ``WARM_UP_STEPS``."""
        seconds = self.ended[-1] - self.ended[WARM_UP_STEPS - 1]
        return sum(self.num_tokens[WARM_UP_STEPS:]) / seconds
