"""What an earlier run has left in a cache's folder."""

import re
from collections.abc import Collection
from pathlib import Path

from mkd_fast.teacher.cache.format import shard_name
from mkd_fast.teacher.cache.lock import LOCK
from mkd_fast.teacher.cache.manifest import Manifest, Plan, ShardEntry
from mkd_fast.teacher.cache.shard import Shard, open_unlisted_shard

# the folder of one part of a capture that several processes share
_PART = re.compile(r"part-\d{5}-of-\d{5}")


def part_name(part: int, num_parts: int) -> str:
    """Name of a part's folder inside that of the cache."""
    return f"part-{part:05d}-of-{num_parts:05d}"


def part_folders(folder: Path) -> list[Path]:
    """The parts in a cache's folder."""
    return sorted(path for path in folder.glob("part-*") if _PART.fullmatch(path.name))


def remove_shards(folder: Path, *, all_but: Collection[str]) -> None:
    """Remove the shards of a cache's folder that are not among these files."""
    for path in folder.glob("shard-*.safetensors"):
        if path.name not in all_but:
            path.unlink()


def entry_of(shard: Shard) -> ShardEntry:
    """What a manifest says about a shard; reads all of it."""
    return ShardEntry.of(shard.layout, shard.path.name, shard.sha256())


def is_last(shard: Shard, plan: Plan) -> bool:
    """Whether it is surely the last: only that may be smaller than the plan says."""
    return shard.layout.record_bytes < plan.shard_bytes


def first_whole_shards(folder: Path, manifest: Manifest) -> list[Shard]:
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


def is_foreign(path: Path) -> bool:
    """Whether something in a folder without ``capture.json`` is none of a cache's."""
    return path.name != LOCK and path.suffix != ".tmp" and not _PART.fullmatch(path.name)
