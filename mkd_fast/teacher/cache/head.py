"""The teacher's head, once a cache: ``head.safetensors`` with its weight and perhaps its bias."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mkd_fast.checks import cache as checks
from mkd_fast.teacher.cache.arrays import as_array
from mkd_fast.teacher.cache.format import FORMAT, VERSION, header_of, place
from mkd_fast.teacher.cache.manifest import HEAD, FileEntry

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def head_parts(head: nn.Module, num_columns: int | None) -> list[Any]:
    """The file's parts.

    Args:
        head: a linear layer, ``weight`` ``[V, D]`` and ``bias`` ``[V]`` or None.
        num_columns: real ones, the first; None for all.
    """
    tensors: dict[str, Tensor] = {}
    for name in ("weight", "bias"):
        tensor: Tensor | None = getattr(head, name, None)
        if tensor is not None:
            kept = tensor.detach()[:num_columns].cpu().contiguous()
            tensors[name] = kept if kept.dtype in _NAMES else kept.float()
    placed = place((name, _NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items())
    header = header_of(placed, {"format": f"{FORMAT} {VERSION} head"})
    return [header, *(as_array(tensor) for tensor in tensors.values())]


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
        require_whole(self._path, self._entry)
        with safe_open(self._path, framework="pt") as file:
            bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118
            return file.get_tensor("weight"), bias


def require_whole(path: Path, entry: FileEntry) -> None:
    """Raise ValueError unless a file is there and as the manifest says; reads all of it."""
    if not path.exists():
        raise checks.cache_damaged(path, "it is missing")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            raise checks.cache_damaged(path, "it does not match the manifest's sha256")
