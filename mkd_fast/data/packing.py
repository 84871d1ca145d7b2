"""Several samples in a row of a batch, which a model reads as if each were alone.

``packed_batches`` shuffles all samples and packs each pool of them into rows, the longest first,
each into the first row with room for it. Which samples make which step depends on the arguments
only. A step is so many whole rows that it has ``batch_size`` samples on average.

    samples a a a, b b, c, d d d d, e in two rows of up to 6 tokens:
    input_ids     a a a b b c      d d d d e .
    position_ids  0 1 2 0 1 0      0 1 2 3 0 0
    segments      0 0 0 1 1 2      0 0 0 0 1 -1

Source: first-fit decreasing (Johnson 1973), which needs at most 11/9 of the fewest rows, and one.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkd_fast.checks import data as checks

# Samples packed together: the more, the fuller the rows and the less mixing of lengths.
POOL_SAMPLES = 1024
_PADDING = -1
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Packed:
    """R rows of up to P tokens, each of several samples; all tensors int64.

    ``input_ids``; ``position_ids``, from 0 in each sample, 0 in what a row is filled up with;
    ``segments``, the number of the sample in its row, -1 where it is filled up; all [R, P].
    ``places`` [B, S] are where the tokens of the padded batch are among the R * P; 0 of padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    places: Tensor


def packed_batches(
    lengths: Sequence[int] | IntArray, *, batch_size: int, row_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Deal the samples out to shuffled steps, every one exactly once, row by row.

    Args:
        lengths: tokens of each sample.
        batch_size: samples in a step, on average; a step has one row at least.
        row_tokens: the most tokens in a row.
        seed: with epoch, what the order depends on.
        epoch: counts from 0.

    Raises:
        ValueError: a sample is longer than a row.
    """
    num_tokens = [int(length) for length in lengths]
    longest = max(num_tokens, default=0)
    if longest > row_tokens:
        raise checks.max_tokens_too_small("packed_batches", row_tokens, longest)
    rng = random.Random(f"{seed}/{epoch}")
    samples = list(range(len(num_tokens)))
    rng.shuffle(samples)
    rows = []
    for begin in range(0, len(samples), POOL_SAMPLES):
        rows += first_fit_decreasing(samples[begin : begin + POOL_SAMPLES], num_tokens, row_tokens)
    rng.shuffle(rows)
    num_steps = max(1, round(len(samples) / batch_size))
    rows_a_step = max(1, round(len(rows) / num_steps))
    return [
        [sample for row in rows[begin : begin + rows_a_step] for sample in row]
        for begin in range(0, len(rows), rows_a_step)
    ]


def first_fit_decreasing(
    samples: Iterable[int], num_tokens: Sequence[int], row_tokens: int
) -> list[list[int]]:
    """Rows of samples: the longest first, each into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -num_tokens[sample]):
        needed = num_tokens[sample]
        number = next((n for n, left in enumerate(room) if left >= needed), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[number].append(sample)
        room[number] -= needed
    return rows


def packed(input_ids: Tensor, attention_mask: Tensor, row_tokens: int, pad_id: int) -> Packed:
    """A batch that is padded on the right, packed: its samples in their order, each in one row.

    Those of ``packed_batches`` need no more rows than these were dealt out to, since of all ways to
    cut a sequence into rows, to go on until a row is full gives the fewest.
    """
    mask = attention_mask.numpy()
    lengths, is_token = mask.sum(1), mask.astype(np.bool_)
    rows, segments, begins = _cut(lengths, row_tokens)
    shape = (int(rows.max(initial=-1)) + 1, int(np.max(begins + lengths, initial=0)))
    within = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    places = np.where(is_token, (rows * shape[1] + begins)[:, None] + within, 0)

    def filled(values: IntArray, otherwise: int) -> Tensor:
        table = np.full(shape, otherwise, np.int64)
        table.reshape(-1)[places[is_token]] = values[is_token]
        return torch.from_numpy(table)

    return Packed(
        input_ids=filled(input_ids.numpy(), pad_id),
        position_ids=filled(within, 0),
        segments=filled(np.broadcast_to(segments[:, None], mask.shape), _PADDING),
        places=torch.from_numpy(places),
    )


def _cut(lengths_B: IntArray, row_tokens: int) -> tuple[IntArray, IntArray, IntArray]:
    """Row of each sample, its number there, and where it begins; int64 [B] each."""
    found = []
    row, segment, begin = 0, 0, 0
    for length in lengths_B.tolist():
        if begin + length > row_tokens:
            row, segment, begin = row + 1, 0, 0
        found.append((row, segment, begin))
        segment, begin = segment + 1, begin + length
    rows, segments, begins = np.array(found, np.int64).reshape(-1, 3).T
    return rows, segments, begins
