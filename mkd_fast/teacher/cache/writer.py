"""Writing a cache: whole shards, the manifest last, and going on where a run was stopped.

Everything written is a function of the plan and the batches, and a shard holds whole batches, so
a run that was stopped and resumed ends with the same bytes as one that was not.
"""

import itertools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkd_fast.checks import teacher as checks
from mkd_fast.files import make_folder, write_atomically
from mkd_fast.teacher.cache.format import ShardLayout, TensorSpec, crc32, shard_name
from mkd_fast.teacher.cache.lock import LOCK, only_writer
from mkd_fast.teacher.cache.manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    Plan,
    ShardEntry,
    read_manifest,
)
from mkd_fast.teacher.cache.shard import Shard, open_unlisted_shard

_NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Records:
    """The records of one batch.

    Args:
        sample_ids: int64 ``[B]``.
        token_hashes: uint64 ``[B]``.
        lengths: tokens of each sample, int64 ``[B]``.
        tensors: by name, in storage dtype, contiguous: ``[B, width]`` or ``[tokens, width]``.
    """

    sample_ids: NDArray[np.int64]
    token_hashes: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    tensors: dict[str, NDArray[Any]]

    def crc32s(self, tensors: tuple[TensorSpec, ...]) -> NDArray[np.uint32]:
        """The checksum of each record in each tensor, ``[B, tensors]``."""
        num_samples = len(self.sample_ids)
        sums = np.empty((num_samples, len(tensors)), np.uint32)
        bounds = {"sample": range(num_samples + 1), "token": _offsets(self.lengths).tolist()}
        for number, spec in enumerate(tensors):
            rows = self.tensors[spec.name]
            for record, (begin, end) in enumerate(itertools.pairwise(bounds[spec.axis])):
                sums[record, number] = crc32(rows[begin:end])
        return sums


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)))


class CacheWriter:
    """Collect records into shards; from ``open_writer``, which holds the folder's lock.

    Args:
        folder: of the cache; its unfinished capture, where it has one, is continued.
        plan: what is being captured.

    Raises:
        ValueError: the folder holds a capture of another plan, or other files.
        OSError: the folder cannot be read.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.num_samples = self.num_tokens = 0
        self._manifest: Manifest | None = None
        self._pending: list[Records] = []
        self._pending_bytes = 0
        self._finished_ids = _NO_IDS  # of the run before, in order
        self._finished_hashes = np.empty(0, np.uint64)
        self._num_skipped = 0
        self._has_last_shard = False
        if (folder / UNFINISHED).exists():
            self._resume(read_manifest(folder / UNFINISHED))
        elif others := [p.name for p in folder.iterdir() if p.name != LOCK and p.suffix != ".tmp"]:
            raise checks.folder_not_empty(folder, min(others))
        self._sorted_ids = np.sort(self._finished_ids)  # of every shard written

    def _resume(self, manifest: Manifest) -> None:
        self.plan.require(manifest.plan, self.folder)
        shards = _whole_shards(self.folder, manifest)
        entries = tuple(_entry(shard.path, shard.layout, shard.sha256()) for shard in shards)
        whole = {entry.file for entry in entries}
        for path in self.folder.glob("shard-*.safetensors"):
            if path.name not in whole:
                path.unlink()
        self._manifest = replace(manifest, shards=entries)
        self.num_samples = sum(entry.samples for entry in entries)
        self.num_tokens = sum(entry.tokens for entry in entries)
        if shards:
            self._finished_ids = np.concatenate([shard.sample_ids for shard in shards])
            self._finished_hashes = np.concatenate([shard.token_hashes for shard in shards])
            # only the last shard of a capture may be smaller than the plan says
            self._has_last_shard = shards[-1].layout.record_bytes < self.plan.shard_bytes

    def skip(self, sample_ids: NDArray[np.int64], token_hashes: NDArray[np.uint64]) -> bool:
        """Whether the run before has written this batch; asked for each batch, in order.

        Raises:
            ValueError: that run had other batches.
        """
        if self._num_skipped == len(self._finished_ids):
            if self._has_last_shard:
                raise checks.batches_changed(self.folder, self._num_skipped)
            return False
        part = slice(self._num_skipped, self._num_skipped + len(sample_ids))
        same_ids = np.array_equal(self._finished_ids[part], sample_ids)
        if not same_ids or not np.array_equal(self._finished_hashes[part], token_hashes):
            raise checks.batches_changed(self.folder, self._num_skipped)
        self._num_skipped = part.stop
        return True

    def begin(self, tensors: tuple[TensorSpec, ...]) -> None:
        """Say what will be stored, before the first ``add``; write the plan if it is new."""
        if self._manifest is None:
            self._manifest = Manifest.of_capture(self.plan, tensors)
            write_atomically(self.folder / UNFINISHED, [self._manifest.to_bytes()])
        elif tensors != self._manifest.tensors:
            stored = self._manifest.tensors
            raise checks.cache_of_another("capture", self.folder, "tensors", stored, tensors)

    def add(self, records: Records) -> None:
        """Take the records of one batch, and write a shard where they fill it."""
        self._pending.append(records)
        self._pending_bytes += sum(rows.nbytes for rows in records.tensors.values())
        self.num_samples += len(records.sample_ids)
        self.num_tokens += int(records.lengths.sum())
        if self._pending_bytes >= self.plan.shard_bytes:
            self._write_shard()

    def finish(self) -> None:
        """Write the last shard and the manifest; the cache is complete."""
        if self._pending:
            self._write_shard()
        if self._num_skipped < len(self._finished_ids):
            raise checks.batches_changed(self.folder, self._num_skipped)
        if self._manifest is None or not self._manifest.shards:
            raise checks.no_batches()
        write_atomically(self.folder / MANIFEST, [self._manifest.to_bytes()])
        (self.folder / UNFINISHED).unlink()

    def _write_shard(self) -> None:
        assert self._manifest is not None, "begin comes before add"
        batches, tensors = self._pending, self._manifest.tensors
        sample_ids = np.concatenate([batch.sample_ids for batch in batches])
        lengths = np.concatenate([batch.lengths for batch in batches])
        self._require_new(sample_ids)
        index: tuple[NDArray[Any], ...] = (
            sample_ids,
            np.concatenate([batch.token_hashes for batch in batches]),
            _offsets(lengths),
            np.concatenate([batch.crc32s(tensors) for batch in batches]),
        )
        index_crc32 = 0
        for part in index:
            index_crc32 = zlib.crc32(part.data, index_crc32)
        layout = ShardLayout(
            tensors, len(sample_ids), int(lengths.sum()), self._manifest.digest, index_crc32
        )
        stored = [name for name in layout.placed if not name.startswith("index.")]
        rows = (batch.tensors[name] for name in stored for batch in batches)
        path = self.folder / shard_name(len(self._manifest.shards))
        sha256 = write_atomically(path, [layout.header, *index, *rows])
        entry = _entry(path, layout, sha256)
        self._manifest = replace(self._manifest, shards=(*self._manifest.shards, entry))
        self._pending, self._pending_bytes = [], 0

    def _require_new(self, sample_ids: NDArray[np.int64]) -> None:
        self._sorted_ids = np.sort(np.concatenate((self._sorted_ids, sample_ids)), kind="stable")
        repeated = self._sorted_ids[1:][np.diff(self._sorted_ids) == 0]
        if len(repeated):
            raise checks.sample_captured_twice(int(repeated[0]))


def _entry(path: Path, layout: ShardLayout, sha256: str) -> ShardEntry:
    return ShardEntry(path.name, layout.num_samples, layout.num_tokens, layout.index_crc32, sha256)


def _whole_shards(folder: Path, manifest: Manifest) -> list[Shard]:
    """The shards from the first on, up to one that is absent or damaged."""
    shards: list[Shard] = []
    while (path := folder / shard_name(len(shards))).exists():
        try:
            shard = open_unlisted_shard(path, manifest.tensors, manifest.digest)
            shard.require_all_records()
        except ValueError:
            break
        shards.append(shard)
    return shards


@contextmanager
def open_writer(folder: Path, plan: Plan, *, resume: bool) -> Iterator[CacheWriter]:
    """The only writer of a folder, for as long as the context lasts.

    Args:
        folder: made where it does not exist.
        plan: what is being captured.
        resume: False removes what an earlier capture, finished or not, has left there.

    Raises:
        ValueError: the folder holds a capture of another plan, or other files.
        RuntimeError: another writer is at work there.
        OSError: the folder cannot be made or written to.
    """
    make_folder(folder)
    with only_writer(folder):
        if not resume:
            for pattern in (MANIFEST, UNFINISHED, "shard-*.safetensors"):
                for path in folder.glob(pattern):
                    path.unlink()
        yield CacheWriter(folder, plan)
