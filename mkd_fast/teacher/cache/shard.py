"""One shard, mapped into memory: its header and index checked when it is opened."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mkd_fast.checks import cache as checks
from mkd_fast.teacher.cache.format import (
    ShardLayout,
    TensorSpec,
    crc32,
    layout_in_header,
    offsets_name,
)
from mkd_fast.teacher.cache.whole import require_size


class Shard:
    """A shard's index, and its stored tensors as arrays on the mapped file.

    Opening reads the header and the index only. The records are checked one by one, with
    ``rows``, when they are read.

    Args:
        path: the file.
        layout: the layout that it must have.

    Raises:
        ValueError: the file is missing, or has another size, header or index.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self.path, self.layout = path, layout
        require_size(path, layout.num_bytes)
        with path.open("rb"):  # for its error; what maps it here keeps no descriptor, as mmap does
            mapped = torch.from_file(
                str(path), shared=False, size=layout.num_bytes, dtype=torch.uint8
            ).numpy()
        mapped.flags.writeable = False
        if mapped[: len(layout.header)].tobytes() != layout.header:
            raise checks.cache_damaged(path, "its header is not the one this cache was given")
        index = mapped[len(layout.header) : layout.index_end]
        if crc32(index) != layout.index_crc32:
            raise checks.cache_damaged(path, "its index does not match its checksum")
        self._mapped = mapped
        self._arrays = {name: placed.view(mapped) for name, placed in layout.placed.items()}
        self.sample_ids: NDArray[np.int64] = self._arrays["index.sample_ids"]
        self.token_hashes: NDArray[np.uint64] = self._arrays["index.token_hashes"]
        self.record_crc32: NDArray[np.uint32] = self._arrays["index.record_crc32"]
        self.offsets: dict[str, NDArray[np.int64]] = {}
        for axis, num_rows in list(zip(layout.axes, layout.num_rows, strict=True))[1:]:
            offsets = self.offsets[axis] = self._arrays[offsets_name(axis)]
            if (offsets[0], offsets[-1]) != (0, num_rows) or (np.diff(offsets) < 0).any():
                raise checks.cache_damaged(path, f"its {axis} offsets do not rise to their count")

    def num_rows(self, axis: str, record: int) -> int:
        """How many rows a record has on an axis other than ``"sample"``."""
        begin, end = self.offsets[axis][record : record + 2].tolist()
        return int(end - begin)

    def rows(self, spec: TensorSpec, number: int, record: int) -> NDArray[Any]:
        """The rows of one record in one tensor, checked against their checksum.

        Args:
            spec: the tensor, which is the ``number``-th of the cache.
            number: its position.
            record: the record's position in this shard.
        """
        if spec.axis == "sample":
            begin, end = record, record + 1
        else:
            begin, end = self.offsets[spec.axis][record : record + 2]
        rows = self._arrays[spec.name][begin:end]
        if crc32(rows) != self.record_crc32[record, number]:
            sample_id = int(self.sample_ids[record])
            raise checks.cache_damaged(
                self.path, f"{spec.name} of sample {sample_id} does not match its checksum"
            )
        return rows

    def sha256(self) -> str:
        """Hash of the whole file, in hexadecimal digits."""
        return hashlib.sha256(self._mapped.data).hexdigest()

    def require_all_records(self) -> None:
        """Read every record; raise ValueError that names the first damaged one."""
        for number, spec in enumerate(self.layout.tensors):
            for record in range(self.layout.num_samples):
                self.rows(spec, number, record)


def open_unlisted_shard(path: Path, tensors: tuple[TensorSpec, ...], digest: str) -> Shard:
    """Open a shard that no manifest describes yet, by the counts in its own header.

    Raises:
        ValueError: it is damaged, or of another capture.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        layout = layout_in_header(file.read(min(header_bytes, size)), tensors, digest)
    if layout is None:
        raise checks.cache_damaged(path, "its header is not that of a shard")
    return Shard(path, layout)
