"""Reading every byte of a cache to find what is damaged."""

from dataclasses import dataclass
from pathlib import Path

from mkd_fast.checks import teacher as checks
from mkd_fast.teacher.cache.manifest import MANIFEST, Manifest, ShardEntry, read_manifest
from mkd_fast.teacher.cache.shard import Shard


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written, and in what."""

    file: str
    reason: str


def verify(path: str | Path) -> tuple[Damage, ...]:
    """Compare every file of a cache with its checksum.

    Args:
        path: the cache's folder.

    Returns:
        What is damaged, missing or should not be there, in the order of names; empty where all is
        well. A damaged manifest is the only finding, since all others rest on it.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder / MANIFEST)
    except (ValueError, OSError) as error:
        return (Damage(MANIFEST, str(error)),)
    listed = {entry.file for entry in manifest.shards}
    strays = [file.name for file in folder.glob("shard-*") if file.name not in listed]
    found = [Damage(name, "the manifest does not list it") for name in strays]
    for entry in manifest.shards:
        if reason := _damage(folder, manifest, entry):
            found.append(Damage(entry.file, reason))
    return tuple(sorted(found, key=lambda damage: damage.file))


def _damage(folder: Path, manifest: Manifest, entry: ShardEntry) -> str | None:
    path = folder / entry.file
    try:
        shard = Shard(path, manifest.layout(entry))
        shard.require_all_records()
        if shard.sha256() != entry.sha256:
            raise checks.cache_damaged(path, "its content does not match the manifest's sha256")
    except (ValueError, OSError) as error:
        return str(error)
    return None
