"""TextBrewer 0.2.1, with a live teacher and with the logits that it keeps in memory.

It was last released in 2021 and runs with today's torch and transformers, save that it imports
tensorboard, which need not be there: nothing is logged. ``pip install --no-deps textbrewer``.
Its loss is the cross-entropy with the teacher instead of KL: another value, the same gradient. It
knows no T^2, which is given as a weight, and no bfloat16 but apex's, so that the models' forward
is wrapped in autocast. Kept logits belong to batches, which stay what they were in each epoch.
"""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mkd_fast.benchmarks.rivals.hf_trainer import Ordered
from mkd_fast.benchmarks.rivals.job import Job, Trained
from mkd_fast.data.batches import Batch, collate
from mkd_fast.data.tokens import TokenisedText


class _Rows(Dataset[int]):
    """Row numbers, which ``collate`` makes a batch of."""

    def __init__(self, text: TokenisedText) -> None:
        self._text = text

    def __len__(self) -> int:
        return len(self._text)

    def __getitem__(self, row: int) -> int:
        return row


@contextlib.contextmanager
def _tensorboard() -> Iterator[None]:
    """Its name can be imported meanwhile, whether it is installed or not."""
    stub = ModuleType("tensorboardX")
    stub.SummaryWriter = object  # type: ignore[attr-defined]
    known = sys.modules.setdefault("tensorboardX", stub)
    try:
        yield
    finally:
        if known is stub:
            del sys.modules["tensorboardX"]


def live(job: Job) -> Trained:
    """``GeneralDistiller``, which it recommends."""
    with _tensorboard():
        from textbrewer import GeneralDistiller
    return _trained(job, GeneralDistiller)


def kept(job: Job) -> Trained:
    """``BasicDistiller`` with ``is_caching_logits``; making them is not timed."""
    with _tensorboard():
        from textbrewer import BasicDistiller
    return _trained(job, BasicDistiller, is_caching_logits=True)


def _in_precision(job: Job, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(**inputs: Any) -> Any:
        with job.autocast():
            return forward(**inputs)

    return run


def _adapted(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits.float(), "losses": outputs.loss.float()}


def _trained(job: Job, distiller: Any, **options: Any) -> Trained:
    from textbrewer import DistillationConfig, TrainingConfig

    text, trained = job.text, Trained()

    def batch_of(rows: list[int]) -> dict[str, Tensor]:
        batch: Batch = collate(text, rows)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
        }

    class Distiller(distiller):  # type: ignore[misc]
        """Notes its steps, and writes no checkpoint."""

        def train_on_batch(self, batch: Any, args: Any) -> Any:
            inputs = batch if isinstance(batch, dict) else batch[0]
            trained.num_tokens.append(int(inputs["attention_mask"].sum()))
            loss, parts = super().train_on_batch(batch, args)
            trained.losses.append(loss.detach())
            return loss, parts

        def save_and_callback(self, *_: Any) -> None:
            pass

    order = [row for batch in job.batches for row in batch]
    how: dict[str, Any] = {"sampler": Ordered(order)} if job.has_our_order else {"shuffle": True}
    loader = DataLoader(_Rows(text), batch_size=job.batch_size, collate_fn=batch_of, **how)
    teacher, student = job.teacher(), job.student()
    for model in (teacher, student):
        model.forward = _in_precision(job, model.forward)
    optimizer, scheduler = job.optimizer(student)
    optimizer.register_step_post_hook(lambda *_: trained.ended.append(time.perf_counter()))
    spec = job.spec
    settings = DistillationConfig(
        temperature=spec.temperature,
        kd_loss_weight=spec.temperature**2,
        hard_label_weight=spec.ce_weight,
        **options,
    )
    training = TrainingConfig(output_dir=job.folder, log_dir=None, device="cpu")
    running = Distiller(training, settings, teacher, student, _adapted, _adapted)
    with running, contextlib.redirect_stderr(io.StringIO()):  # its bars
        running.train(
            optimizer,
            loader,
            num_epochs=1,
            scheduler=scheduler,
            max_grad_norm=job.optim.max_grad_norm,
        )
    return trained
