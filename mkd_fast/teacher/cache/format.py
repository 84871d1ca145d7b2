"""The layout of a shard, computed from what it holds so that no number in a file is trusted.

A shard is one safetensors file: its header, then the index, then the stored tensors.

    index.sample_ids      I64 [samples]               one record per sample
    index.token_hashes    I64 [samples]               hash of the sample's token ids
    index.token_offsets   I64 [samples + 1]           where its rows begin on the token axis
    index.record_crc32    U32 [samples, tensors]      of the record's bytes in each stored tensor
    <name>                [samples | tokens, width]   as the manifest says

The header is a function of the counts, the manifest's digest and the CRC of the index. A reader
builds the header it expects and compares bytes, and a file has exactly one right size. Another
kind of target is another tensor in the manifest; older caches are read as before.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "mkd_fast teacher cache"
VERSION = 1

# bfloat16 is unknown to numpy, which carries its bits as uint16
STORAGE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
}
AXES = ("sample", "token")


def shard_name(number: int) -> str:
    """File name of the shard with this number, counted from 0."""
    return f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor: a row of ``width`` values for every sample, or for every token."""

    name: str
    dtype: str
    width: int
    axis: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * STORAGE[self.dtype].itemsize


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


@dataclass(frozen=True)
class ShardLayout:
    """Where everything lies in a shard of these counts, and its header.

    Args:
        tensors: what is stored besides the index.
        num_samples: records in the shard.
        num_tokens: tokens of all its records.
        digest: sha256 of the plan and the tensors, which ties a shard to its capture.
        index_crc32: CRC of the index's bytes.
    """

    tensors: tuple[TensorSpec, ...]
    num_samples: int
    num_tokens: int
    digest: str
    index_crc32: int

    def _shapes(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield "index.sample_ids", "I64", (self.num_samples,)
        yield "index.token_hashes", "U64", (self.num_samples,)
        yield "index.token_offsets", "I64", (self.num_samples + 1,)
        yield "index.record_crc32", "U32", (self.num_samples, len(self.tensors))
        rows = {"sample": self.num_samples, "token": self.num_tokens}
        # wide elements first keeps every tensor aligned without the gaps that safetensors forbids
        for spec in sorted(self.tensors, key=lambda spec: -STORAGE[spec.dtype].itemsize):
            yield spec.name, spec.dtype, (rows[spec.axis], spec.width)

    @cached_property
    def _relative(self) -> dict[str, Placed]:
        placed, begin = {}, 0
        for name, dtype, shape in self._shapes():
            count = shape[0] * shape[1] if len(shape) == 2 else shape[0]
            end = begin + count * STORAGE[dtype].itemsize
            placed[name] = Placed(dtype, shape, begin, end)
            begin = end
        return placed

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes: the header's length and the header, as safetensors wants them."""
        header: dict[str, Any] = {
            "__metadata__": {
                "format": f"{FORMAT} {VERSION}",
                "digest": self.digest,
                "tokens": str(self.num_tokens),
                "index_crc32": str(self.index_crc32),
            }
        }
        for name, at in self._relative.items():
            header[name] = {
                "dtype": at.dtype,
                "shape": list(at.shape),
                "data_offsets": [at.begin, at.end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

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
        claimed = json.loads(header)
        metadata = claimed["__metadata__"]
        counts = (
            int(claimed["index.sample_ids"]["shape"][0]),
            int(metadata["tokens"]),
            int(metadata["index_crc32"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    if min(counts) < 0:
        return None
    num_samples, num_tokens, index_crc32 = counts
    return ShardLayout(tensors, num_samples, num_tokens, digest, index_crc32)


def crc32(rows: NDArray[Any]) -> int:
    """CRC-32 of an array's bytes; the array is contiguous."""
    return zlib.crc32(rows.data)
