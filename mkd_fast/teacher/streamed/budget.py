"""How many batches make a block, from the memory there is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mkd_fast.checks import streamed as checks


class _Sized(Protocol):
    @property
    def num_tokens(self) -> int: ...


B = TypeVar("B", bound=_Sized)


@dataclass(frozen=True)
class Budget:
    """What a block needs; ``mkd_fast.teacher.streamed.teacher`` has the arithmetic.

    Attributes:
        max_memory_bytes: what there is.
        weight_bytes: what is always there, and the two largest neighbouring stages.
        row_bytes: of a row of the input embedding.
        max_rows: how many of them there are.
        state_bytes: for each token of a block.
        work_bytes: for each token of the batch that is computed.
        block_tokens: tokens of a block; None for as many as fit.
        can_spill: whether states may go elsewhere.
    """

    max_memory_bytes: int
    weight_bytes: int
    row_bytes: int
    max_rows: int
    state_bytes: int
    work_bytes: int
    block_tokens: int | None
    can_spill: bool

    def blocks(self, batches: Iterable[B]) -> Iterator[list[B]]:
        """Batches in their order, by block.

        Raises:
            ValueError: one block does not fit, and its states may not go elsewhere.
        """
        block: list[B] = []
        for batch in batches:
            if block and not self._has_room([*block, batch]):
                yield block
                block = []
            block.append(batch)
            needed = self._fixed_bytes(block)
            if not self.can_spill:
                needed += _num_tokens(block) * self.state_bytes
            if needed > self.max_memory_bytes:
                raise checks.over_budget(
                    self.max_memory_bytes, needed, self.weight_bytes, _num_tokens(block)
                )
        if block:
            yield block

    def bytes_for_states(self, block: Sequence[B]) -> int:
        """What a block leaves for its states."""
        return self.max_memory_bytes - self._fixed_bytes(block)

    def _has_room(self, block: Sequence[B]) -> bool:
        if self.block_tokens is not None:
            return _num_tokens(block) <= self.block_tokens
        return _num_tokens(block) * self.state_bytes <= self.bytes_for_states(block)

    def _fixed_bytes(self, block: Sequence[B]) -> int:
        rows = min(_num_tokens(block), self.max_rows) * self.row_bytes
        work = max(batch.num_tokens for batch in block) * self.work_bytes
        return self.weight_bytes + rows + work


def _num_tokens(block: Sequence[B]) -> int:
    return sum(batch.num_tokens for batch in block)
