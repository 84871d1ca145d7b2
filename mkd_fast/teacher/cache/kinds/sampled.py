"""``keep="sampled:N"``: ids drawn from a row's distribution, with importance weights.

    p = softmax(z / T),  r proportional to p^tau,  N draws with replacement from r
    weight of an id = (p / r) * count / N = exp((1 - tau) z / T + log sum e^(tau z / T)
                                                - log sum e^(z / T)) * count / N

which is count / N at tau = 1. The loss -sum weight log q has the gradient of the dense forward KL
as its expectation ("Sparse Logit Sampling", arXiv 2503.16870).

Draws are found by inverting the cumulative sum of r (``mkd_fast.teacher.keep_logits``). The
uniform numbers are Philox's, keyed by seed and sample id: they do not depend on batches, processes
or devices.

The N draws of a row, sorted, are runs of equal ids. ``.runs`` has N bits a row, of which the last
of each run is set: so it says how many distinct ids there are, and how often each was drawn.
``.ids`` has the ids as ``id_sets.py`` codes sets. Of 16 ids below 50,000 that is 34 bytes, where an
id and its count in 3 bytes each would take 49. Where tau is not 1, the weights of the ids are
stored beside them in float32.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import cache as checks
from mkd_fast.losses.targets import PackedSampledTeacher, SampledTeacher
from mkd_fast.teacher.cache.format import TensorSpec
from mkd_fast.teacher.cache.kinds.entries import id_bits, to_bytes
from mkd_fast.teacher.cache.kinds.id_sets import IdSets
from mkd_fast.teacher.cache.kinds.rows import Arrays, LogitsRows, Origin, Read, Stored


def uniform_numbers(seed: int, num_draws: int, origin: Origin) -> NDArray[np.float64]:
    """Numbers in [0, 1) for every row, rising within it, ``[N, num_draws]``."""
    samples = zip(origin.sample_ids.tolist(), origin.num_rows.tolist(), strict=True)
    drawn = [
        # a key is 128 bits of two's complement, so that negative ids are keys too
        np.random.Generator(
            np.random.Philox(key=np.array([seed, sample_id]).view(np.uint64))
        ).random((num_rows, num_draws))
        for sample_id, num_rows in samples
    ]
    return np.sort(np.concatenate([np.empty((0, num_draws)), *drawn]), axis=1)


@dataclass(frozen=True)
class Sampled:
    """What was drawn for a row, by rising id.

    Args:
        num_draws: N, at most 255.
        num_columns: V.
        temperature: T.
        proposal_exponent: tau.
    """

    num_draws: int
    num_columns: int
    temperature: float
    proposal_exponent: float
    num_top = 0

    @property
    def name(self) -> str:
        """``sampled:N``."""
        return f"sampled:{self.num_draws}"

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The one that was drawn at."""
        return (self.temperature,)

    @property
    def id_bits(self) -> int:
        """What the largest id needs."""
        return id_bits(self.num_columns)

    @property
    def _is_weighted(self) -> bool:
        return self.proposal_exponent != 1.0

    @property
    def _is_packed(self) -> bool:
        """Whether a loss takes an id and its count in 3 bytes."""
        return not self._is_weighted and self.id_bits + self.num_draws.bit_length() <= 24

    @cached_property
    def _id_sets(self) -> IdSets:
        return IdSets(self.num_columns)

    def specs(self, axis: str) -> tuple[TensorSpec, ...]:
        """Runs of equal draws, and on axes of their own the bytes of ids, and weights."""
        runs = TensorSpec(f"{self.name}.runs", "U8", -(-self.num_draws // 8), axis)
        ids = TensorSpec(f"{self.name}.ids", "U8", 1, f"{self.name}.ids")
        weights = TensorSpec(f"{self.name}.weights", "F32", 1, f"{self.name}.weights")
        return (weights, ids, runs) if self._is_weighted else (ids, runs)

    def on_device(self, rows: LogitsRows) -> dict[str, Tensor]:
        """Ids by rising number, and where weights are stored, p / r of each."""
        made = {"ids": rows.kept.drawn, "total": rows.kept.total}
        return made | {"ratios": rows.kept.ratios} if self._is_weighted else made

    def on_host(self, made: Arrays) -> Stored:
        """Distinct ids and how often each was drawn."""
        ids_NC = made["ids"]
        ends_run_NC = np.ones(ids_NC.shape, bool)
        ends_run_NC[:, :-1] = ids_NC[:, :-1] != ids_NC[:, 1:]
        num_ids = ends_run_NC.sum(1)
        ids = ids_NC[ends_run_NC].astype(np.int64)
        num_rows = {f"{self.name}.ids": self._id_sets.num_bytes(num_ids)}
        stored: Arrays = {
            f"{self.name}.runs": np.packbits(ends_run_NC, axis=1, bitorder="little"),
            f"{self.name}.ids": self._id_sets.encode(ids, num_ids)[:, None],
        }
        if self._is_weighted:
            # every row ends a run, so runs never reach over rows
            counts = np.diff(np.flatnonzero(ends_run_NC), prepend=-1)
            weights = made["ratios"][ends_run_NC] * counts / self.num_draws
            stored[f"{self.name}.weights"] = weights.astype(np.float32)[:, None]
            num_rows[f"{self.name}.weights"] = num_ids
        return Stored(stored, num_rows)

    def target(self, read: Read, temperature: float) -> SampledTeacher | PackedSampledTeacher:
        """Ids and weights ``[B, K]`` or ``[B, S, K]``, K being the most that a row has.

        In 3 bytes each, for the kernels to decode, where they fit and no weights are stored.
        """
        num_ids, ids, counts = self._decoded(read)
        is_entry = np.arange(num_ids.max(initial=0)) < num_ids[..., None]
        if self._is_packed:
            entries = np.zeros((*is_entry.shape, 3), np.uint8)
            entries[is_entry] = to_bytes(ids | counts << self.id_bits, 3)
            return PackedSampledTeacher(torch.from_numpy(entries), self.num_draws, self.id_bits)
        padded = np.full(is_entry.shape, -1, np.int32)
        padded[is_entry] = ids
        weights = np.zeros(is_entry.shape, np.float32)
        if self._is_weighted:
            stored = read(f"{self.name}.weights", 0)[:, 0]
            if len(stored) != len(ids):
                raise checks.draws_damaged(self.name)
            weights[is_entry] = stored
        else:
            weights[is_entry] = counts.astype(np.float32) / np.float32(self.num_draws)
        return SampledTeacher(torch.from_numpy(padded), torch.from_numpy(weights))

    def _decoded(
        self, read: Read
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """How many distinct ids each row has, these end to end, and how often each was drawn."""
        bits = np.unpackbits(read(f"{self.name}.runs", 0), axis=-1, bitorder="little")
        num_ids = bits.sum(-1, dtype=np.int64)
        # a row of padding has no run, every other one ends with its last draw
        are_runs = (bits[..., self.num_draws - 1] == (num_ids > 0)) & ~bits[
            ..., self.num_draws :
        ].any(-1)
        ids = self._id_sets.decode(read(f"{self.name}.ids", 0)[:, 0], num_ids.ravel())
        if ids is None or not are_runs.all():
            raise checks.draws_damaged(self.name)
        is_drawn = num_ids.ravel() > 0
        drawn = bits.reshape(-1, bits.shape[-1])[is_drawn, : self.num_draws]
        return num_ids, ids, np.diff(np.flatnonzero(drawn), prepend=-1)
