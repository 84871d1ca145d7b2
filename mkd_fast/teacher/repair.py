"""Making a damaged cache as it was, with the teacher only for what cannot be had without it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mkd_fast.checks import cache as checks
from mkd_fast.files import sha256_of, sha256_of_file, write_atomically
from mkd_fast.teacher.cache.fingerprint import Fingerprints
from mkd_fast.teacher.cache.head import head_parts, unlisted_head
from mkd_fast.teacher.cache.index import ids_in_shards, index_parts
from mkd_fast.teacher.cache.kinds import HIDDEN
from mkd_fast.teacher.cache.left import entry_of, first_whole_shards
from mkd_fast.teacher.cache.lock import only_writer
from mkd_fast.teacher.cache.manifest import HEAD, INDEX, MANIFEST, PLAN, Manifest, read_manifest
from mkd_fast.teacher.cache.verify import Damage, verify
from mkd_fast.teacher.cache.writer import CacheWriter, write_again, write_file, write_manifest
from mkd_fast.teacher.capture import CaptureProgress, complete, write_records
from mkd_fast.teacher.runners import Runner, runner_of
from mkd_fast.teacher.shared import in_stored_order

if TYPE_CHECKING:
    from mkd_fast.teacher.streamed import StreamedTeacher


def repair(
    path: str | Path,
    teacher_model: "nn.Module | StreamedTeacher | None" = None,
    batches: Iterable[Any] | None = None,
    *,
    fingerprints: Fingerprints | None = None,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[CaptureProgress], None] | None = None,
) -> tuple[Damage, ...]:
    """Find what is damaged in a cache and write it again, byte for byte as it was.

    The index, ``capture.json``, files that do not belong, and a manifest whose shards are all
    whole need no teacher. A damaged shard needs it and the batches, of which it sees only those
    of that shard; a damaged head needs it alone. Stopped at any moment, it can be called again.

    Without manifest nothing says what a damaged shard was, so the capture goes on from the first
    one, as it does where it was stopped.

    Args:
        path: the cache's folder.
        teacher_model: the one that was captured.
        batches: those that were captured, in the same order; of a cache merged by ``merge``,
            those of its parts one after another.
        fingerprints: what to compare with the cache's own, besides the teacher's and its
            precision, which are found where they are not given.
        device: where the teacher runs; None leaves it where it is. A device that rounds
            otherwise than that of the capture does not give the same bytes.
        autocast: as it was captured.
        progress: called after each batch.

    Returns:
        What was damaged, and no longer is; the manifest stands for all where the capture went on.

    Raises:
        ValueError: the teacher or the batches are needed and were not given, or are others, which
            may show only in the bytes that come out; nothing is overwritten with such bytes. Or
            the folder holds no cache that could be repaired.
        RuntimeError: another process is writing there.
        OSError: the disk is full or not writable.
    """
    folder = Path(path)
    if not folder.exists():
        raise checks.missing_cache(folder)
    teaching = _Teaching(folder, teacher_model, batches, fingerprints, device, autocast, progress)
    with only_writer(folder):
        found = {damage.file: damage for damage in verify(folder)}
        if MANIFEST in found:
            if not (folder / PLAN).exists():
                raise checks.nothing_to_repair(folder)
            unlisted = read_manifest(folder / PLAN)
            if not _write_manifest(folder, unlisted):
                teaching.go_on(unlisted)
            found |= {damage.file: damage for damage in verify(folder)}
        if found:
            _write_files(folder, read_manifest(folder / MANIFEST), found, teaching)
    return tuple(found.values())


def _write_files(
    folder: Path, manifest: Manifest, found: Collection[str], teaching: "_Teaching"
) -> None:
    """Put back, or take away, every file in which something was found."""
    shards = {entry.file for entry in manifest.shards}
    others = {entry.file: entry for entry in manifest.others}
    for name in set(found) - shards - others.keys() - {MANIFEST, PLAN}:
        (folder / name).unlink()
    if PLAN in found:
        write_atomically(folder / PLAN, [replace(manifest, shards=(), others=()).to_bytes()])
    if lost := sorted(shards & set(found)):
        teaching.write_shards(manifest, lost)
    if INDEX in found:
        parts = index_parts(ids_in_shards(folder, manifest))
        write_again(folder / INDEX, others[INDEX].sha256, parts)
    if HEAD in found:
        head = teaching.teacher(manifest, [HEAD]).head()
        parts = head_parts(*head, manifest.outputs.num_columns)
        write_again(folder / HEAD, others[HEAD].sha256, parts)


def _write_manifest(folder: Path, unlisted: Manifest) -> bool:
    """Write a lost manifest; False where a shard or the head may be lost as well."""
    if not (shards := first_whole_shards(folder, unlisted)):
        return False
    parts = None
    if HIDDEN in unlisted.plan.keep and (parts := unlisted_head(folder / HEAD)) is None:
        return False
    index, ids = folder / INDEX, [shard.sample_ids for shard in shards]
    # it is written when all shards are, so it tells whether these are all
    if not index.exists() or sha256_of_file(index) != sha256_of(index_parts(ids)):
        return False
    entries = tuple(map(entry_of, shards))
    head = None if parts is None else write_file(folder, HEAD, parts)
    write_manifest(folder, replace(unlisted, shards=entries), ids, head)
    return True


@dataclass(frozen=True)
class _Teaching:
    """The teacher and what it is run over; asked for only where it is needed."""

    folder: Path
    model: "nn.Module | StreamedTeacher | None"
    batches: Iterable[Any] | None
    fingerprints: Fingerprints | None
    device: torch.device | str | None
    autocast: torch.dtype | None
    progress: Callable[[CaptureProgress], None] | None

    def teacher(self, manifest: Manifest, lost: Sequence[str]) -> Runner:
        """The one that was captured; for files that were lost."""
        if self.model is None:
            raise checks.repair_needs(self.folder, lost, "teacher_model")
        asked = complete(self.fingerprints, self.model, self.autocast)
        asked.require("repair", manifest.plan.fingerprints, self.folder)
        if self.device is not None and isinstance(self.model, nn.Module):
            self.model.to(self.device)
        return runner_of(self.model, manifest.plan, self.autocast)

    def write_shards(self, manifest: Manifest, lost: Sequence[str]) -> None:
        """Capture lost shards of a finished cache again."""
        teacher, batches = self._both(manifest, lost)
        with CacheWriter(self.folder, manifest.plan, lost=lost) as writer:
            write_records(writer, teacher, batches, self.progress)

    def go_on(self, unlisted: Manifest) -> None:
        """Finish a capture that has no manifest."""
        if unlisted.plan.num_parts > 1:
            raise checks.cannot_repair_parts(self.folder)
        lost = [MANIFEST, "every shard from the first damaged or missing one on"]
        teacher, batches = self._both(unlisted, lost)
        with CacheWriter(self.folder, unlisted.plan) as writer:
            write_records(writer, teacher, batches, self.progress)

    def _both(self, manifest: Manifest, lost: Sequence[str]) -> tuple[Runner, Iterable[Any]]:
        teacher = self.teacher(manifest, lost)
        if self.batches is None:
            raise checks.repair_needs(self.folder, lost, "batches")
        return teacher, in_stored_order(self.batches, manifest.plan.num_parts)
