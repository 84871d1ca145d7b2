"""The teacher's head, once a cache: ``head.safetensors`` with its weight and perhaps its bias."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mkd_fast.checks import cache as checks
from mkd_fast.files import sha256_of, sha256_of_file
from mkd_fast.teacher.cache.arrays import as_array
from mkd_fast.teacher.cache.format import FORMAT, VERSION, header_of, place
from mkd_fast.teacher.cache.manifest import HEAD, FileEntry
from mkd_fast.teacher.cache.whole import require_whole

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def head_parts(weight: Tensor, bias: Tensor | None, num_columns: int) -> list[Any]:
    """The file's parts.

    Args:
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
        num_columns: real ones, the first.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            kept = tensor.detach()[:num_columns].cpu().contiguous()
            tensors[name] = kept if kept.dtype in _NAMES else kept.float()
    return _parts(tensors)


def _parts(tensors: Mapping[str, Tensor]) -> list[Any]:
    placed = place((name, _NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items())
    arrays = [as_array(tensor) for tensor in tensors.values()]
    # a lost manifest can be written again only if the file itself says whether it is whole; its
    # sha256 would cost as much again as the one in the manifest
    checksum = zlib.crc32(header_of(placed, {}))
    for array in arrays:
        checksum = zlib.crc32(array.data, checksum)
    about = {"format": f"{FORMAT} {VERSION} head", "crc32": str(checksum)}
    return [header_of(placed, about), *arrays]


def unlisted_head(path: Path) -> list[Any] | None:
    """The parts of a head's file that no manifest lists; None where it is missing or damaged."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return None
    tensors: dict[str, Tensor] = {n: found[n] for n in ("weight", "bias") if n in found}
    if any(tensor.dtype not in _NAMES for tensor in tensors.values()):
        return None
    parts = _parts(tensors)
    return parts if sha256_of(parts) == sha256_of_file(path) else None


class Head:
    """A cached head, read and checked when it is first asked for; one copy a device.

    Args:
        folder: of the cache.
        entry: what the manifest says about the file.
    """

    def __init__(self, folder: Path, entry: FileEntry) -> None:
        self._path, self._entry = folder / HEAD, entry
        self._on: dict[str, tuple[Tensor, Tensor | None]] = {}

    def on(self, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias on a device.

        Raises:
            ValueError: the file is missing or damaged.
        """
        key = str(torch.device(device))
        if key not in self._on:
            weight, bias = self._read() if key == "cpu" else self.on("cpu")
            self._on[key] = weight.to(key), None if bias is None else bias.to(key)
        return self._on[key]

    def _read(self) -> tuple[Tensor, Tensor | None]:
        require_whole(self._path, self._entry.sha256)
        try:
            with safe_open(self._path, framework="pt") as file:
                bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118
                return file.get_tensor("weight"), bias
        except SafetensorError as error:
            raise checks.cache_damaged(self._path, str(error)) from error
