"""Writing a cache: whole shards, the manifest last, and going on where a run was stopped.

Everything written is a function of the plan and the batches, and a shard holds whole batches, so
a run that was stopped and resumed ends with the same bytes as one that was not.
"""

import itertools
import shutil
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mkd_fast.checks import cache as checks
from mkd_fast.files import make_folder, sha256_of, write_atomically, writing_into
from mkd_fast.teacher.cache.format import ShardLayout, TensorSpec, axes_of, crc32, shard_name
from mkd_fast.teacher.cache.head import head_parts
from mkd_fast.teacher.cache.index import index_parts
from mkd_fast.teacher.cache.left import (
    entry_of,
    first_whole_shards,
    is_foreign,
    is_last,
    part_folders,
    remove_shards,
)
from mkd_fast.teacher.cache.lock import only_writer
from mkd_fast.teacher.cache.manifest import (
    HEAD,
    INDEX,
    MANIFEST,
    PLAN,
    FileEntry,
    Manifest,
    Outputs,
    Plan,
    ShardEntry,
    read_manifest,
)
from mkd_fast.teacher.cache.shard import Shard


@dataclass(frozen=True)
class Records:
    """The records of one batch.

    Args:
        sample_ids: int64 ``[B]``.
        token_hashes: uint64 ``[B]``.
        num_rows: of each sample on every axis but ``"sample"``, int64 ``[B]``.
        tensors: by name, in storage dtype, contiguous: ``[rows, width]``.
    """

    sample_ids: NDArray[np.int64]
    token_hashes: NDArray[np.uint64]
    num_rows: dict[str, NDArray[np.int64]]
    tensors: dict[str, NDArray[Any]]

    def crc32s(self, tensors: tuple[TensorSpec, ...]) -> NDArray[np.uint32]:
        """The checksum of each record in each tensor, ``[B, tensors]``."""
        num_samples = len(self.sample_ids)
        sums = np.empty((num_samples, len(tensors)), np.uint32)
        bounds = {axis: _offsets(counts).tolist() for axis, counts in self.num_rows.items()}
        bounds["sample"] = list(range(num_samples + 1))
        for number, spec in enumerate(tensors):
            rows = self.tensors[spec.name]
            for record, (begin, end) in enumerate(itertools.pairwise(bounds[spec.axis])):
                sums[record, number] = crc32(rows[begin:end])
        return sums


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)))


class CacheWriter:
    """Collect records into shards; from ``open_writer``, which holds the folder's lock.

    A shard is written by a thread of its own while the records of the next one are collected: so
    up to two are in memory, and what goes wrong with one is raised by a later ``add`` or by
    ``finish``. It is a context, which ends when nothing is written any more.

    It goes on where an earlier run was stopped. Of a finished cache it asks for the samples of
    lost shards only, and writes these again as they were.

    Args:
        folder: of the cache.
        plan: what is being captured.
        lost: files of the finished cache's shards that are to be written again, all others being
            whole; None for a capture that has not finished.

    Raises:
        ValueError: the folder holds a capture of another plan, or other files.
        OSError: the folder cannot be read.
    """

    def __init__(self, folder: Path, plan: Plan, *, lost: Collection[str] | None = None) -> None:
        self.folder, self.plan = folder, plan
        self.num_samples = self.num_tokens = 0
        self._manifest: Manifest | None = None
        self._pending: list[Records] = []
        self._pending_bytes = self._pending_samples = 0
        # of every shard that is known: what it must be, and its sample ids where it is whole
        self._expected: list[ShardEntry] = []
        self._whole: dict[int, Shard] = {}
        self._ids: dict[int, NDArray[np.int64]] = {}
        self._begins = np.zeros(1, np.int64)  # of each known shard, in samples
        self._num_asked = 0
        self._is_end_known = False
        self._repairs = lost is not None
        self._behind = ThreadPoolExecutor(1)
        self._in_writing: Future[None] | None = None
        self._head: Future[FileEntry] | None = None
        if lost is not None:
            self._take_up(read_manifest(folder / MANIFEST), lost)
        elif (folder / PLAN).exists():
            self._take_up(read_manifest(folder / PLAN))
        elif others := [path.name for path in folder.iterdir() if is_foreign(path)]:
            raise checks.folder_not_empty("capture", folder, min(others))
        self._sorted_ids = np.sort(np.concatenate([np.empty(0, np.int64), *self._ids.values()]))

    def __enter__(self) -> Self:
        """Shards are written while the teacher goes on, as long as the context lasts."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until nothing is written any more."""
        self._behind.shutdown()

    def _take_up(self, manifest: Manifest, lost: Collection[str] = ()) -> None:
        self.plan.require("capture", manifest.plan, self.folder)
        self._manifest = replace(manifest, shards=(), others=())
        if self._repairs:
            self._expected = list(manifest.shards)
            self._whole = {
                number: Shard(self.folder / entry.file, manifest.layout(entry))
                for number, entry in enumerate(manifest.shards)
                if entry.file not in lost
            }
            self._is_end_known = True
        else:
            shards = first_whole_shards(self.folder, manifest)
            self._whole = dict(enumerate(shards))
            self._expected = [entry_of(shard) for shard in shards]
            self._is_end_known = bool(shards) and is_last(shards[-1], self.plan)
            remove_shards(self.folder, all_but={entry.file for entry in self._expected})
        self._ids = {number: shard.sample_ids for number, shard in self._whole.items()}
        self.num_samples = sum(self._expected[number].num_samples for number in self._whole)
        self.num_tokens = sum(self._expected[number].num_tokens for number in self._whole)
        counts = [entry.num_samples for entry in self._expected]
        self._begins = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))

    def skip(self, sample_ids: NDArray[np.int64], token_hashes: NDArray[np.uint64]) -> bool:
        """Whether a whole shard has this batch; asked for each batch, in order.

        Raises:
            ValueError: it was captured from other batches.
        """
        begin = self._num_asked
        self._num_asked += len(sample_ids)
        number = int(np.searchsorted(self._begins, begin, side="right")) - 1
        if number == len(self._expected):
            if self._is_end_known:
                raise checks.batches_changed(self.folder, begin)
            return False
        if (shard := self._whole.get(number)) is None:
            return False
        first = begin - int(self._begins[number])
        part = slice(first, first + len(sample_ids))
        same_ids = np.array_equal(shard.sample_ids[part], sample_ids)
        if not same_ids or not np.array_equal(shard.token_hashes[part], token_hashes):
            raise checks.batches_changed(self.folder, begin)
        return True

    def begin(self, outputs: Outputs, tensors: tuple[TensorSpec, ...]) -> None:
        """Say what will be stored, before the first ``add``; write the plan if it is new."""
        if self._manifest is None:
            self._manifest = Manifest.of_capture(self.plan, outputs, tensors)
            write_atomically(self.folder / PLAN, [self._manifest.to_bytes()])
        pairs = [
            (f.name, getattr(self._manifest.outputs, f.name), getattr(outputs, f.name))
            for f in fields(Outputs)
        ]
        for what, stored, asked in (*pairs, ("tensors", self._manifest.tensors, tensors)):
            if stored != asked:
                raise checks.cache_of_another("capture", self.folder, what, stored, asked)

    @property
    def has_head(self) -> bool:
        """Whether the head is written, or will be without being handed on."""
        return self._repairs or self._head is not None

    def hand_on_head(self, weight: Tensor, bias: Tensor | None) -> None:
        """Have the teacher's head written, unless it is there."""
        if self._manifest is None:
            raise checks.no_batches()
        if not self.has_head:
            num_columns = self._manifest.outputs.num_columns
            self._head = self._behind.submit(
                lambda: write_file(self.folder, HEAD, head_parts(weight, bias, num_columns))
            )

    def add(self, records: Records) -> None:
        """Take the records of one batch, and write a shard where they fill it."""
        self._pending.append(records)
        self._pending_bytes += sum(rows.nbytes for rows in records.tensors.values())
        self._pending_samples += len(records.sample_ids)
        self.num_samples += len(records.sample_ids)
        self.num_tokens += int(records.num_rows["token"].sum())
        if self._repairs:  # in a merged cache, any shard may be the last of its part
            self._await_shard()
            is_full = self._pending_samples >= self._expected[self._number].num_samples
        else:
            is_full = self._pending_bytes >= self.plan.shard_bytes
        if is_full:
            self._hand_on_shard()

    def _hand_on_shard(self) -> None:
        """Have what is pending written; the shard before it is written by then."""
        self._await_shard()
        self._in_writing = self._behind.submit(self._write_shard, self._pending)
        self._pending, self._pending_bytes, self._pending_samples = [], 0, 0

    def _await_shard(self) -> None:
        """Wait for the shard that is being written, and raise what its writing has raised."""
        if self._in_writing is not None:
            self._in_writing.result()
            self._in_writing = None

    @property
    def _number(self) -> int:
        """Of the shard that is written next."""
        return next(number for number in itertools.count() if number not in self._ids)

    def finish(self) -> None:
        """Write the last shard, the index and the manifest; of a finished cache, lost shards only.

        The head, where there is one, has been handed on.
        """
        if self._pending:
            self._hand_on_shard()
        self._await_shard()
        if self._num_asked < self._begins[-1]:
            raise checks.batches_changed(self.folder, self._num_asked)
        if self._manifest is None or not self._expected:
            raise checks.no_batches()
        if self._repairs:
            return
        shards = tuple(self._expected)
        ids = [self._ids[number] for number in range(len(shards))]
        whole = replace(self._manifest, shards=shards)
        head = None if self._head is None else self._head.result()
        write_manifest(self.folder, whole, ids, head)

    def _write_shard(self, batches: Sequence[Records]) -> None:
        assert self._manifest is not None, "begin comes before add"
        tensors = self._manifest.tensors
        sample_ids = np.concatenate([batch.sample_ids for batch in batches])
        self._require_new(sample_ids)
        axes = axes_of(tensors)
        num_rows = {
            axis: np.concatenate([batch.num_rows[axis] for batch in batches]) for axis in axes[1:]
        }
        index: tuple[NDArray[Any], ...] = (
            sample_ids,
            np.concatenate([batch.token_hashes for batch in batches]),
            *(_offsets(counts) for counts in num_rows.values()),
            np.concatenate([batch.crc32s(tensors) for batch in batches]),
        )
        index_crc32 = 0
        for part in index:
            index_crc32 = zlib.crc32(part.data, index_crc32)
        totals = (len(sample_ids), *(int(counts.sum()) for counts in num_rows.values()))
        layout = ShardLayout(tensors, totals, self._manifest.digest, index_crc32)
        stored = [name for name in layout.placed if not name.startswith("index.")]
        rows = (batch.tensors[name] for name in stored for batch in batches)
        parts = [layout.header, *index, *rows]
        number = self._number
        path = self.folder / shard_name(number)
        if self._repairs:
            write_again(path, self._expected[number].sha256, parts)
        else:
            sha256 = write_atomically(path, parts)
            self._expected.append(ShardEntry.of(layout, path.name, sha256))
        self._ids[number] = sample_ids

    def _require_new(self, sample_ids: NDArray[np.int64]) -> None:
        both = np.concatenate((self._sorted_ids, np.sort(sample_ids)))
        self._sorted_ids = np.sort(both, kind="stable")  # which merges what is sorted already
        repeated = self._sorted_ids[1:][np.diff(self._sorted_ids) == 0]
        if len(repeated):
            raise checks.sample_captured_twice(int(repeated[0]))


def write_file(folder: Path, name: str, parts: Sequence[Any]) -> FileEntry:
    """Write a file that is not a shard; what the manifest says about it."""
    sha256 = write_atomically(folder / name, parts)
    return FileEntry(name, sum(memoryview(part).nbytes for part in parts), sha256)


def write_manifest(
    folder: Path,
    manifest: Manifest,
    ids_of_shards: Sequence[NDArray[np.int64]],
    head: FileEntry | None,
) -> None:
    """Complete a cache whose shards and head are written: its index and, last, its manifest.

    Args:
        folder: of the cache.
        manifest: with every shard.
        ids_of_shards: sample ids of each, all different.
        head: its file, where ``"hidden"`` is kept.
    """
    index = write_file(folder, INDEX, index_parts(ids_of_shards))
    others = (index,) if head is None else (head, index)
    write_atomically(folder / MANIFEST, [replace(manifest, others=others).to_bytes()])


def write_again(path: Path, sha256: str, parts: Sequence[Any]) -> None:
    """Put a file back that was damaged.

    Args:
        path: the file, which stays as it is where an error is raised.
        sha256: of the file as it was.
        parts: its content.

    Raises:
        ValueError: they are not what was there.
    """
    if (found := sha256_of(parts)) != sha256:
        raise checks.repaired_otherwise(path, sha256, found)
    write_atomically(path, parts)


def _remove_all(folder: Path) -> None:
    for pattern in (MANIFEST, PLAN, INDEX, HEAD, "shard-*.safetensors", "*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()
    for part in part_folders(folder):
        with only_writer(part):
            shutil.rmtree(part)


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
            with writing_into(folder):
                _remove_all(folder)
        with CacheWriter(folder, plan) as writer:
            yield writer
