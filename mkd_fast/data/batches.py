"""Batches of samples of about the same length, so that little of a batch is padding.

``length_grouped_batches`` shuffles all samples, sorts each pool of ``POOL_BATCHES`` batches by
length, cuts the pools into batches and shuffles those. The result depends on its arguments only.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkd_fast.checks import data as checks
from mkd_fast.data.packing import Packed, packed
from mkd_fast.data.tokens import NO_LABEL, TokenisedText

# Batches sorted together: the more, the less padding and the less mixing of lengths.
POOL_BATCHES = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples padded to S tokens on the right; all tensors int64.

    ``input_ids`` and ``attention_mask`` (1 token, 0 padding) [B, S]; ``labels`` [B], or [B, S]
    where tokens have them; ``sample_ids`` [B]. ``packed`` is what a model reads in their place
    where samples share rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    sample_ids: Tensor
    packed: Packed | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class PickedBatch(Batch):
    """A batch whose ``labels`` are those of M tokens, [M].

    ``positions`` int64 [M] are their places among the B * S of the padded batch.
    """

    positions: Tensor

    @property
    def picked_sample_ids(self) -> Tensor:
        """The sample of each of these tokens, int64 [M]."""
        return self.sample_ids[self.positions // self.input_ids.shape[1]]


def length_grouped_batches(
    lengths: Sequence[int] | npt.NDArray[np.int64],
    *,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int,
    epoch: int,
) -> list[list[int]]:
    """Deal the rows out to shuffled batches, every row exactly once.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch, the last one of the epoch excepted; or
        max_tokens: the most tokens in a batch, its padding included.
        seed: with epoch, what the order depends on.
        epoch: counts from 0.

    Raises:
        ValueError: both or neither of batch_size and max_tokens, one below 1, or a row longer
            than max_tokens.
    """
    num_tokens = [int(length) for length in lengths]
    _check_sizes("length_grouped_batches", num_tokens, batch_size, max_tokens)
    rng = random.Random(f"{seed}/{epoch}")
    rows = list(range(len(num_tokens)))
    rng.shuffle(rows)
    pool = POOL_BATCHES * (batch_size or _rows_per_batch(num_tokens, max_tokens))
    batches = []
    for start in range(0, len(rows), pool):
        by_length = sorted(rows[start : start + pool], key=num_tokens.__getitem__)
        batches += _cut(by_length, num_tokens, batch_size, max_tokens)
    rng.shuffle(batches)
    return batches


def evaluation_batches(
    lengths: Sequence[int] | npt.NDArray[np.int64],
    *,
    batch_size: int | None = None,
    max_tokens: int | None = None,
) -> list[list[int]]:
    """Deal the rows out sorted, the longest first, every row exactly once.

    Memory that does not suffice is so noticed in the first batch. Arguments and errors as
    ``length_grouped_batches``.
    """
    num_tokens = [int(length) for length in lengths]
    _check_sizes("evaluation_batches", num_tokens, batch_size, max_tokens)
    rows = sorted(range(len(num_tokens)), key=lambda row: (-num_tokens[row], row))
    return _cut(rows, num_tokens, batch_size, max_tokens)


def collate(tokenised: TokenisedText, rows: Sequence[int], *, row_tokens: int = 0) -> Batch:
    """Pad the given rows to the longest of them, on the right.

    Args:
        tokenised: the text.
        rows: its samples.
        row_tokens: pack them too, into rows of up to so many tokens; 0 does not.
    """
    lengths = tokenised.lengths[list(rows)]
    shape = (len(rows), int(lengths.max(initial=0)))
    mask = np.arange(shape[1]) < lengths[:, None]
    ids = np.full(shape, tokenised.pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.empty(0, np.int32), *(tokenised.row(row) for row in rows)])
    input_ids, attention_mask = torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
    in_rows = (
        packed(input_ids, attention_mask, row_tokens, tokenised.pad_id) if row_tokens else None
    )
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=torch.from_numpy(tokenised.batch_labels(rows, mask)),
        sample_ids=torch.tensor(rows, dtype=torch.int64),
        packed=in_rows,
    )


def labelled_only(batch: Batch) -> PickedBatch:
    """A batch whose tokens have labels, with those picked out that do have one."""
    labels = batch.labels.flatten()
    positions = (labels != NO_LABEL).nonzero().squeeze(1)
    return PickedBatch(
        batch.input_ids,
        batch.attention_mask,
        labels[positions],
        batch.sample_ids,
        positions,
        packed=batch.packed,
    )


@dataclass(frozen=True)
class EvaluationBatches:
    """Batches of a tokenised text, longest first, as often as they are iterated over.

    Args:
        text: its rows.
        batch_size: rows in a batch, but for the last one.
        max_rows: at most so many, at equal distances; None: all.
    """

    text: TokenisedText
    batch_size: int
    max_rows: int | None = None

    @property
    def rows(self) -> list[int]:
        """The rows that are in some batch, rising."""
        num_rows = len(self.text) if self.max_rows is None else min(self.max_rows, len(self.text))
        return [number * len(self.text) // num_rows for number in range(num_rows)]

    def __len__(self) -> int:
        """How many batches."""
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every row once."""
        rows = self.rows
        for chosen in evaluation_batches(self.text.lengths[rows], batch_size=self.batch_size):
            yield collate(self.text, [rows[number] for number in chosen])


def _check_sizes(
    function: str, num_tokens: list[int], batch_size: int | None, max_tokens: int | None
) -> None:
    if (batch_size is None) == (max_tokens is None):
        raise checks.one_batch_limit(function, batch_size, max_tokens)
    if batch_size is not None and batch_size < 1:
        raise checks.batch_size_below_one(function, batch_size)
    longest = max(num_tokens, default=0)
    if max_tokens is not None and max_tokens < max(longest, 1):
        raise checks.max_tokens_too_small(function, max_tokens, longest)


def _rows_per_batch(num_tokens: list[int], max_tokens: int | None) -> int:
    """About how many rows max_tokens lets into a batch."""
    mean = sum(num_tokens) // max(len(num_tokens), 1)
    return max(1, (max_tokens or 0) // max(mean, 1))


def _cut(
    rows: list[int], num_tokens: list[int], batch_size: int | None, max_tokens: int | None
) -> list[list[int]]:
    """Cut sorted rows into batches, each as large as its limit allows."""
    batches: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, num_tokens[row])
        size = len(batches[-1]) if batches else 0
        full = size == batch_size if max_tokens is None else (size + 1) * longest > max_tokens
        if not batches or full:
            batches.append([])
            longest = num_tokens[row]
        batches[-1].append(row)
    return batches
