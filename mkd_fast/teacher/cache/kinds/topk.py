"""``keep="topk:K"``: the K largest logits of a row, and log_z over all of them.

    log_z(T) = log sum_v exp(z_v / T)        over the real vocabulary, in float32

so that a kept id's probability at temperature T is exp(z_k / T - log_z(T)).

An entry is one little-endian number of 4 bytes, or 5 where ids need more than 18 bits: the id in
its low bits, and above them how far the logit lies below the row's largest, as a float16 that has
lost its sign, and with ids of 18 bits (a vocabulary of 250,000) also its last bit. The largest
itself is stored in float32. So the top logit is exact, and the others are off by 0.05 % of their
distance to it, or 0.15 % where the last bit is lost: a probability of e^-10 by 0.5 or 1.5 %.
Distances stop at 57,344; an infinite one is a logit of -inf.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.losses.targets import SparseTeacher
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.kinds.entries import from_bytes, id_bits, to_bytes
from mkd_fast.teacher.cache.kinds.rows import Arrays, LogitsRows, Read, Stored

_INFINITE = 0x7C00  # float16, as are the others; NaN lies above
_FARTHEST = 57_344.0  # finite in the fewest bits there are
_DISTANCE_BITS = 15


@dataclass(frozen=True)
class TopK:
    """The largest of a row, by falling logit.

    Args:
        num_kept: K.
        num_columns: V.
        temperatures: for which log_z is stored.
    """

    num_kept: int
    num_columns: int
    temperatures: tuple[float, ...]
    num_draws = 0

    @property
    def name(self) -> str:
        """``topk:K``."""
        return f"topk:{self.num_kept}"

    @property
    def id_bits(self) -> int:
        """What the largest id needs."""
        return id_bits(self.num_columns)

    @property
    def entry_bytes(self) -> int:
        """Of an id and its distance."""
        return 4 if self.id_bits <= 18 else 5

    @property
    def _lost_bits(self) -> int:
        return max(0, self.id_bits + _DISTANCE_BITS - 8 * self.entry_bytes)

    def specs(self, axis: str) -> tuple[TensorSpec, ...]:
        """The entries, and two numbers of a row that are float32."""
        return (
            TensorSpec(f"{self.name}.largest", "F32", 1, axis),
            TensorSpec(f"{self.name}.log_z", "F32", len(self.temperatures), axis),
            TensorSpec(f"{self.name}.entries", "U8", self.num_kept * self.entry_bytes, axis),
        )

    @property
    def num_top(self) -> int:
        """K."""
        return self.num_kept

    def on_device(self, rows: LogitsRows) -> dict[str, Tensor]:
        """The K largest, with their ids, and every log_z."""
        kept, largest = rows.kept, slice(self.num_kept)
        return {
            "ids": kept.top_ids[:, largest],
            "logits": kept.top_logits[:, largest],
            "log_z": kept.log_z,
        }

    def on_host(self, made: Arrays) -> Stored:
        """Entries, from ids and logits."""
        largest_N1 = np.ascontiguousarray(made["logits"][:, :1])
        return Stored(
            {
                f"{self.name}.largest": largest_N1,
                f"{self.name}.log_z": made["log_z"],
                f"{self.name}.entries": self.pack(made["ids"], largest_N1 - made["logits"]),
            }
        )

    def pack(
        self, ids_NK: NDArray[np.int32], distances_NK: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """Entries ``[N, K * entry_bytes]``; an id of -1 is an empty slot."""
        finite = np.where(np.isinf(distances_NK), 0.0, np.minimum(distances_NK, _FARTHEST))
        bits = finite.astype(np.float16).view(np.uint16).astype(np.uint64)
        half = (1 << self._lost_bits) >> 1
        bits = np.where(np.isinf(distances_NK), np.uint64(_INFINITE), bits + np.uint64(half))
        entries = bits >> np.uint64(self._lost_bits) << np.uint64(self.id_bits)
        entries |= ids_NK.astype(np.uint64) & np.uint64((1 << self.id_bits) - 1)
        entries[ids_NK < 0] = ~np.uint64(0)
        width = self.num_kept * self.entry_bytes
        return to_bytes(entries, self.entry_bytes).reshape(len(ids_NK), width)

    def unpack(self, entries: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids, -1 in an empty slot, and distances, ``[..., K]``."""
        shape = (*entries.shape[:-1], self.num_kept, self.entry_bytes)
        packed = from_bytes(entries.reshape(shape))
        ids = (packed & ((1 << self.id_bits) - 1)).astype(np.int32)
        bits = (packed >> self.id_bits << self._lost_bits & 0x7FFF).astype(np.uint16)
        ids[bits > _INFINITE] = -1
        return ids, bits.view(np.float16).astype(np.float32)

    def target(self, read: Read, temperature: float) -> SparseTeacher:
        """Ids and logits ``[B, K]`` or ``[B, S, K]``, padded with id -1."""
        ids, distances = self.unpack(read(f"{self.name}.entries", 0xFF))
        logits = np.where(ids < 0, np.float32(0), read(f"{self.name}.largest", 0) - distances)
        log_z = read(f"{self.name}.log_z", 0)[..., self.temperatures.index(temperature)]
        return SparseTeacher(
            torch.from_numpy(ids), torch.from_numpy(logits), torch.from_numpy(log_z)
        )
