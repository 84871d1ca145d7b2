"""The layout of a shard, computed from what it holds so that no number in a file is trusted.

A shard is one safetensors file: its header, then the index, then the stored tensors.

    index.sample_ids      I64 [samples]               one record per sample
    index.token_hashes    I64 [samples]               hash of the sample's token ids
    index.token_offsets   I64 [samples + 1]           where its rows begin on the token axis
    index.<axis>_offsets  I64 [samples + 1]           and on each further axis
    index.record_crc32    U32 [samples, tensors]      of the record's bytes in each stored tensor
    <name>                [rows, width]               as the manifest says

The header is a function of the counts, the manifest's digest and the CRC of the index. A reader
builds the header it expects and compares bytes, and a file has exactly one right size. Another
kind of target is another tensor in the manifest, and needs no other version.
"""

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "mkd_fast teacher cache"
VERSION = 3

# bfloat16 is unknown to numpy, which carries its bits as uint16
STORAGE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}


def shard_name(number: int) -> str:
    """File name of the shard with this number, counted from 0."""
    return f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor: rows of ``width`` values.

    The axis is ``"sample"`` or ``"token"`` where there is one row for each. Any other name is an
    axis of its own, of which a sample has as many rows as the index says.
    """

    name: str
    dtype: str
    width: int
    axis: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * STORAGE[self.dtype].itemsize


def axes_of(tensors: Iterable[TensorSpec]) -> tuple[str, ...]:
    """``"sample"``, ``"token"``, and then the further axes in the order of their tensors."""
    return tuple(dict.fromkeys(("sample", "token", *(spec.axis for spec in tensors))))


def offsets_name(axis: str) -> str:
    """The part of the index that says where a record's rows begin on an axis."""
    return f"index.{axis}_offsets"


@dataclass(frozen=True)
class Placed:
    """A tensor and where its bytes lie, counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def view(self, buffer: Any) -> NDArray[Any]:
        """The tensor as an array on ``buffer``, which holds the whole file; copies nothing."""
        storage = STORAGE[self.dtype]
        count = (self.end - self.begin) // storage.itemsize
        return np.frombuffer(buffer, storage, count, self.begin).reshape(self.shape)


def place(shapes: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Placed]:
    """Tensors (name, dtype, shape) one after another, from 0 on."""
    placed, begin = {}, 0
    for name, dtype, shape in shapes:
        end = begin + math.prod(shape) * STORAGE[dtype].itemsize
        placed[name] = Placed(dtype, shape, begin, end)
        begin = end
    return placed


def header_of(placed: Mapping[str, Placed], metadata: Mapping[str, str]) -> bytes:
    """A file's first bytes: the header's length and the header, as safetensors wants them."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, at in placed.items():
        offsets = [at.begin, at.end]
        header[name] = {"dtype": at.dtype, "shape": list(at.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class ShardLayout:
    """Where everything lies in a shard of these counts, and its header.

    Args:
        tensors: what is stored besides the index.
        num_rows: on each axis, as ``axes_of`` orders them: records, tokens, ...
        digest: sha256 of the plan and the tensors, which ties a shard to its capture.
        index_crc32: CRC of the index's bytes.
    """

    tensors: tuple[TensorSpec, ...]
    num_rows: tuple[int, ...]
    digest: str
    index_crc32: int

    @property
    def num_samples(self) -> int:
        """Records in the shard."""
        return self.num_rows[0]

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Of its tensors."""
        return axes_of(self.tensors)

    def _shapes(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield "index.sample_ids", "I64", (self.num_samples,)
        yield "index.token_hashes", "U64", (self.num_samples,)
        for axis in self.axes[1:]:
            yield offsets_name(axis), "I64", (self.num_samples + 1,)
        yield "index.record_crc32", "U32", (self.num_samples, len(self.tensors))
        num_rows = dict(zip(self.axes, self.num_rows, strict=True))
        # wide elements first keeps every tensor aligned without the gaps that safetensors forbids
        for spec in sorted(self.tensors, key=lambda spec: -STORAGE[spec.dtype].itemsize):
            yield spec.name, spec.dtype, (num_rows[spec.axis], spec.width)

    @cached_property
    def _relative(self) -> dict[str, Placed]:
        return place(self._shapes())

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes."""
        metadata = {
            "format": f"{FORMAT} {VERSION}",
            "digest": self.digest,
            "rows": " ".join(map(str, self.num_rows)),
            "index_crc32": str(self.index_crc32),
        }
        return header_of(self._relative, metadata)

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Every tensor of the file in the order of its bytes, the index first."""
        shift = len(self.header)
        return {
            name: Placed(at.dtype, at.shape, at.begin + shift, at.end + shift)
            for name, at in self._relative.items()
        }

    @property
    def index_end(self) -> int:
        """Where the index ends and the stored tensors begin."""
        return self.placed["index.record_crc32"].end

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return next(reversed(self.placed.values())).end

    @property
    def record_bytes(self) -> int:
        """Bytes of the stored tensors."""
        return self.num_bytes - self.index_end


def layout_in_header(
    header: bytes, tensors: tuple[TensorSpec, ...], digest: str
) -> ShardLayout | None:
    """The layout that a shard's header claims, or None where it claims none.

    Args:
        header: the header without its length; untrusted.
        tensors: what the shard must store.
        digest: of the plan that it must belong to.
    """
    try:
        metadata = json.loads(header)["__metadata__"]
        num_rows = tuple(int(count) for count in metadata["rows"].split())
        index_crc32 = int(metadata["index_crc32"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if len(num_rows) != len(axes_of(tensors)) or min(*num_rows, index_crc32) < 0:
        return None
    return ShardLayout(tensors, num_rows, digest, index_crc32)


def crc32(rows: NDArray[Any]) -> int:
    """CRC-32 of an array's bytes; the array is contiguous."""
    return zlib.crc32(rows.data)
