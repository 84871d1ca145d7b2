"""An input embedding of which only the rows that a text uses are read.

A vocabulary of 256,000 rows can weigh as much as several layers, while a block of text uses few of
them. The table has its whole size in address space, and memory where rows were read: at most one
row for each token of a block, which is as much as one hidden state of it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mkd_fast.teacher.streamed.reading import Reader, pages
from mkd_fast.teacher.streamed.stages import Weight


class EmbeddingRows:
    """Reads rows when the embedding is called. It stays on the CPU, wherever the model is.

    Args:
        weight: the table of an nn.Embedding, which is given two hooks.
        reader: of the files.
        device: where its output goes.
    """

    def __init__(self, weight: Weight, reader: Reader, device: torch.device) -> None:
        self._weight, self._reader, self._device = weight, reader, device
        self._table = torch.empty(0)
        self._is_read = torch.zeros(len(weight.empty), dtype=torch.bool)
        weight.owner.register_forward_pre_hook(self._before)
        weight.owner.register_forward_hook(self._after)

    def forget(self) -> None:
        """Give the memory of all rows back."""
        empty = self._weight.empty
        self._table = pages(empty.nbytes, huge=False).view(empty.dtype).view(empty.shape)
        self._is_read.zero_()
        self._weight.set(self._table)

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = inputs[0].cpu()
        used = torch.zeros_like(self._is_read)
        used[ids.flatten()] = True
        for begin, end in _runs(used & ~self._is_read):
            self._reader.read(self._weight.stored.rows(begin, end), self._table[begin:end])
        self._is_read |= used
        return (ids, *inputs[1:])

    def _after(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.to(self._device)


def _runs(chosen: Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of neighbours among the chosen rows."""
    rows = chosen.nonzero().squeeze(1)
    is_first = rows.diff(prepend=rows.new_full((1,), -2)) > 1
    is_last = rows.diff(append=rows.new_full((1,), len(chosen) + 1)) > 1
    yield from zip(rows[is_first].tolist(), (rows[is_last] + 1).tolist(), strict=True)
