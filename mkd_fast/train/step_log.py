"""What a loop writes down of its steps, and the watch for steps that are not finite."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mkd_fast.checks import train as checks
from mkd_fast.files import make_folder, write_atomically, writing_into
from mkd_fast.losses import LossOutput
from mkd_fast.train.gauge import Gauge
from mkd_fast.train.processes import ALONE, Processes
from mkd_fast.train.shares import Share

T = TypeVar("T")
Sink = Callable[[Mapping[str, Any]], None]
_TERMS = ("loss", "kd", "ce", "hidden", "grad_norm")


class StepLog:
    """Averages over the steps between two lines, kept on the device until a line is written.

    Args:
        path: JSONL; rows of this model beyond ``done_steps`` (written by a run that was stopped
            after its last checkpoint) are dropped. None writes nothing down.
        model: the name in the rows.
        done_steps: steps that a checkpoint already covers.
        device: where losses live.
        num_steps: of the whole loop, written into each row.
        sinks: get each row as well.
        gauge: of speed and memory, read for each row; None: no such columns.
        processes: whose losses are averaged; rank 0 writes.

    Attributes:
        is_broken: float32 ``[]`` on the device, 1 from the first step on whose loss or gradient
            was not finite.
        tokens: real tokens seen.
    """

    def __init__(
        self,
        path: Path | None,
        model: str,
        done_steps: int,
        device: torch.device,
        num_steps: int = 0,
        sinks: Sequence[Sink] = (),
        gauge: Gauge | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self._path, self._model, self._processes = path, model, processes
        self._num_steps, self._sinks, self._gauge = num_steps, sinks, gauge
        self._step = self._written_step = done_steps
        self._sums = torch.zeros(len(_TERMS), device=device)
        self._broken_step = torch.zeros((), dtype=torch.int64, device=device)
        self._parts: list[Tensor] = []
        # samples of each part of the steps since the last check, and whether its loss is finite
        self._looked_at: dict[int, tuple[list[list[int]], Tensor]] = {}
        self._wait_seconds = 0.0
        self._tokens_before = self.tokens = 0
        self._since = time.monotonic()
        self.is_broken = torch.zeros((), device=device)
        if path is not None and processes.is_first:
            make_folder(path.parent)
            _drop_rows_beyond(path, model, done_steps)

    def timed(self, steps: Iterable[T]) -> Iterator[T]:
        """The same steps, noting how long each was waited for."""
        iterator = iter(steps)
        while True:
            started = time.monotonic()
            try:
                step = next(iterator)
            except StopIteration:
                return
            self._wait_seconds += time.monotonic() - started
            yield step

    def add(self, out: LossOutput) -> None:
        """Take note of a part of a step: what it is of the mean over the step."""
        self._parts.append(torch.stack([out.loss.detach(), out.kd, out.ce, out.hidden]))

    def see(self, step: int, share: Share, grad_norm: Tensor, num_tokens: int) -> None:
        """Take note of a step before the optimizer moves; nothing here waits for the device.

        Args:
            step: counted from 1; its parts were added.
            share: this process's own.
            grad_norm: of the step.
            num_tokens: of the step.
        """
        parts, self._parts = torch.stack(self._parts), []
        terms = torch.cat([parts.sum(0), grad_norm[None]])
        self._sums += terms
        self.is_broken = torch.maximum(self.is_broken, (~terms.isfinite().all()).float())
        is_first = (self._broken_step == 0) & (self.is_broken > 0)
        self._broken_step = torch.where(is_first, step, self._broken_step)
        self._step = step
        self._looked_at[step] = share.sample_ids, parts.isfinite().all(1)
        self.tokens += num_tokens
        if self._gauge is not None:
            self._gauge.see(share)

    def check(self) -> None:
        """Raise FloatingPointError if a step since the last check was not finite."""
        if self.is_broken.item():
            step = int(self._broken_step.item())
            samples, is_finite = self._looked_at[step]
            own = list(zip(samples, is_finite.tolist(), strict=True))
            parts = [part for of_one in self._processes.gathered(own) for part in of_one]
            # where no loss shows whose gradients they are, it may be those of any part
            suspects = [ids for ids, is_fine in parts if not is_fine] or [ids for ids, _ in parts]
            raise checks.not_finite(self._model, step, [i for ids in suspects for i in ids])
        self._looked_at.clear()

    def write(
        self, learning_rate: float, weights: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Append a row of averages, start anew, and return what a progress line shows.

        Args:
            learning_rate: of the last step.
            weights: of the loss, those that move, in it.
        """
        self.check()
        seconds = time.monotonic() - self._since
        num_seen = (self._step - self._written_step) * self._processes.size
        means_t = self._processes.sum(self._sums) / num_seen
        means = dict(zip(_TERMS, means_t.tolist(), strict=True))
        speed = (self.tokens - self._tokens_before) / seconds
        row = {"model": self._model, "step": self._step, **means, "learning_rate": learning_rate}
        row |= {"tokens_per_s": speed, "wait_share": self._wait_seconds / seconds}
        row |= {"num_steps": self._num_steps, "seconds": seconds, **(weights or {})}
        gauged = {} if self._gauge is None else self._gauge.read(seconds)
        row |= gauged
        if self._path is not None and self._processes.is_first:
            with writing_into(self._path.parent), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        for sink in self._sinks if self._processes.is_first else ():
            sink(row)
        self._sums.zero_()
        self._written_step, self._tokens_before = self._step, self.tokens
        shown = {name: value for name, value in means.items() if value and name != "grad_norm"}
        shown |= {"tokens/s": speed, "% waiting": 100 * self._wait_seconds / seconds}
        if "peak_share" in gauged:
            shown["% of peak"] = 100 * gauged["peak_share"]
        if gauged:
            shown["GB at most"] = gauged["peak_memory_bytes"] / 1e9
        self._wait_seconds, self._since = 0.0, time.monotonic()
        return shown


def _drop_rows_beyond(path: Path, model: str, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and not _is_beyond(line, model, step)]
    if kept != lines:
        write_atomically(path, kept)


def _is_beyond(line: bytes, model: str, step: int) -> bool:
    row = json.loads(line)
    return bool(row["model"] == model and row["step"] > step)
