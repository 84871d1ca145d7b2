"""Reading weights: from safetensors files straight into memory of our own.

A mapped file would do the same with less code, but its pages stay in the process's resident set
until the system takes them, all of the model in the end; and a layer's pages would be faulted in
one by one by the thread that computes. Here a layer is read in one go into an arena that the next
layer reuses. A model that fits the machine's memory goes through the system's page cache, so that
the disk is read once; a larger one goes past it.
"""

import json
import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkd_fast.checks import streamed as checks

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# torch's own alignment: results must not depend on where a weight lies
ALIGNMENT = 64
# read at a time, and copied out of a buffer
_CHUNK_BYTES = 8 << 20
# what O_DIRECT wants offsets, lengths and addresses to be multiples of
_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file, row-major.

    Attributes:
        path: the file.
        offset: its first byte there.
        shape: of the tensor.
        dtype: as stored.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_elements * self.dtype.itemsize

    def rows(self, begin: int, end: int) -> "StoredTensor":
        """The part of it that is rows ``begin`` to ``end`` of the first dimension."""
        row_bytes = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        shape = (end - begin, *self.shape[1:])
        return replace(self, offset=self.offset + begin * row_bytes, shape=shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Raises:
        ValueError: the file is not one, is damaged, or has a dtype that torch has not.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        header = file.read(min(header_bytes, size))
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {name: _stored(path, 8 + header_bytes, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checks.not_safetensors(path, repr(error)) from error
    needed = max((stored.offset + stored.num_bytes for stored in found.values()), default=0)
    if needed > size:
        raise checks.cut_short(path, needed, size)
    return found


def _stored(path: Path, data_begin: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    stored = StoredTensor(path, data_begin + begin, shape, _DTYPES[entry["dtype"]])
    if begin < 0 or min(shape, default=0) < 0 or end - begin != stored.num_bytes:
        raise ValueError("offsets that contradict the shape")
    return stored


class Reader:
    """The files of a checkpoint, open; for one thread at a time.

    Args:
        paths: of the files.
        past_page_cache: read from the device into our memory (O_DIRECT), where there is such a
            way. Pages that would be gone before they are read again are not even made, which on
            a slow host costs more than the copy.
        device: where values go; for a GPU the buffer is pinned.

    Raises:
        OSError: a file cannot be opened.
    """

    def __init__(
        self, paths: Iterable[Path], *, past_page_cache: bool = False, device: str = "cpu"
    ) -> None:
        self._files = ExitStack()
        self._descriptors: dict[Path, int] = {}
        for path in set(paths):
            self._descriptors[path] = _open(path, past_page_cache=past_page_cache)
            self._files.callback(os.close, self._descriptors[path])
        room = torch.empty(
            _CHUNK_BYTES + 3 * _BLOCK_BYTES, dtype=torch.uint8, pin_memory=device == "cuda"
        )
        self._buffer = room[-room.data_ptr() % _BLOCK_BYTES :]

    def close(self) -> None:
        """Close every file."""
        self._files.close()

    def read(self, stored: StoredTensor, out: Tensor) -> None:
        """Fill ``out``, contiguous and of the stored shape, converting where its dtype differs.

        Raises:
            OSError: the file cannot be read.
            ValueError: it has become shorter.
        """
        flat, size = out.view(-1), stored.dtype.itemsize
        step = _CHUNK_BYTES // size
        for begin in range(0, stored.num_elements, step):
            part = flat[begin : begin + step]
            raw = self._bytes(stored.path, stored.offset + begin * size, part.numel() * size)
            part.copy_(raw.view(stored.dtype))

    def _bytes(self, path: Path, offset: int, num_bytes: int) -> Tensor:
        """Bytes of a file, in the buffer; whole blocks are read, as O_DIRECT wants it."""
        before = offset % _BLOCK_BYTES
        wanted, filled = before + num_bytes, 0
        room = self._buffer[: -(-wanted // _BLOCK_BYTES) * _BLOCK_BYTES].numpy().data
        while filled < wanted:
            at = offset - before + filled
            count = os.preadv(self._descriptors[path], [room[filled:]], at)
            if filled + count < wanted:
                count -= count % _BLOCK_BYTES  # to go on at a whole block
            if not count:
                raise checks.cut_short(path, offset + num_bytes, path.stat().st_size)
            filled += count
        raw = self._buffer[before:wanted]
        return raw if offset % 8 == 0 else raw.clone()  # a view's dtype wants its alignment


def _open(path: Path, *, past_page_cache: bool) -> int:
    if past_page_cache and hasattr(os, "O_DIRECT"):
        with suppress(OSError):  # a file system without it
            return os.open(path, os.O_RDONLY | os.O_DIRECT)
    return os.open(path, os.O_RDONLY)


def fit_page_cache(paths: Iterable[Path]) -> bool:
    """True for files that take at most half of the machine's memory, whoever uses the rest."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * sum(path.stat().st_size for path in paths) <= memory_bytes


def pages(num_bytes: int, *, huge: bool) -> Tensor:
    """Anonymous memory of which only what is touched counts, given back when it is dropped.

    Args:
        num_bytes: its size.
        huge: touched as a whole (True: fewer page faults), or a few KB here and there.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=flags)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
