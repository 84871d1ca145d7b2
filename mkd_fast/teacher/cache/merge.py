"""Joining finished caches of one plan and teacher, each of its own samples, into one."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mkd_fast.checks import cache as checks
from mkd_fast.files import make_folder, write_atomically, writing_into
from mkd_fast.teacher.cache.format import shard_name
from mkd_fast.teacher.cache.index import ids_in_shards
from mkd_fast.teacher.cache.left import is_foreign, remove_shards
from mkd_fast.teacher.cache.lock import only_writer
from mkd_fast.teacher.cache.manifest import (
    HEAD,
    MANIFEST,
    PLAN,
    Manifest,
    ShardEntry,
    read_manifest,
)
from mkd_fast.teacher.cache.reader import TeacherCache
from mkd_fast.teacher.cache.whole import require_whole
from mkd_fast.teacher.cache.writer import write_file, write_manifest


def merge(paths: Sequence[str | Path], out: str | Path) -> TeacherCache:
    """Make one cache of several, whose files are left as they are.

    Shards are hard links where the file system has them, and copies otherwise; each is compared
    with its sha256. The same caches in the same order give the same bytes. Stopped at any moment,
    it can be called again.

    Args:
        paths: finished caches, in the order that the samples are to have.
        out: folder of the new one; new or empty, or left by a merge of the same caches that was
            stopped.

    Returns:
        The new cache, open.

    Raises:
        ValueError: they are of different plans, teachers or texts, have a sample twice, or are
            damaged; or ``out`` holds something else.
        RuntimeError: another process is writing to ``out``.
        OSError: the disk is full or not writable.
    """
    if not paths:
        raise checks.nothing_to_merge()
    make_folder(Path(out))
    with only_writer(Path(out)):
        return merge_into(Path(out), [Path(path) for path in paths])


def merge_into(folder: Path, paths: Sequence[Path]) -> TeacherCache:
    """``merge`` for a caller that holds the folder's lock."""
    caches = [TeacherCache.open(path) for path in paths]
    for other in caches[1:]:
        _require_same(caches[0], other)
    entries = [(cache, entry) for cache in caches for entry in cache.manifest.shards]
    ids = [part for cache in caches for part in ids_in_shards(cache.path, cache.manifest)]
    _require_different(ids, [cache.path for cache, _ in entries])
    shards = tuple(
        replace(entry, file=shard_name(number)) for number, (_, entry) in enumerate(entries)
    )
    merged = replace(caches[0].manifest, shards=shards, others=())
    if not _is_there(folder, merged):
        with writing_into(folder):
            for (cache, entry), shard in zip(entries, shards, strict=True):
                _place(cache.path / entry.file, entry, folder / shard.file)
            remove_shards(folder, all_but={shard.file for shard in shards})
        parts = _head(caches[0])
        head = None if parts is None else write_file(folder, HEAD, parts)
        write_manifest(folder, merged, ids, head)
    return TeacherCache.open(folder)


def _require_same(first: TeacherCache, other: TeacherCache) -> None:
    one, two = first.manifest, other.manifest
    one.plan.require("merge", two.plan, other.path)
    for what in ("outputs", "tensors", "plan"):
        asked, found = getattr(one, what), getattr(two, what)
        if asked != found:
            raise checks.cache_of_another("merge", other.path, what, found, asked)
    heads = [[entry.sha256 for entry in m.others if entry.file == HEAD] for m in (one, two)]
    if heads[0] != heads[1]:
        raise checks.cache_of_another("merge", other.path, "head", heads[1], heads[0])


def _require_different(ids: Sequence[NDArray[np.int64]], folders: Sequence[Path]) -> None:
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    repeated = np.flatnonzero(np.diff(every[order]) == 0)
    if len(repeated):
        ends = np.cumsum([len(part) for part in ids])
        places = np.searchsorted(ends, order[repeated[0] : repeated[0] + 2], side="right")
        one, two = (folders[place] for place in places)
        raise checks.merged_sample_twice(int(every[order[repeated[0]]]), one, two)


def _is_there(folder: Path, merged: Manifest) -> bool:
    """Whether it has been merged already; raise ValueError where something else is there."""
    if (folder / MANIFEST).exists():
        there = read_manifest(folder / MANIFEST)
        if replace(there, others=()) != merged:
            raise checks.folder_not_empty("merge", folder, MANIFEST)
        return True
    plan = replace(merged, shards=()).to_bytes()
    if (folder / PLAN).exists():
        if (folder / PLAN).read_bytes() != plan:
            raise checks.folder_not_empty("merge", folder, PLAN)
    elif others := [path.name for path in folder.iterdir() if is_foreign(path)]:
        raise checks.folder_not_empty("merge", folder, min(others))
    else:
        write_atomically(folder / PLAN, [plan])
    return False


def _place(source: Path, entry: ShardEntry, target: Path) -> None:
    """Give a shard another name in another folder, or copy it there."""
    require_whole(source, entry.sha256)
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system, or one without links
        write_atomically(target, [np.memmap(source, mode="r")])
    else:
        temporary.replace(target)


def _head(cache: TeacherCache) -> list[bytes] | None:
    for entry in cache.manifest.others:
        if entry.file == HEAD:
            require_whole(cache.path / HEAD, entry.sha256)
            return [(cache.path / HEAD).read_bytes()]
    return None
