"""``transformers.Trainer`` with the loss that its users write, from a live teacher or its logits.

Everything that does not decide what is computed is the Trainer's default.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Sampler
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from mkd_fast.benchmarks.rivals.job import PAD_ID, Job, Trained
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher import TeacherCache


class Ordered(Sampler[int]):
    """Rows in an order that was settled before."""

    def __init__(self, rows: list[int]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)


class Noted(TrainerCallback):
    """When each step ended."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take note."""
        self._trained.ended.append(time.perf_counter())


class KDTrainer(Trainer):
    """Temperature-scaled KL times T^2, and cross-entropy with the labels."""

    def __init__(self, job: Job, trained: Trained, teacher: Any = None, **arguments: Any) -> None:
        model = job.student()
        super().__init__(model, optimizers=job.optimizer(model), **arguments)
        self.job, self.trained, self.teacher = job, trained, teacher

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As in every blog."""
        self.trained.num_tokens.append(int(inputs["attention_mask"].sum()))
        labels = inputs.pop("labels")
        teacher_logits = inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        if teacher_logits is None:
            with torch.no_grad():
                teacher_logits = self.teacher(**inputs).logits
        spec = self.job.spec
        kd = functional.kl_div(
            functional.log_softmax(outputs.logits / spec.temperature, dim=-1),
            functional.softmax(teacher_logits / spec.temperature, dim=-1),
            reduction="batchmean",
        )
        ce = functional.cross_entropy(outputs.logits, labels)
        loss = spec.temperature**2 * kd + spec.ce_weight * ce
        self.trained.losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        job = self.job
        if job.has_our_order:
            return Ordered([row for batch in job.batches for row in batch])
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # what its sampler does in an epoch of more than 200 batches; in fewer it sorts less
        lengths = job.text.lengths.tolist()
        return Ordered(get_length_grouped_indices(lengths, job.batch_size, mega_batch_mult=50))


def tokenizer() -> PreTrainedTokenizerFast:
    """One that pads, which is all that a collator wants of it."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"[PAD]": PAD_ID}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")


def arguments(job: Job) -> dict[str, Any]:
    """What makes a Trainer do the same steps, for ``TrainingArguments``."""
    return {
        "output_dir": job.folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.batch_size,
        "max_grad_norm": job.optim.max_grad_norm,
        "bf16": job.is_bfloat16,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
    }


def live(job: Job, *, is_grouped: bool = False) -> Trained:
    """With a live teacher; ``is_grouped`` batches samples of about the same length."""
    return _trained(job, job.teacher(), is_grouped=is_grouped)


def kept(job: Job, *, is_grouped: bool = False) -> Trained:
    """With the teacher's logits in a column of the dataset."""
    return _trained(job, None, is_grouped=is_grouped)


def _trained(job: Job, teacher: Any, *, is_grouped: bool) -> Trained:
    text, trained = job.text, Trained()
    columns: dict[str, Any] = {
        "input_ids": [text.row(row) for row in range(len(text))],
        "label": text.labels,
    }
    if teacher is None:
        said = TeacherCache.open(job.cache).batch(range(len(text))).teacher
        assert isinstance(said, Tensor), "the cache has logits"
        columns["teacher_logits"] = said.float().numpy()
    with quiet_transformers():
        trainer = KDTrainer(
            job,
            trained,
            teacher,
            args=TrainingArguments(
                **arguments(job),
                remove_unused_columns=False,
                train_sampling_strategy="group_by_length" if is_grouped else "random",
            ),
            train_dataset=Dataset.from_dict(columns),
            data_collator=DataCollatorWithPadding(tokenizer()),
            callbacks=[Noted(trained)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trained
