"""Every block of memory that a computation's tensors hold: when it came, when it went, what for.

A rehearsal computes on fake tensors: shapes, dtypes and references are those of real ones, and no
memory is taken. What a real computation would hold at once is added up from what came and went.
Memory that a kernel takes and gives back within one call is not seen.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# Gradients that our C++ kernels do not give back to the system but keep: csrc/gradients.cpp.
_SMALLEST_KEPT = 4 << 20
_OURS = "mkd_fast"
# glibc lays blocks below this size (DEFAULT_MMAP_THRESHOLD_MAX) end to end in its heap, and maps
# each of the others from the system by itself.
_SMALLEST_MAPPED = 32 << 20


@dataclass(frozen=True)
class Peak:
    """The most that was held at once.

    Attributes:
        moment: what was being computed.
        parts: bytes by what they were held for.
        in_heap: the most at any time of blocks that came after ``open`` and lie in the heap.
        mapped: the most at any time of the other blocks that came after it.
    """

    moment: str
    parts: Mapping[str, int]
    in_heap: int
    mapped: int

    @property
    def num_bytes(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Block:
    num_bytes: int
    is_mapped: bool
    has_come_late: bool


@dataclass
class _Account:
    """What is held now, by block number, and the most that was held since it was opened."""

    held: dict[int, _Block] = field(default_factory=dict)
    total: int = 0
    late: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    most: int = -1
    at_most: tuple[str, dict[int, _Block]] = ("", {})
    most_late: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    is_open: bool = False

    def comes(self, number: int, num_bytes: int, moment: str, *, is_mapped: bool) -> None:
        self.held[number] = _Block(num_bytes, is_mapped, self.is_open)
        self.total += num_bytes
        if self.is_open:
            self.late[is_mapped] += num_bytes
            self.most_late[is_mapped] = max(self.most_late[is_mapped], self.late[is_mapped])
            if self.total > self.most:
                self.most, self.at_most = self.total, (moment, dict(self.held))

    def goes(self, number: int) -> None:
        block = self.held.pop(number)
        self.total -= block.num_bytes
        if block.has_come_late:
            self.late[block.is_mapped] -= block.num_bytes


class Ledger(TorchDispatchMode):
    """A mode under which every new block is written down.

    Attributes:
        moment: what is being computed; whoever computes sets it. A block that nothing is said of
            is held for the moment in which it came.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moment = ""
        self._part_of: dict[int, str] = {}
        self._block_of = WeakIdKeyDictionary()
        self._account = _Account()
        self._kept: list[tuple[Any, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute, and write down the blocks of the results."""
        results = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor):
                self._block(leaf, is_ours=func.namespace == _OURS)
        return results

    def label(self, tensors: Iterable[Tensor], part: str) -> None:
        """Say what the blocks of some tensors are held for."""
        for tensor in tensors:
            self._part_of[self._block(tensor)] = part

    def open(self) -> None:
        """What is held now stays, and what is held beside it from now on counts."""
        self._account.is_open = True

    @property
    def peak(self) -> Peak:
        """The most that was held at once since ``open``."""
        account = self._account
        moment, held = account.at_most
        parts: dict[str, int] = {}
        for number, block in held.items():
            part = self._part_of[number]
            parts[part] = parts.get(part, 0) + block.num_bytes
        return Peak(moment, parts, account.most_late[False], account.most_late[True])

    def _block(self, tensor: Tensor, *, is_ours: bool = False) -> int:
        storage = tensor.untyped_storage()
        if storage not in self._block_of:
            number, num_bytes = len(self._part_of), storage.nbytes()
            self._block_of[storage] = number
            self._part_of[number] = self.moment
            is_kept = is_ours and num_bytes >= _SMALLEST_KEPT
            if is_kept:
                self._comes_to_stay(storage, number, num_bytes)
            else:
                weakref.finalize(storage, self._account.goes, number)
            is_mapped = is_kept or num_bytes >= _SMALLEST_MAPPED
            self._account.comes(number, num_bytes, self.moment, is_mapped=is_mapped)
        return int(self._block_of[storage])

    def _comes_to_stay(self, storage: Any, number: int, num_bytes: int) -> None:
        """A kept block of this size whose tensor is gone is what is used again."""
        for place, (kept, block) in enumerate(self._kept):
            if kept() is None and self._account.held[block].num_bytes == num_bytes:
                del self._kept[place]
                self._account.goes(block)
                break
        self._kept.append((weakref.ref(storage), number))
