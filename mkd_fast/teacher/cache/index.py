"""Where each sample lies, over all shards: one sorted file, so that opening reads none of them.

    index.sample_ids    I64 [samples], rising
    index.shards        U32 [samples]
    index.records       U32 [samples]    position in the shard

It is mapped and searched in place. What it says is compared with the shard that it points to, so
that a damaged one is noticed when it misleads, and otherwise by ``verify``.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkd_fast.checks import cache as checks
from mkd_fast.teacher.cache.format import FORMAT, VERSION, Placed, header_of, place
from mkd_fast.teacher.cache.manifest import INDEX, FileEntry, Manifest
from mkd_fast.teacher.cache.shard import Shard
from mkd_fast.teacher.cache.whole import require_size, require_whole


def index_parts(ids_of_shards: Sequence[NDArray[np.int64]]) -> list[Any]:
    """The file's parts, from the sample ids of every shard in its order."""
    sample_ids = np.concatenate(ids_of_shards)
    counts = [len(ids) for ids in ids_of_shards]
    order = np.argsort(sample_ids, kind="stable")
    shards = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)[order]
    records = np.concatenate([np.arange(count, dtype=np.uint32) for count in counts])[order]
    header, _ = _layout(len(sample_ids))
    return [header, sample_ids[order], shards, records]


def ids_in_shards(folder: Path, manifest: Manifest) -> list[NDArray[np.int64]]:
    """The sample ids of every shard of a cache, in its order."""
    opened = (Shard(folder / entry.file, manifest.layout(entry)) for entry in manifest.shards)
    return [shard.sample_ids.copy() for shard in opened]


def _layout(num_samples: int) -> tuple[bytes, dict[str, Placed]]:
    shape = (num_samples,)
    placed = place(
        [
            ("index.sample_ids", "I64", shape),
            ("index.shards", "U32", shape),
            ("index.records", "U32", shape),
        ]
    )
    return header_of(placed, {"format": f"{FORMAT} {VERSION} index"}), placed


class SampleIndex:
    """A cache's index, mapped.

    Args:
        folder: of the cache.
        num_samples: in all its shards.
        entry: what the manifest says about the file.

    Raises:
        ValueError: it is missing, or of another size or header.
    """

    def __init__(self, folder: Path, num_samples: int, entry: FileEntry) -> None:
        self._path, self._entry = folder / INDEX, entry
        header, placed = _layout(num_samples)
        size = len(header) + next(reversed(placed.values())).end
        require_size(self._path, size)
        with self._path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[: len(header)] != header:
            raise checks.cache_damaged(self._path, "its header is not the one this cache was given")
        body = memoryview(mapped)[len(header) :]
        self.sample_ids: NDArray[np.int64]
        self.sample_ids, self._shards, self._records = (at.view(body) for at in placed.values())

    def find(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Shard and record of each sample.

        Raises:
            ValueError: one that is not there, or the file is damaged.
        """
        at = np.searchsorted(self.sample_ids, sample_ids)
        at = np.minimum(at, len(self.sample_ids) - 1)
        absent = self.sample_ids[at] != sample_ids
        if absent.any():
            raise self._absent(int(sample_ids[absent][0]))
        return self._shards[at], self._records[at]

    def _absent(self, sample_id: int) -> ValueError:
        require_whole(self._path, self._entry.sha256)  # or it may be there unknown to this file
        return checks.sample_not_cached(self._path.parent, sample_id, len(self.sample_ids))

    def damaged(self) -> ValueError:
        """The error of a file that contradicts a shard."""
        return checks.cache_file_of_other_content(self._path)
