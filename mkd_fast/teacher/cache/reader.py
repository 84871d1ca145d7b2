"""Reading a cache: a batch of any samples in any order, each record checked as it is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import teacher as checks
from mkd_fast.losses.targets import SparseTeacher
from mkd_fast.teacher.cache.fingerprint import Fingerprints
from mkd_fast.teacher.cache.format import STORAGE, TensorSpec
from mkd_fast.teacher.cache.manifest import MANIFEST, UNFINISHED, Manifest, read_manifest
from mkd_fast.teacher.cache.shard import Shard

# B samples, S tokens of the longest of them, V vocabulary, D width, K kept


@dataclass(frozen=True, eq=False)
class CachedBatch:
    """What the teacher said about a batch, padded on the right to its longest sample.

    Args:
        teacher: for ``logits`` a tensor ``[B, V]`` or ``[B, S, V]``, padded with 0; for ``topk``
            a ``SparseTeacher`` with ids ``[B, K]`` or ``[B, S, K]``, padded with id -1.
        hidden: one tensor ``[B, S, D]`` per layer, bfloat16, padded with 0.
        hidden_mask: bool ``[B, S]``, True at real tokens; None where nothing is per token.
    """

    teacher: Tensor | SparseTeacher
    hidden: tuple[Tensor, ...]
    hidden_mask: Tensor | None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "CachedBatch":
        """The batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        teacher = self.teacher
        if isinstance(teacher, SparseTeacher):
            parts = (move(teacher.ids), move(teacher.logits), move(teacher.log_z))
            moved: Tensor | SparseTeacher = SparseTeacher(*parts, tail=teacher.tail)
        else:
            moved = move(teacher)
        mask = None if self.hidden_mask is None else move(self.hidden_mask)
        return CachedBatch(moved, tuple(map(move, self.hidden)), mask)


@dataclass(frozen=True)
class CacheSummary:
    """What a cache holds.

    Args:
        keep: kinds of targets.
        hidden_layers: numbers of the layers kept.
        temperatures: for which log_z is kept.
        num_samples: records.
        num_tokens: tokens of all records.
        num_bytes: of all shards.
        bytes_per_token: for each stored tensor, and for ``"index"``, which includes headers.
    """

    keep: tuple[str, ...]
    hidden_layers: tuple[int, ...]
    temperatures: tuple[float, ...]
    num_samples: int
    num_tokens: int
    num_bytes: int
    bytes_per_token: dict[str, float]


class TeacherCache:
    """A finished capture, from ``TeacherCache.open``; threads share it, workers may pickle it."""

    def __init__(self, path: Path, manifest: Manifest, shards: list[Shard]) -> None:
        self.path, self.manifest = path, manifest
        self._shards = shards
        self._numbers = {spec.name: number for number, spec in enumerate(manifest.tensors)}

    @classmethod
    def open(cls, path: str | Path, expect: Fingerprints | None = None) -> Self:
        """Open a cache, checking the manifest and each shard's size, header and index.

        Records are read, and checked, by ``batch``. Nothing in a cache is executed.

        Args:
            path: its folder.
            expect: fingerprints that it must have; those that are None are not compared.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a cache, not finished, damaged, of an unknown version, or of
                another teacher, tokenizer, text or precision; both fingerprints are named.
        """
        folder = Path(path)
        if not folder.exists():
            raise checks.missing_cache(folder)
        if not (folder / MANIFEST).exists():
            if (folder / UNFINISHED).exists():
                raise checks.cache_unfinished(folder)
            raise checks.not_a_cache(folder)
        manifest = read_manifest(folder / MANIFEST)
        if expect is not None:
            expect.require("TeacherCache.open", manifest.plan.fingerprints, folder)
        shards = []
        for entry in manifest.shards:
            if not (folder / entry.file).exists():
                raise checks.cache_damaged(folder / entry.file, "it is missing")
            shards.append(Shard(folder / entry.file, manifest.layout(entry)))
        return cls(folder, manifest, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __len__(self) -> int:
        """Number of samples."""
        return sum(entry.samples for entry in self.manifest.shards)

    @property
    def fingerprints(self) -> Fingerprints:
        """Where the cache comes from."""
        return self.manifest.plan.fingerprints

    @cached_property
    def _index(self) -> "_Index":
        return _Index(self._shards)

    def batch(
        self,
        sample_ids: Tensor | Sequence[int] | NDArray[np.int64],
        token_hashes: NDArray[np.uint64] | None = None,
        *,
        temperature: float = 1.0,
        hidden_layers: Sequence[int] | None = None,
    ) -> CachedBatch:
        """The records of these samples.

        Args:
            sample_ids: ``[B]``, in any order, with repetition if wanted.
            token_hashes: ``[B]``, from ``token_hashes`` of the ids that the teacher saw; None
                does not compare them.
            temperature: the teacher's, which chooses log_z; of no effect on dense logits.
            hidden_layers: which of the stored layers to read, by number; None reads all.

        Raises:
            ValueError: a sample, temperature or layer that the cache lacks, other tokens, or a
                damaged record; each is named.
        """
        places = self._index.places(np.asarray(sample_ids, np.int64), self.path)
        if token_hashes is not None:
            self._index.require_hashes(places, token_hashes)
        plan = self.manifest.plan
        layers = plan.hidden_layers if hidden_layers is None else tuple(hidden_layers)
        if missing := set(layers) - set(plan.hidden_layers):
            raise checks.layer_not_cached(self.path, min(missing), plan.hidden_layers)
        if plan.temperatures and temperature not in plan.temperatures:
            raise checks.temperature_not_cached(self.path, temperature, plan.temperatures)
        lengths = self._index.lengths[places]
        hidden = tuple(self._gather(f"hidden.{layer}", places, lengths) for layer in layers)
        teacher = self._teacher(places, lengths, temperature)
        mask = None
        if any(spec.axis == "token" for spec in self.manifest.tensors):
            mask = torch.arange(int(lengths.max(initial=0))) < torch.from_numpy(lengths)[:, None]
        return CachedBatch(teacher, hidden, mask)

    def _teacher(
        self, places: NDArray[np.int64], lengths: NDArray[np.int64], temperature: float
    ) -> Tensor | SparseTeacher:
        if "logits" in self._numbers:
            return self._gather("logits", places, lengths)
        log_z = self._gather("topk.log_z", places, lengths)
        return SparseTeacher(
            self._gather("topk.ids", places, lengths, padding=-1),
            self._gather("topk.logits", places, lengths),
            log_z[..., self.manifest.plan.temperatures.index(temperature)],
        )

    def _gather(
        self, name: str, places: NDArray[np.int64], lengths: NDArray[np.int64], padding: int = 0
    ) -> Tensor:
        number = self._numbers[name]
        spec = self.manifest.tensors[number]
        storage = STORAGE[spec.dtype]
        if spec.axis == "sample":
            shape: tuple[int, ...] = (len(places), spec.width)
        else:
            shape = (len(places), int(lengths.max(initial=0)), spec.width)
        gathered = np.full(shape, padding, storage)
        shards, records = self._index.shards[places], self._index.records[places]
        for out, shard, record in zip(gathered, shards.tolist(), records.tolist(), strict=True):
            rows = self._shards[shard].rows(spec, number, record)
            if spec.axis == "sample":
                out[:] = rows[0]
            else:
                out[: len(rows)] = rows
        return _as_tensor(gathered, spec)

    def summary(self) -> CacheSummary:
        """Kinds, counts and bytes per token, for people to read."""
        plan = self.manifest.plan
        layouts = [shard.layout for shard in self._shards]
        num_tokens = sum(layout.num_tokens for layout in layouts)
        num_bytes: dict[str, int] = {"index": sum(layout.index_end for layout in layouts)}
        for spec in self.manifest.tensors:
            placed = [layout.placed[spec.name] for layout in layouts]
            num_bytes[spec.name] = sum(at.end - at.begin for at in placed)
        return CacheSummary(
            plan.keep,
            plan.hidden_layers,
            plan.temperatures,
            len(self),
            num_tokens,
            sum(num_bytes.values()),
            {name: count / max(num_tokens, 1) for name, count in num_bytes.items()},
        )


class _Index:
    """Where each sample lies, over all shards; built when the first batch is read."""

    def __init__(self, shards: list[Shard]) -> None:
        counts = [len(shard.sample_ids) for shard in shards]
        self.shards = np.repeat(np.arange(len(shards)), counts)
        self.records = np.concatenate([np.arange(count) for count in counts])
        self.lengths = np.concatenate([np.diff(shard.token_offsets) for shard in shards])
        self._hashes = np.concatenate([shard.token_hashes for shard in shards])
        self._ids = np.concatenate([shard.sample_ids for shard in shards])
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]

    def places(self, sample_ids: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
        at = np.searchsorted(self._sorted, sample_ids)
        at = np.minimum(at, len(self._sorted) - 1)
        absent = self._sorted[at] != sample_ids
        if absent.any():
            raise checks.sample_not_cached(path, int(sample_ids[absent][0]), len(self._ids))
        return self._order[at]

    def require_hashes(self, places: NDArray[np.int64], hashes: NDArray[np.uint64]) -> None:
        stored = self._hashes[places]
        other = np.flatnonzero(stored != hashes)
        if len(other):
            first = int(other[0])
            sample_id = int(self._ids[places[first]])
            raise checks.other_tokens(sample_id, int(stored[first]), int(hashes[first]))


def _as_tensor(rows: NDArray[Any], spec: TensorSpec) -> Tensor:
    if spec.dtype == "BF16":
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)
