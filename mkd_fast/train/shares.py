"""A process's share of a step: its rows, and the part that they have in the mean over all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mkd_fast.data.tokens import NO_LABEL
from mkd_fast.losses import LossOutput
from mkd_fast.train.processes import Processes

if TYPE_CHECKING:
    from mkd_fast.train.loop import Step


@dataclass(frozen=True)
class Share:
    """What one process has of a step.

    Args:
        step: its rows.
        num_counted: of them, what has a label: samples, or tokens.
        num_tokens: their tokens, padding not counted.
    """

    step: "Step"
    num_counted: int
    num_tokens: int


def share_of(
    rows: Sequence[int], read: Callable[[Sequence[int]], "Step"], processes: Processes
) -> Share:
    """Read this process's rows; where there are fewer than processes, one row that counts nothing.

    For a process without rows must take part in the step: the others wait for its gradients.
    """
    own = processes.share(rows)
    step = read(own or rows[:1])
    if not own:
        return Share(step, 0, 0)
    batch = step.batch
    return Share(step, int((batch.labels != NO_LABEL).sum()), int(batch.attention_mask.sum()))


def in_the_mean(out: LossOutput, num_own: int, num_counted: int, num_processes: int) -> LossOutput:
    """The mean over a process's own rows as its part in the mean over those of all.

    A loss of which a term is not finite becomes NaN, and so do its gradients, which go to all
    processes: none of them moves.

    Args:
        out: of the process's rows.
        num_own: counted rows or tokens of them.
        num_counted: of all processes.
        num_processes: by which DDP and FSDP2 divide the sum of the gradients.
    """
    if num_processes == 1:
        return out
    share = num_own * num_processes / max(num_counted, 1)
    terms = torch.stack([out.loss.detach(), out.kd, out.ce, out.hidden])
    nothing = terms.sum() * 0.0
    return LossOutput(
        out.loss * (share + nothing),
        kd=out.kd * share,
        ce=out.ce * share,
        hidden=out.hidden * share,
    )
