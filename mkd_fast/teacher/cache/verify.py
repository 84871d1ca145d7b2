"""Reading every byte of a cache to find what is damaged."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mkd_fast.checks import cache as checks
from mkd_fast.teacher.cache.manifest import (
    HEAD,
    INDEX,
    MANIFEST,
    PLAN,
    FileEntry,
    Manifest,
    ShardEntry,
    read_manifest,
)
from mkd_fast.teacher.cache.shard import Shard
from mkd_fast.teacher.cache.whole import require_whole

Each = Callable[[Sequence[ShardEntry | FileEntry]], Iterable[ShardEntry | FileEntry]]


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written, and in what."""

    file: str
    reason: str


def verify(path: str | Path, each: Each = iter) -> tuple[Damage, ...]:
    """Compare every file of a cache with its checksum.

    Args:
        path: the cache's folder.
        each: hands on the listed files one by one, as ``tqdm`` does, to show how far it is.

    Returns:
        What is damaged, missing or should not be there, in the order of names; empty where all is
        well. A damaged manifest is the only finding, since all others rest on it.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder / MANIFEST)
    except (ValueError, OSError) as error:
        return (Damage(MANIFEST, str(error)),)
    listed = {entry.file for entry in manifest.shards} | {other.file for other in manifest.others}
    named_as_ours = [path.name for path in folder.glob("shard-*.safetensors")]
    named_as_ours += [name for name in (INDEX, HEAD) if (folder / name).exists()]
    strays = set(named_as_ours) - listed
    found = [Damage(name, "the manifest does not list it") for name in strays]
    for entry in each((*manifest.shards, *manifest.others)):
        try:
            _require_as_written(folder, manifest, entry)
        except (ValueError, OSError) as error:
            found.append(Damage(entry.file, str(error)))
    unfinished = replace(manifest, shards=(), others=()).to_bytes()
    if not (folder / PLAN).exists() or (folder / PLAN).read_bytes() != unfinished:
        found.append(Damage(PLAN, "it is not the manifest's plan"))
    return tuple(sorted(found, key=lambda damage: damage.file))


def _require_as_written(folder: Path, manifest: Manifest, entry: ShardEntry | FileEntry) -> None:
    path = folder / entry.file
    if not isinstance(entry, ShardEntry):
        return require_whole(path, entry.sha256)
    shard = Shard(path, manifest.layout(entry))
    if shard.sha256() != entry.sha256:
        shard.require_all_records()  # names the first that is damaged
        raise checks.cache_file_of_other_content(path)
