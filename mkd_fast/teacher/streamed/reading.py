"""Reading weights: from safetensors files straight into memory of our own.

A mapped file would do the same with less code, but its pages stay in the process's resident set
until the system takes them, all of the model in the end; and a layer's pages would be faulted in
one by one by the thread that computes. Here a layer is read in one go into an arena that the next
layer reuses. What the system keeps in its page cache is its own affair: a model that fits the
machine's free memory is read from the disk once.
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
# of a tensor that is converted or goes to a GPU, this much at a time
_CHUNK_BYTES = 16 << 20


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
    """The files of a checkpoint, open; several threads may read at once.

    Args:
        paths: of the files.

    Raises:
        OSError: one cannot be opened.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = ExitStack()
        self._descriptors = {
            path: self._files.enter_context(path.open("rb", buffering=0)).fileno()
            for path in set(paths)
        }

    def close(self) -> None:
        """Close every file."""
        self._files.close()

    def read(self, stored: StoredTensor, out: Tensor) -> None:
        """Fill ``out``, contiguous and of the stored shape, from the file.

        Where ``out`` is of another dtype or on a GPU, a small buffer lies between.

        Raises:
            OSError: the file cannot be read.
            ValueError: it has become shorter.
        """
        flat = out.view(-1)
        if out.dtype == stored.dtype and not out.is_cuda:
            self._fill(stored, flat, 0)
            return
        step = _CHUNK_BYTES // stored.dtype.itemsize
        num_staged = min(step, stored.num_elements)
        staging = torch.empty(num_staged, dtype=stored.dtype, pin_memory=out.is_cuda)
        for begin in range(0, stored.num_elements, step):
            chunk = staging[: stored.num_elements - begin]
            self._fill(stored, chunk, begin)
            flat[begin : begin + step].copy_(chunk)

    def _fill(self, stored: StoredTensor, flat: Tensor, begin: int) -> None:
        """Read as many elements as ``flat`` has, from element ``begin`` on."""
        left = flat.view(torch.uint8).numpy().data
        offset = stored.offset + begin * stored.dtype.itemsize
        while left:
            count = os.preadv(self._descriptors[stored.path], [left], offset)
            if not count:
                raise checks.cut_short(stored.path, offset + len(left), offset)
            left, offset = left[count:], offset + count


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
