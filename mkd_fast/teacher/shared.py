"""One capture shared by several processes, on one machine or on many that see one folder.

Part p of P is every P-th batch from the p-th on, captured as a cache of its own in
``part-ppppp-of-PPPPP`` inside the folder. A process takes the parts that nobody is at, its own
rank's first, and whoever finds all of them finished merges them. So the bytes depend on P alone,
however many processes there were. Processes never wait for each other, except for the last parts.

What rests on locks: each part, and the merging, has one process at a time, and what a killed one
held is free at once. The lock is flock(2) on ``capture.lock``: the kernel drops it when the
process and those it forked (workers of a ``DataLoader``) are gone. It reaches other machines where
the file system passes it on: NFS 4 (as POSIX locks, which end with the lease of a machine that
vanished), Lustre mounted with ``flock``, GPFS, CephFS. Where locks stay on each machine (NFS with
``nolock`` or ``local_lock``, most object stores) two machines may capture the same part: work
done twice, and a half-written file would be refused by its sha256 when parts are merged. There,
give each machine a folder and batches of its own, and ``merge`` the folders.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

from torch import distributed

from mkd_fast.checks import cache as checks
from mkd_fast.files import make_folder
from mkd_fast.teacher.cache.left import part_folders, part_name
from mkd_fast.teacher.cache.lock import only_writer
from mkd_fast.teacher.cache.manifest import MANIFEST, PLAN, Plan, read_manifest
from mkd_fast.teacher.cache.merge import merge_into
from mkd_fast.teacher.cache.writer import CacheWriter

_SECONDS_BETWEEN_LOOKS = 0.5

# Capture these batches, and complete the writer's cache.
Write = Callable[[CacheWriter, Iterable[Any]], None]


def batches_of(batches: Iterable[Any], part: int, num_parts: int) -> Iterator[Any]:
    """Every ``num_parts``-th batch from the one numbered ``part`` on."""
    return islice(batches, part, None, num_parts)


def in_stored_order(batches: Iterable[Any], num_parts: int) -> Iterator[Any]:
    """All batches as a cache has them: part after part."""
    return chain.from_iterable(batches_of(batches, part, num_parts) for part in range(num_parts))


def resolved_num_parts(
    folder: Path, asked: int | None, batches: Iterable[Any], *, resume: bool
) -> int:
    """Parts as asked for, or as the capture in the folder was begun, or one for each process.

    The last are as many as there are batches at most, where these can be counted.

    Raises:
        ValueError: asked for others than it was begun with.
    """
    begun = _num_parts_begun(folder) if resume else None
    if asked is not None and begun not in (None, asked):
        raise checks.cache_of_another("capture", folder, "num_parts", begun, asked)
    world_size = _rank_and_world_size()[1]
    most = len(batches) if isinstance(batches, Sized) else world_size
    return asked or begun or max(1, min(world_size, most))


def _num_parts_begun(folder: Path) -> int | None:
    for name in (MANIFEST, PLAN):
        if (folder / name).exists():
            return read_manifest(folder / name).plan.num_parts
    for part in part_folders(folder):
        return int(part.name[-5:])
    return None


def _rank_and_world_size() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def capture_parts(folder: Path, plan: Plan, batches: Iterable[Any], write: Write) -> None:
    """Take part in a shared capture until it is finished.

    Args:
        folder: of the whole cache.
        plan: with ``num_parts``.
        batches: all of them, whichever part they belong to.
        write: what captures one part.
    """
    make_folder(folder)
    parts = range(plan.num_parts)
    rank = _rank_and_world_size()[0] % plan.num_parts
    folders = {part: folder / part_name(part, plan.num_parts) for part in parts}
    while not (folder / MANIFEST).exists():
        unfinished = [
            part
            for part in (*parts[rank:], *parts[:rank])
            if not (folders[part] / MANIFEST).exists()
        ]
        if unfinished:
            took = any(
                _capture_part(folders[part], part, plan, batches, write) for part in unfinished
            )
        else:
            took = _merge_parts(folder, list(folders.values()))
        if not took:  # others are at it, who may yet be killed
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def remove_parts(folder: Path) -> None:
    """Remove the parts of a finished cache, which has all they have."""
    for part in part_folders(folder):
        # another process may be doing the same
        shutil.rmtree(part, ignore_errors=True)


def _capture_part(
    folder: Path, part: int, plan: Plan, batches: Iterable[Any], write: Write
) -> bool:
    """Capture one part; False where another process is at it."""
    make_folder(folder)
    with ExitStack() as stack:
        if not _is_taken(stack, folder):
            return False
        is_merged = (folder.parent / MANIFEST).exists()
        if not is_merged and not (folder / MANIFEST).exists():
            mine = batches_of(batches, part, plan.num_parts)
            if (first := next(mine, None)) is None:
                raise checks.more_parts_than_batches(plan.num_parts, part)
            with CacheWriter(folder, plan) as writer:
                write(writer, chain([first], mine))
    return True


def _merge_parts(folder: Path, parts: list[Path]) -> bool:
    """Join all parts, which are finished; False where another process is at it."""
    with ExitStack() as stack:
        if not _is_taken(stack, folder):
            return False
        if not (folder / MANIFEST).exists():
            merge_into(folder, parts)
    return True


def _is_taken(stack: ExitStack, folder: Path) -> bool:
    """Take the folder's lock for as long as the stack lasts, unless another process has it."""
    try:
        stack.enter_context(only_writer(folder))
    except (RuntimeError, FileNotFoundError):  # or has merged the part and removed its folder
        return False
    return True
