"""``keep="sampled:N"``: ids drawn from a row's distribution, with importance weights.

    p = softmax(z / T),  r proportional to p^tau,  N draws with replacement from r
    weight of an id = (p / r) * count / N = exp((1 - tau) z / T + log sum e^(tau z / T)
                                                - log sum e^(z / T)) * count / N

which is count / N at tau = 1. The loss -sum weight log q has the gradient of the dense forward KL
as its expectation ("Sparse Logit Sampling", arXiv 2503.16870).

Draws are found by inverting the cumulative sum of r, in float64, since 250,000 columns of small
probability vanish in a float32 sum. The uniform numbers are Philox's, keyed by seed and sample id:
they do not depend on batches, processes or devices.

An entry is one little-endian number of 3 bytes, or 4 where id and count need more than 24 bits:
the id in its low bits, and the count above. A row has as many entries as distinct ids, about 12 of
50 draws. Where tau is not 1, their weights are stored beside them in float32.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mkd_fast.losses.targets import PackedSampledTeacher, SampledTeacher
from mkd_fast.teacher.cache.format import TensorSpec, counts_name
from mkd_fast.teacher.cache.kinds.entries import from_bytes, id_bits, to_bytes
from mkd_fast.teacher.cache.kinds.rows import Arrays, Origin, Read


@dataclass(frozen=True)
class Sampled:
    """What was drawn for a row, by rising id.

    Args:
        num_draws: N, at most 255.
        num_columns: V.
        temperature: T.
        proposal_exponent: tau.
        seed: of the draws.
    """

    num_draws: int
    num_columns: int
    temperature: float
    proposal_exponent: float
    seed: int

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
    def entry_bytes(self) -> int:
        """Of an id and its count."""
        return 3 if self.id_bits + self.num_draws.bit_length() <= 24 else 4

    @property
    def _is_weighted(self) -> bool:
        return self.proposal_exponent != 1.0

    def specs(self, axis: str) -> tuple[TensorSpec, ...]:
        """Entries on an axis of their own, and how many of them a row has."""
        entries = TensorSpec(f"{self.name}.entries", "U8", self.entry_bytes, self.name)
        weights = TensorSpec(f"{self.name}.weights", "F32", 1, self.name)
        counts = TensorSpec(counts_name(self.name), "U8", 1, axis)
        return (weights, entries, counts) if self._is_weighted else (entries, counts)

    def choices(self, origin: Origin) -> dict[str, Tensor]:
        """N uniform numbers for every row."""
        samples = zip(origin.sample_ids.tolist(), origin.num_rows.tolist(), strict=True)
        drawn = [
            # a key is 128 bits of two's complement, so that negative ids are keys too
            np.random.Generator(
                np.random.Philox(key=np.array([self.seed, sample_id]).view(np.uint64))
            ).random((num_rows, self.num_draws))
            for sample_id, num_rows in samples
        ]
        return {"uniforms": torch.from_numpy(np.concatenate(drawn))}

    def on_device(self, z_NV: Tensor, choices: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ids by rising number, and where weights are stored, p / r of each."""
        scaled_NV = (z_NV - z_NV.amax(-1, keepdim=True)).div_(self.temperature)
        proposal_NV = scaled_NV * self.proposal_exponent if self._is_weighted else scaled_NV
        upto_NV = proposal_NV.exp_().cumsum(-1, dtype=torch.float64)
        total_N1 = upto_NV[:, -1:]
        ids = torch.searchsorted(upto_NV, choices["uniforms"] * total_N1, right=True)
        # a product that was rounded up to the total would be one past the last
        ids = ids.clamp_(max=self.num_columns - 1).sort(-1).values
        made = {"ids": ids.to(torch.int32), "total": total_N1}
        if self._is_weighted:
            log_ratio = (1 - self.proposal_exponent) * scaled_NV.gather(-1, ids).double()
            made["ratios"] = (
                log_ratio + total_N1.log() - scaled_NV.double().logsumexp(-1, True)
            ).exp()
        return made

    def on_host(self, made: Arrays) -> Arrays:
        """Distinct ids and how often each was drawn."""
        ids_NK = made["ids"]
        is_first_NK = np.ones(ids_NK.shape, bool)
        is_first_NK[:, 1:] = ids_NK[:, 1:] != ids_NK[:, :-1]
        first = np.flatnonzero(is_first_NK)  # every row begins with one
        counts = np.diff(first, append=ids_NK.size)
        entries = ids_NK.ravel()[first] | counts.astype(np.int64) << self.id_bits
        stored: Arrays = {
            f"{self.name}.entries": to_bytes(entries, self.entry_bytes),
            counts_name(self.name): is_first_NK.sum(1, dtype=np.uint8)[:, None],
        }
        if self._is_weighted:
            weights = made["ratios"].ravel()[first] * counts / self.num_draws
            stored[f"{self.name}.weights"] = weights.astype(np.float32)[:, None]
        return stored

    def target(self, read: Read, temperature: float) -> SampledTeacher | PackedSampledTeacher:
        """Entries ``[B, K]`` or ``[B, S, K]``, K being the most that a row of the batch has.

        As they are, for the kernels to decode, where they have 3 bytes and no weights.
        """
        counts = read(counts_name(self.name), 0)
        is_entry = np.arange(counts.max(initial=0)) < counts
        entries = np.zeros((*is_entry.shape, self.entry_bytes), np.uint8)
        entries[is_entry] = read(f"{self.name}.entries", 0)
        if self.entry_bytes == 3 and not self._is_weighted:
            return PackedSampledTeacher(torch.from_numpy(entries), self.num_draws, self.id_bits)
        numbers = from_bytes(entries)
        ids = np.where(is_entry, numbers & ((1 << self.id_bits) - 1), -1).astype(np.int32)
        weights = (numbers >> self.id_bits).astype(np.float32) / np.float32(self.num_draws)
        if self._is_weighted:
            weights[is_entry] = read(f"{self.name}.weights", 0)[:, 0]
        return SampledTeacher(torch.from_numpy(ids), torch.from_numpy(weights))
