"""A cache whose files somebody has changed who knows how to make its checksums right again."""

import contextlib
import hashlib
import json
import resource
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich_cache import read_everything

from mkd_fast.teacher import repair, verify
from mkd_fast.teacher.cache.manifest import MANIFEST, _signed

MOST_BYTES = 512 << 20  # far more than these files need, and than any false count would ask for
EXECUTION = {"compile", "exec", "import", "marshal.loads", "os.exec", "os.fork", "os.posix_spawn"}
EXECUTION |= {"os.system", "pickle.find_class", "subprocess.Popen", "ctypes.dlopen"}


def sealed(content: dict[str, Any]) -> bytes:
    """A manifest, or a plan, with the right checksum."""
    return _signed({key: value for key, value in content.items() if key != "sha256"})


def tamper(folder: Path, name: str, content: bytes, index_end: int = 0) -> None:
    """Replace a file, and make the manifest's entry for it right.

    Args:
        folder: of the cache.
        name: of a shard, the index or the head.
        content: what it is to hold.
        index_end: where a shard's index ends.
    """
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    entries = [*manifest["shards"], *manifest["others"]]
    (entry,) = (entry for entry in entries if entry["file"] == name)
    entry |= {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if index_end:
        begin = 8 + int.from_bytes(content[:8], "little")
        entry["index_crc32"] = zlib.crc32(content[begin:index_end])
    (folder / MANIFEST).write_bytes(sealed(manifest))


def use(folder: Path) -> None:
    """Do what can be done with a cache; errors of ours are as good as none."""
    for act in (read_everything, verify, repair):
        with contextlib.suppress(ValueError, FileNotFoundError):
            act(folder)


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Refuse an address space that grows by more than ``MOST_BYTES``."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    allowed = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (allowed, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


_hooked: list[bool] = []
_watching = False


def _watch(event: str, arguments: object) -> None:
    if _watching and event in EXECUTION:
        raise AssertionError((event, arguments))


@contextlib.contextmanager
def nothing_executed() -> Iterator[None]:
    """Raise where code is compiled, loaded or run, or a process started."""
    global _watching
    if not _hooked:
        sys.addaudithook(_watch)  # for as long as the process lives
        _hooked.append(True)
    _watching = True
    try:
        yield
    finally:
        _watching = False
