"""What a cache holds, from its manifest alone, for people to read."""

from dataclasses import dataclass, replace
from pathlib import Path

from mkd_fast.teacher.cache.format import shard_name
from mkd_fast.teacher.cache.left import part_folders
from mkd_fast.teacher.cache.manifest import (
    HEAD,
    INDEX,
    MANIFEST,
    PLAN,
    Manifest,
    ShardEntry,
    read_manifest,
)
from mkd_fast.teacher.cache.shard import open_unlisted_shard


@dataclass(frozen=True)
class CacheSummary:
    """What a cache holds.

    Args:
        keep: kinds of targets.
        hidden_layers: numbers of the layers kept.
        temperatures: for which log_z is kept.
        num_samples: records.
        num_tokens: tokens of all records.
        num_bytes: of all shards and the index.
        head_bytes: of the teacher's head, stored once.
        bytes_per_token: for each stored tensor, and for ``"index"``, which includes headers.
    """

    keep: tuple[str, ...]
    hidden_layers: tuple[int, ...]
    temperatures: tuple[float, ...]
    num_samples: int
    num_tokens: int
    num_bytes: int
    head_bytes: int
    bytes_per_token: dict[str, float]


def summarise(manifest: Manifest) -> CacheSummary:
    """Kinds, counts and bytes per token."""
    layouts = [manifest.layout(entry) for entry in manifest.shards]
    num_tokens = sum(entry.num_tokens for entry in manifest.shards)
    num_bytes = {
        "index": sum(layout.index_end for layout in layouts)
        + sum(entry.num_bytes for entry in manifest.others if entry.file == INDEX)
    }
    for spec in manifest.tensors:
        placed = [layout.placed[spec.name] for layout in layouts]
        num_bytes[spec.name] = sum(at.end - at.begin for at in placed)
    return CacheSummary(
        manifest.plan.keep,
        manifest.plan.hidden_layers,
        manifest.plan.temperatures,
        sum(entry.num_samples for entry in manifest.shards),
        num_tokens,
        sum(num_bytes.values()),
        sum(entry.num_bytes for entry in manifest.others if entry.file == HEAD),
        {name: count / max(num_tokens, 1) for name, count in num_bytes.items()},
    )


def read_unfinished(folder: Path) -> Manifest | None:
    """The manifest of a capture that is on its way, in all its parts, with the shards so far.

    Of unfinished parts the headers and indexes are read, not the records. None where there is no
    such capture.

    Raises:
        ValueError: a plan is damaged.
    """
    found = [_so_far(path) for path in part_folders(folder) or [folder] if (path / PLAN).exists()]
    if not found or (folder / MANIFEST).exists():
        return None
    return replace(found[0], shards=tuple(entry for part in found for entry in part.shards))


def _so_far(folder: Path) -> Manifest:
    if (folder / MANIFEST).exists():
        return replace(read_manifest(folder / MANIFEST), others=())
    manifest = read_manifest(folder / PLAN)
    shards: list[ShardEntry] = []
    while (path := folder / shard_name(len(shards))).exists():
        try:
            layout = open_unlisted_shard(path, manifest.tensors, manifest.digest).layout
        except ValueError:  # it will be captured again, and those after it
            break
        shards.append(ShardEntry.of(layout, path.name, sha256=""))
    return replace(manifest, shards=tuple(shards))
