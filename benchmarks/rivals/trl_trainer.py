"""TRL's ``GKDTrainer`` on its data alone: the divergence to a live teacher, no generation.

``DistillationTrainer`` only learns from what the student generates, which is another task.
``lmbda=0`` generates nothing and ``beta=0`` is forward KL; GKDTrainer's loss has temperature 1,
whatever its config says. Its gradient checkpointing, on by default, is off: memory is no issue
here, and it would cost a third of its speed.
"""

import os
import warnings
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from datasets import Dataset
from transformers import PrinterCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

from mkd_fast.benchmarks.rivals.hf_trainer import Noted, Ordered, arguments, tokenizer
from mkd_fast.benchmarks.rivals.job import Job, Trained
from mkd_fast.quiet import quiet_transformers


class _Trainer(GKDTrainer):
    """Keeps its losses, and takes our batches where it is told to."""

    def __init__(self, job: Job, trained: Trained, **arguments: Any) -> None:
        model = job.student()
        super().__init__(
            model, teacher_model=job.teacher(), optimizers=job.optimizer(model), **arguments
        )
        self.job, self.trained = job, trained

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        self.trained.num_tokens.append(int(inputs["attention_mask"].sum()))
        parent: Any = super()
        loss = parent.compute_loss(model, inputs, *arguments, **options)
        self.trained.losses.append(loss.detach())
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.job.has_our_order:
            return super()._get_train_sampler(train_dataset)
        return Ordered([row for batch in self.job.batches for row in batch])


def live(job: Job) -> Trained:
    """A prompt of one token, and the rest its answer."""
    text, trained = job.text, Trained()
    columns = {
        "input_ids": [text.row(row) for row in range(len(text))],
        "completion_mask": [[0] + [1] * int(length - 1) for length in text.lengths],
        "prompt": [""] * len(text),
    }
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL's own use of transformers
        settings = GKDConfig(
            **arguments(job),
            lmbda=0.0,
            beta=0.0,
            gradient_checkpointing=False,
            max_length=job.longest,
        )
        trainer = _Trainer(
            job,
            trained,
            args=settings,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer(),
            callbacks=[Noted(trained)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trained
