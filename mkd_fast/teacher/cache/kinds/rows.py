"""What a kind of target is asked for, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.losses.targets import (
    PackedSampledTeacher,
    SampledTeacher,
    SparseTeacher,
)
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.keep_logits import Kept

# N rows (samples, or real tokens of a batch), V vocabulary, D width, K kept, B samples, S tokens
# of the longest of them

Arrays = dict[str, NDArray[Any]]
LogitsTarget = Tensor | SparseTeacher | SampledTeacher | PackedSampledTeacher

# The stored rows of a batch by their tensor's name: padded with the given value to [B, width] or
# [B, S, width]; those of a tensor with an axis of its own end to end.
Read = Callable[[str, int], NDArray[Any]]


@dataclass(frozen=True)
class Origin:
    """Which samples N rows belong to: all that a random choice may depend on.

    Args:
        sample_ids: int64 ``[B]``.
        num_rows: of each sample, int64 ``[B]``; their sum is N.
    """

    sample_ids: NDArray[np.int64]
    num_rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LogitsRows:
    """Rows of a teacher's logits, and what was kept of each.

    Args:
        logits: as they come from the teacher, ``[M, V]``, padded columns left out.
        chosen: which rows, int64 ``[N]``.
        kept: what the kinds asked for; the draws are those of one kind.
    """

    logits: Tensor
    chosen: Tensor
    kept: Kept


@dataclass(frozen=True)
class Stored:
    """What is stored of N rows.

    Args:
        tensors: by name.
        num_rows: of each of the N on every axis of its own, int64 ``[N]``.
    """

    tensors: Arrays
    num_rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)


class LogitsKind(Protocol):
    """A kind of target that is made of logits: one of ``keep``."""

    @property
    def name(self) -> str:
        """As ``keep`` spells it; the names of the stored tensors begin with it."""
        ...

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """Those that it serves; None for any."""
        ...

    def specs(self, axis: str) -> tuple[TensorSpec, ...]:
        """What is stored, where there are logits for every ``"sample"`` or every ``"token"``."""
        ...

    @property
    def num_top(self) -> int:
        """How many of a row's largest logits it needs."""
        ...

    @property
    def num_draws(self) -> int:
        """How many draws from a row it needs."""
        ...

    def on_device(self, rows: LogitsRows) -> dict[str, Tensor]:
        """What the host needs of some rows, on the teacher's device."""
        ...

    def on_host(self, made: Arrays) -> Stored:
        """What is stored, from what ``on_device`` made."""
        ...

    def target(self, read: Read, temperature: float) -> LogitsTarget:
        """What a loss takes."""
        ...
