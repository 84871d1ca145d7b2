"""The training loop, for teacher, student and rival alike: one function, read top to bottom.

No step waits for the device: batches are made ahead by a thread and go over asynchronously, and
whether loss and gradients are finite is decided where they are. A step that is not finite moves
nothing, nor does any after it; the host learns of it when it next writes a line, and stops.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from mkd_fast import progress
from mkd_fast.data.batches import Batch
from mkd_fast.losses import LossOutput
from mkd_fast.stopping import Terminated, sigterm_noted
from mkd_fast.teacher.cache import CachedBatch
from mkd_fast.train import checkpoint, parallel
from mkd_fast.train.attention import attention
from mkd_fast.train.device import autocast
from mkd_fast.train.gauge import Gauge
from mkd_fast.train.layer_calls import layer_calls
from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.optimizer import freeze, make_optimizer
from mkd_fast.train.prefetch import prefetch
from mkd_fast.train.processes import ALONE, Processes
from mkd_fast.train.shares import Share, in_the_mean, share_of
from mkd_fast.train.step_log import Sink, StepLog


@dataclass(frozen=True)
class Step:
    """What one step needs: a batch and, when distilling, what the teacher said of it."""

    batch: Batch
    target: CachedBatch | None = None


class Task(Protocol):
    """What is trained for: which rows make a step, how they are read, and their loss.

    A step may be taken in parts, each read, computed and differentiated by itself.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """The loss's weights that are another at every step, by name."""

    def at(self, step: int, num_steps: int) -> Self:
        """The task as it is at a step (from 1)."""

    def batches(self, epoch: int) -> Sequence[Sequence[int]]:
        """The rows of each step of an epoch; the same at every call."""

    def read(self, rows: Sequence[int]) -> Step:
        """A step or a part of one, on the host. Called by a thread, ahead of its turn."""

    def num_counted(self, step: Step) -> int:
        """What the loss of a step, which is on the host, is the mean over: samples or tokens."""

    def loss(self, model: nn.Module, step: Step) -> LossOutput:
        """The loss of a step that is on the model's device, or of a part of one."""


@dataclass(frozen=True)
class FitResult:
    """What a finished loop cost.

    Attributes:
        steps: optimizer steps.
        tokens: real tokens seen, padding not counted.
        seconds: in the loop, over all its resumptions.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module,
    task: Task,
    config: OptimConfig,
    *,
    name: str,
    checkpoint_path: Path | None = None,
    metrics_path: Path | None = None,
    sinks: Sequence[Sink] = (),
    seed: int,
    after_step: Callable[[FitResult], None] | None = None,
    shows_progress: bool = True,
    processes: Processes = ALONE,
) -> FitResult:
    """Train ``model`` in place, from the last checkpoint where there is one.

    Args:
        model: on the device it is to be trained on.
        task: steps and loss.
        config: the choices of ``[finetune]`` or ``[train]``.
        name: of the model, in metric rows and progress lines.
        checkpoint_path: written every ``config.checkpoint_every`` steps and at the end; None
            writes none.
        metrics_path: JSONL; one row every ``config.log_every`` steps and with every checkpoint;
            None writes none.
        sinks: each gets these rows as well.
        seed: of dropout.
        after_step: called after each step with what there was so far. Its time is not counted, and
            it may evaluate the model, if it leaves the random state as it is.
        shows_progress: False is silent.
        processes: all of which call this with the same arguments. Each computes its rows of every
            step, and the loss is the mean over all rows of the step, as by one process, and as of
            a step that is taken whole where ``config.accumulate`` takes it in parts. With
            ``config.parallel == "fsdp"`` the model's parameters are dealt out, and stay so.

    Raises:
        FloatingPointError: loss or gradients were not finite; names the step and its samples. No
            parameter has moved since the step before.
        OSError: a checkpoint or metric row could not be written; the previous one is kept.
        Terminated: SIGTERM came, and a checkpoint was written at the end of the step (of several
            processes: at the next one that all agree on).
    """
    processes.seed(seed)
    device = next(model.parameters()).device
    rows = [rows for epoch in range(config.epochs) for rows in task.batches(epoch)]
    freeze(model, config.freeze)
    trained_over = parallel.over(model, config.parallel, processes)
    optimizer = make_optimizer(model, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    result = done = _restored(checkpoint_path, model, optimizer, processes)
    started = time.monotonic() - done.seconds
    gauge = Gauge(model, device, config.precision)
    log = StepLog(metrics_path, name, done.steps, device, len(rows), sinks, gauge, processes)
    read = partial(share_of, task=task, num_parts=config.accumulate, processes=processes)
    shares = prefetch(read, rows[done.steps :])
    model.train()
    with (
        sigterm_noted() as is_terminated,
        closing(shares),
        attention(model, config, device) as choose_attention,
        layer_calls(model, compile=config.compile, checkpointing=config.checkpointing),
        progress.bar(name, len(rows), done.steps, shown=shows_progress) as bar,
    ):

        def told(share: Share) -> tuple[int, int, int]:
            return share.num_counted, share.num_tokens, is_terminated()

        summed = processes.sums_ahead(log.timed(shares), told)
        for number, (share, sums) in enumerate(summed, start=done.steps + 1):
            num_counted, num_tokens, num_terminated = sums
            now = task.at(number, len(rows))
            for part in share.parts:
                parallel.sum_gradients(trained_over, after=part is share.parts[-1])
                choose_attention(part.step.batch)
                step = to_device(part.step, device)
                with autocast(device, config.precision):
                    out = now.loss(trained_over, step)
                out = in_the_mean(out, part.num_counted, num_counted, processes.size)
                out.loss.backward()
                log.add(out)
            norm = nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            log.see(number, share, parallel.whole(norm), num_tokens)
            optimizer.found_inf = log.is_broken  # type: ignore[attr-defined]  # fused: no move
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(number, len(rows)) * group.get("times", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stops = num_terminated > 0 or (processes.size == 1 and is_terminated())
            is_saved = number == len(rows) or number % config.checkpoint_every == 0 or stops
            if is_saved or number % config.log_every == 0:
                bar.update(number, log.write(optimizer.param_groups[0]["lr"], now.weights))
            result = FitResult(number, done.tokens + log.tokens, time.monotonic() - started)
            if is_saved and checkpoint_path is not None:
                checkpoint.save(checkpoint_path, model, optimizer, vars(result), processes)
            if after_step is not None:
                after_step(result)
                started = time.monotonic() - result.seconds
            if stops:
                raise Terminated
        if any(processes.gathered(is_terminated())):  # in the last steps
            raise Terminated
    model.eval()
    return result


def _restored(
    path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes
) -> FitResult:
    """What there was so far, with the state that it left."""
    found = None if path is None else checkpoint.restore(path, model, optimizer, processes)
    return FitResult(**(found or {}))


T = TypeVar("T")


def to_device(value: T, device: torch.device) -> T:
    """A dataclass, tuple or tensor with its tensors on the device; others as they are."""
    if device.type == "cpu":
        return value
    if isinstance(value, (Tensor, CachedBatch)):  # which moves a teacher's head only once
        return value.pin_memory().to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: to_device(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **moved)
    return value
