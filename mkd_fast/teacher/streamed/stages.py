"""Weights that come and go: one stage is in memory for use while the next one is being read."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from mkd_fast.teacher.streamed.reading import ALIGNMENT, Reader, StoredTensor, pages

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter of the model and where its value lies.

    Attributes:
        owner: the module that has it.
        name: its name there.
        empty: the parameter on the meta device, with the dtype that the model computes in.
        stored: its value on the disk.
    """

    owner: nn.Module
    name: str
    empty: nn.Parameter
    stored: StoredTensor

    @property
    def num_bytes(self) -> int:
        """Bytes in memory, up to where the next one may begin."""
        return -(-self.empty.nbytes // ALIGNMENT) * ALIGNMENT

    def set(self, value: Tensor) -> None:
        """Give the model a value for it."""
        setattr(self.owner, self.name, nn.Parameter(value, requires_grad=False))

    def clear(self) -> None:
        """Take the value away."""
        setattr(self.owner, self.name, self.empty)


class Stage:
    """The weights that the model needs at once: a layer, or the output embedding.

    Args:
        weights: its weights; may be none.
    """

    def __init__(self, weights: Iterable[Weight]) -> None:
        self.weights = tuple(weights)
        self.num_bytes = sum(weight.num_bytes for weight in self.weights)
        self.stored_bytes = sum(weight.stored.num_bytes for weight in self.weights)

    @property
    def num_products(self) -> int:
        """Multiplications for one token, if every matrix is used once."""
        return sum(weight.empty.numel() for weight in self.weights if weight.empty.ndim > 1)

    @property
    def work_bytes(self) -> int:
        """For one token: what every product takes or makes, whichever is wider, twice."""
        empty = [weight.empty for weight in self.weights if weight.empty.ndim > 1]
        return sum(2 * max(matrix.shape) * matrix.itemsize for matrix in empty)

    def read(self, reader: Reader, arena: Tensor) -> list[Tensor]:
        """The values of its weights, in a part of the arena each."""
        values, begin = [], 0
        stream = torch.cuda.Stream(arena.device) if arena.is_cuda else None
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            for weight in self.weights:
                part = arena[begin : begin + weight.empty.nbytes]
                value = part.view(weight.empty.dtype).view(weight.empty.shape)
                reader.read(weight.stored, value)
                values.append(value)
                begin += weight.num_bytes
        if stream is not None:
            stream.synchronize()
        return values

    def set(self, values: Iterable[Tensor]) -> None:
        """Give the model these values."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.set(value)

    def clear(self) -> None:
        """Take them away."""
        for weight in self.weights:
            weight.clear()


def largest_pair_bytes(stages: Sequence[Stage]) -> int:
    """What two neighbours need at most; the first follows on the last."""
    sizes = [stage.num_bytes for stage in stages]
    return max(one + other for one, other in zip(sizes, [*sizes[1:], sizes[0]], strict=True))


class Arenas:
    """Memory for stages, used again by stages of the same size; others free what lies unused.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._unused: list[Tensor] = []

    def take(self, num_bytes: int) -> Tensor:
        """Bytes for one stage."""
        fitting = [arena for arena in self._unused if len(arena) == num_bytes]
        self._unused = fitting[1:]
        if fitting:
            return fitting[0]
        if self.device.type == "cpu":
            return pages(num_bytes, huge=True)[:num_bytes]
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def give(self, arena: Tensor) -> None:
        """Back, when nothing on the device uses it any more."""
        if arena.is_cuda:
            torch.cuda.synchronize(arena.device)
        self._unused.append(arena)


def in_turn(stages: Iterable[tuple[T, Stage]], reader: Reader, device: torch.device) -> Iterator[T]:
    """Yield each stage's tag while its weights are in the model; the next one is read meanwhile.

    At most two stages hold memory at any time: that of a stage goes to the next but one.
    """
    arenas = Arenas(device)
    ahead: deque[_Reading[T]] = deque()
    with ThreadPoolExecutor(1, "read weights") as pool:
        for tag, stage in stages:
            arena = arenas.take(stage.num_bytes)
            values = pool.submit(stage.read, reader, arena)
            ahead.append(_Reading(tag, stage, arena, values))
            if len(ahead) > 1:
                yield from _used(ahead.popleft(), arenas)
        while ahead:
            yield from _used(ahead.popleft(), arenas)


@dataclass(frozen=True, eq=False)
class _Reading(Generic[T]):
    tag: T
    stage: Stage
    arena: Tensor
    values: Future[list[Tensor]]


def _used(reading: _Reading[T], arenas: Arenas) -> Iterator[T]:
    reading.stage.set(reading.values.result())
    try:
        yield reading.tag
    finally:
        reading.stage.clear()
        arenas.give(reading.arena)
