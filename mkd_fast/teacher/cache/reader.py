"""Reading a cache: a batch of any samples in any order, each record checked as it is read."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import cache as checks
from mkd_fast.losses.targets import Int8Hidden, Teacher, TeacherHead
from mkd_fast.teacher.cache.arrays import as_tensor
from mkd_fast.teacher.cache.fingerprint import Fingerprints
from mkd_fast.teacher.cache.format import STORAGE
from mkd_fast.teacher.cache.head import Head
from mkd_fast.teacher.cache.index import SampleIndex
from mkd_fast.teacher.cache.kinds import HIDDEN, LAST, LogitsKind, logits_kinds, matched_states
from mkd_fast.teacher.cache.manifest import HEAD, INDEX, MANIFEST, PLAN, Manifest, read_manifest
from mkd_fast.teacher.cache.shard import Shard
from mkd_fast.teacher.cache.summary import CacheSummary, summarise

# B samples, S tokens of the longest of them, V vocabulary, D width, K kept


@dataclass(frozen=True, eq=False)
class CachedBatch:
    """What the teacher said about a batch, padded on the right to its longest sample.

    Args:
        teacher: for ``logits`` a tensor ``[B, V]`` or ``[B, S, V]``, padded with 0; for ``topk``
            a ``SparseTeacher`` with ids ``[B, K]`` or ``[B, S, K]``, padded with id -1; for
            ``sampled`` a ``SampledTeacher`` or ``PackedSampledTeacher``, padded with empty slots;
            for ``hidden`` a ``TeacherHead`` with hidden states ``[B, S, D]``, padded with 0.
        hidden: one tensor ``[B, S, D]`` or ``Int8Hidden`` per layer, padded with 0.
        hidden_mask: bool ``[B, S]``, True at real tokens; None where nothing is per token.
        head: what a ``TeacherHead`` has its weights from, once a device.
    """

    teacher: Teacher
    hidden: tuple[Tensor | Int8Hidden, ...]
    hidden_mask: Tensor | None
    head: Head | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "CachedBatch":
        """The batch on another device."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if self.head is None or not isinstance(moved.teacher, TeacherHead):
            return moved
        weight, bias = self.head.on(device)
        return replace(moved, teacher=replace(moved.teacher, weight=weight, bias=bias))

    def pin_memory(self) -> "CachedBatch":
        """The batch in page-locked memory, as a ``DataLoader`` asks for it."""
        return self._each(Tensor.pin_memory)

    def at(self, positions: Tensor) -> "CachedBatch":
        """What it says of some tokens alone: rows ``[M]`` in place of ``[B, S]``.

        Args:
            positions: int64 ``[M]``, places among the B * S of the padded batch.
        """
        return self._each(lambda tensor: tensor.flatten(0, 1).index_select(0, positions))

    def _each(self, act: Callable[[Tensor], Tensor]) -> "CachedBatch":
        """The batch with every tensor of its own replaced; a head belongs to the cache."""

        def acted(part: Any) -> Any:
            if isinstance(part, Tensor):
                return act(part)
            if isinstance(part, TeacherHead):
                return replace(part, hidden=act(part.hidden))
            tensors = {f.name: getattr(part, f.name) for f in fields(part)}
            return replace(part, **{n: act(t) for n, t in tensors.items() if isinstance(t, Tensor)})

        mask = None if self.hidden_mask is None else act(self.hidden_mask)
        return replace(
            self,
            teacher=acted(self.teacher),
            hidden=tuple(map(acted, self.hidden)),
            hidden_mask=mask,
        )


class TeacherCache:
    """A finished capture, from ``TeacherCache.open``; threads share it, workers may pickle it."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._numbers = {spec.name: number for number, spec in enumerate(manifest.tensors)}
        entries = {entry.file: entry for entry in manifest.others}
        if not manifest.shards:
            raise checks.cache_damaged(path / MANIFEST, "it lists no shards")
        num_samples = sum(entry.num_samples for entry in manifest.shards)
        self._index = SampleIndex(path, num_samples, entries[INDEX])
        self._head = Head(path, entries[HEAD]) if HEAD in entries else None
        self._shards: dict[int, Shard] = {}

    @classmethod
    def open(cls, path: str | Path, expect: Fingerprints | None = None) -> Self:
        """Open a cache, however large, in milliseconds: its manifest and the sizes of its files.

        A shard's header and index are checked when the first of its records is read, and each
        record when it is. Nothing in a cache is executed.

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
            if (folder / PLAN).exists():
                raise checks.cache_unfinished(folder)
            raise checks.not_a_cache(folder)
        manifest = read_manifest(folder / MANIFEST)
        if expect is not None:
            expect.require("TeacherCache.open", manifest.plan.fingerprints, folder)
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
        for entry in manifest.shards:
            if (size := sizes.get(entry.file)) is None:
                raise checks.cache_file_missing(folder / entry.file)
            if size != entry.num_bytes:
                raise checks.cache_file_of_other_size(folder / entry.file, size, entry.num_bytes)
        return cls(folder, manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    @property
    def fingerprints(self) -> Fingerprints:
        """Where the cache comes from."""
        return self.manifest.plan.fingerprints

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """Of every record, rising; int64 ``[samples]``."""
        return self._index.sample_ids

    @cached_property
    def _logits_kinds(self) -> dict[str, LogitsKind]:
        manifest = self.manifest
        kinds = logits_kinds(manifest.plan, manifest.outputs.num_columns)
        return {kind.name: kind for kind in kinds}

    def _shard(self, number: int) -> Shard:
        shard = self._shards.get(number)
        if shard is None:
            if number >= len(self.manifest.shards):
                raise self._index.damaged()
            entry = self.manifest.shards[number]
            shard = self._shards[number] = Shard(
                self.path / entry.file, self.manifest.layout(entry)
            )
        return shard

    def _places(self, sample_ids: NDArray[np.int64]) -> list[tuple[Shard, int]]:
        """Shard and record of each sample."""
        shards, records = self._index.find(sample_ids)
        places = []
        found = zip(sample_ids.tolist(), shards.tolist(), records.tolist(), strict=True)
        for sample_id, number, record in found:
            shard = self._shard(number)
            if record >= len(shard.sample_ids) or shard.sample_ids[record] != sample_id:
                raise self._index.damaged()
            places.append((shard, record))
        return places

    def batch(
        self,
        sample_ids: Tensor | Sequence[int] | NDArray[np.int64],
        token_hashes: NDArray[np.uint64] | None = None,
        *,
        keep: str | None = None,
        temperature: float = 1.0,
        hidden_layers: Sequence[int] | None = None,
    ) -> CachedBatch:
        """The records of these samples.

        Args:
            sample_ids: ``[B]``, in any order, with repetition if wanted.
            token_hashes: ``[B]``, from ``token_hashes`` of the ids that the teacher saw; None
                does not compare them.
            keep: the kind of target, one of those that were captured; may be left out where there
                is only one.
            temperature: the teacher's, which chooses log_z, and is that of what was sampled; of
                no effect on ``logits`` and ``hidden``.
            hidden_layers: which of the stored layers to read, by number; None reads all.

        Raises:
            ValueError: a sample, kind, temperature or layer that the cache lacks, other tokens,
                or a damaged record; each is named.
        """
        plan = self.manifest.plan
        layers = plan.hidden_layers if hidden_layers is None else tuple(hidden_layers)
        if missing := set(layers) - set(plan.hidden_layers):
            raise checks.layer_not_cached(self.path, min(missing), plan.hidden_layers)
        kind = self._kind(keep, temperature)
        places = self._places(np.asarray(sample_ids, np.int64))
        if token_hashes is not None:
            _require_hashes(places, token_hashes)
        lengths = np.array([shard.num_rows("token", record) for shard, record in places], np.int64)

        def read(name: str, padding: int) -> NDArray[Any]:
            return self._gather(name, places, lengths, padding)

        states = matched_states(plan)
        hidden = tuple(states[layer].target(read) for layer in layers)
        if kind is None:
            assert self._head is not None, "the manifest lists it where hidden is kept"
            teacher: Teacher = TeacherHead(as_tensor(read(LAST, 0)), *self._head.on("cpu"))
        else:
            teacher = kind.target(read, temperature)
        mask = None
        if any(spec.axis == "token" for spec in self.manifest.tensors):
            mask = torch.arange(int(lengths.max(initial=0))) < torch.from_numpy(lengths)[:, None]
        return CachedBatch(teacher, hidden, mask, self._head if kind is None else None)

    def _kind(self, keep: str | None, temperature: float) -> LogitsKind | None:
        """What is asked for; None is ``"hidden"``."""
        stored = self.manifest.plan.keep
        if keep is None and len(stored) == 1:
            keep = stored[0]
        if keep not in stored:
            raise checks.kind_not_cached(self.path, keep, stored)
        if keep == HIDDEN:
            return None
        kind = self._logits_kinds[keep]
        if kind.temperatures is not None and temperature not in kind.temperatures:
            raise checks.temperature_not_cached(self.path, temperature, kind.temperatures)
        return kind

    def _gather(
        self,
        name: str,
        places: list[tuple[Shard, int]],
        lengths: NDArray[np.int64],
        padding: int,
    ) -> NDArray[Any]:
        number = self._numbers[name]
        spec = self.manifest.tensors[number]
        rows_of = [shard.rows(spec, number, record) for shard, record in places]
        if spec.axis not in ("sample", "token"):
            return np.concatenate([np.empty((0, spec.width), STORAGE[spec.dtype]), *rows_of])
        shape = (len(places), *((int(lengths.max(initial=0)),) if spec.axis == "token" else ()))
        gathered = np.full((*shape, spec.width), padding, STORAGE[spec.dtype])
        for out, rows in zip(gathered, rows_of, strict=True):
            if spec.axis == "sample":
                out[:] = rows[0]
            else:
                out[: len(rows)] = rows
        return gathered

    def summary(self) -> CacheSummary:
        """Kinds, counts and bytes per token, for people to read."""
        return summarise(self.manifest)


def _require_hashes(places: list[tuple[Shard, int]], hashes: NDArray[np.uint64]) -> None:
    for (shard, record), asked in zip(places, hashes.tolist(), strict=True):
        if (stored := int(shard.token_hashes[record])) != asked:
            raise checks.other_tokens(int(shard.sample_ids[record]), stored, asked)
