"""A process's share of a step, the parts it is taken in, and what each is of the mean over all.

A loss is a mean over what counts: samples, or tokens. Of a step that is taken in parts, by one
process or several, part i with c_i counted ones of the step's C has the share c_i / C in it:

    mean = sum_i (c_i / C) mean_i,    and so are the gradients

so that a part with few of them weighs little. C is counted where the parts are read, on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from mkd_fast.losses import LossOutput
from mkd_fast.train.processes import ALONE, Processes

if TYPE_CHECKING:
    from mkd_fast.train.loop import Step, Task


@dataclass(frozen=True)
class Part:
    """Rows that are computed and differentiated at once.

    Args:
        step: the rows, as read.
        num_counted: of them, what the loss is the mean over; 0 where the rows only stand in.
    """

    step: "Step"
    num_counted: int


@dataclass(frozen=True)
class Share:
    """What one process has of a step.

    Args:
        parts: one after the other, as many in every process.
        num_counted: in all of them.
        num_tokens: their tokens, padding not counted.
        num_pairs: of tokens of one sample, which attention compares; a token is one with itself.
    """

    parts: tuple[Part, ...]
    num_counted: int
    num_tokens: int
    num_pairs: int

    @property
    def sample_ids(self) -> list[list[int]]:
        """Of each part."""
        return [part.step.batch.sample_ids.tolist() for part in self.parts]


def share_of(
    rows: Sequence[int], task: "Task", num_parts: int = 1, processes: Processes = ALONE
) -> Share:
    """Read this process's rows of a step.

    Where there are no rows for a part, a row is read that counts nothing: the other processes wait
    for its gradients.

    Args:
        rows: of the step.
        task: which reads and counts them.
        num_parts: the most that the rows are taken in, in their order.
        processes: who share them.
    """
    own = processes.share(rows)
    most = -(-len(rows) // processes.size)  # rows of a process
    num_parts = max(1, min(num_parts, most))
    cuts = [most * number // num_parts for number in range(num_parts + 1)]
    parts, lengths = list[Part](), [torch.zeros(0, dtype=torch.int64)]
    for begin, end in pairwise(cuts):
        if not own[begin:end]:
            parts.append(Part(task.read(rows[:1]), 0))
            continue
        step = task.read(own[begin:end])
        parts.append(Part(step, task.num_counted(step)))
        lengths.append(step.batch.attention_mask.sum(1))
    lengths_B = torch.cat(lengths)
    return Share(
        tuple(parts),
        sum(part.num_counted for part in parts),
        int(lengths_B.sum()),
        int((lengths_B * lengths_B).sum()),
    )


def in_the_mean(out: LossOutput, num_own: int, num_counted: int, num_processes: int) -> LossOutput:
    """The mean over a part as what it is of the mean over the step.

    A loss of which a term is not finite becomes NaN, and so do its gradients, which go to all
    processes: none of them moves.

    Args:
        out: of the part.
        num_own: what counts in it.
        num_counted: in the whole step, of all processes.
        num_processes: by which DDP and FSDP2 divide the sum of the gradients.
    """
    if num_processes == 1 and num_own == num_counted:
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
