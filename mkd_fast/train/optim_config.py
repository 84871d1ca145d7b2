"""The choices of a training: ``[finetune]`` and ``[train]`` of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mkd_fast.checks import recipe as checks
from mkd_fast.train.schedule import Shape, share_of_peak

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class OptimConfig:
    """``[finetune]`` (teacher) and ``[train]`` (student): one loop, so one set of choices.

    Args:
        epochs: passes over the training text.
        batch_size: sentences a step.
        accumulate: parts that a step's sentences are taken in, one after the other: gradients are
            those of the whole step, in the memory of a part.
        learning_rate: the peak.
        head_rate: how many times that the head learns at: what is not the base model, and its
            pooler. A new head on an encoder whose states are much alike (contrastive training)
            wants about 10, or the encoder gives way before the head can tell them apart.
        schedule: how the rate goes: "linear", "cosine", "wsd" or "constant", see ``schedule.py``.
        warmup: share of the steps in which it rises, in [0, 1].
        decay: share of the steps in which it falls under "wsd", in [0, 1].
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: gradients are clipped to this norm.
        optimizer: "adamw" moves all parameters in one kernel; "adamw_foreach" in one for each
            operation of AdamW, and waits for the device at every step; "adamw8bit" keeps AdamW's
            moments in 8 bits, in a quarter of the memory, by torchao.
        precision: "auto" is bfloat16 autocast where the device computes faster in it.
        packing: samples share rows of up to so many tokens, each read as if it were alone; 0: a row
            each, beside others of about the same length.
        compile: "layers" compiles the model's layers, see ``layer_calls.py``; "cuda_graphs" records
            them too, of CUDA devices.
        checkpointing: activations within a layer are not kept but computed again: the same
            numbers, for a third more time in much less memory.
        attention: "model" computes attention as the model was loaded; "eager" by plain matrix
            products; "auto" by these where they are faster, see ``attention.py``.
        freeze: beginnings of parameter names that stay as they are.
        checkpoint_every: steps between checkpoints.
        log_every: steps between progress lines and metric rows.
        parallel: of several processes: "ddp", each has the whole model; "fsdp", each its share.
    """

    epochs: int = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 5e-5
    head_rate: float = 1.0
    schedule: Shape = "linear"
    warmup: float = 0.1
    decay: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    optimizer: Literal["adamw", "adamw_foreach", "adamw8bit"] = "adamw"
    precision: Precision = "auto"
    packing: int = 0
    compile: Literal["no", "layers", "cuda_graphs"] = "no"
    checkpointing: bool = False
    attention: Literal["auto", "model", "eager"] = "auto"
    freeze: tuple[str, ...] = ()
    checkpoint_every: int = 100
    log_every: int = 10
    parallel: Literal["ddp", "fsdp"] = "ddp"

    AS_BEFORE: ClassVar[Mapping[str, Any]] = {  # see recipe.decisive_settings
        "accumulate": 1,
        "packing": 0,
        "compile": "no",
        "checkpointing": False,
        "attention": "model",
        "head_rate": 1.0,
        "optimizer": "adamw",
        "schedule": "linear",
        "decay": 0.1,  # which "linear" does not look at
        "parallel": "ddp",
    }

    def __post_init__(self) -> None:
        place = "recipe: [finetune], [train]"
        for key in ("epochs", "batch_size", "learning_rate", "head_rate", "max_grad_norm"):
            checks.positive(place, key, getattr(self, key))
        for key in ("accumulate", "checkpoint_every", "log_every"):
            checks.positive(place, key, getattr(self, key))
        for key in ("weight_decay", "packing"):
            checks.not_negative(place, key, getattr(self, key))
        for key in ("warmup", "decay"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise checks.share_out_of_range(place, key, getattr(self, key))
        if self.compile == "cuda_graphs" and (self.accumulate > 1 or self.checkpointing):
            raise checks.graphs_replayed_within_a_step()

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """The learning rate of a step (from 1)."""
        warmup, decay = self.warmup, self.decay
        share = share_of_peak(step, num_steps, self.schedule, warmup=warmup, decay=decay)
        return self.learning_rate * share
