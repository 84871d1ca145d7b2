"""The hidden states of a block between two layers: in memory while they fit, else elsewhere."""

from collections.abc import Hashable
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from mkd_fast.files import writing_into


class HiddenStates:
    """Tensors by key.

    Args:
        memory_bytes: what may be held on their device.
        spill_folder: where the rest goes; None for the host's memory.
    """

    def __init__(self, memory_bytes: int, spill_folder: Path | None) -> None:
        self._free_bytes, self._folder = memory_bytes, spill_folder
        self._held: dict[Hashable, Tensor] = {}
        self._on_host: dict[Hashable, Tensor] = {}
        self._spilled: dict[Hashable, tuple[Path, torch.dtype, torch.Size]] = {}
        self._numbers = count()

    def put(self, key: Hashable, state: Tensor) -> None:
        """Keep a tensor under a new key.

        Raises:
            OSError: the disk is full, or the folder not writable.
        """
        if state.nbytes <= self._free_bytes:
            self._held[key] = state
            self._free_bytes -= state.nbytes
        elif self._folder is None:
            self._on_host[key] = state.cpu()
        else:
            path = self._folder / f"state-{next(self._numbers)}.bin"
            with writing_into(self._folder):
                path.write_bytes(_bytes(state.cpu().contiguous()))
            self._spilled[key] = path, state.dtype, state.shape

    def take(self, key: Hashable, device: torch.device) -> Tensor:
        """The tensor, which is not kept any longer."""
        if key in self._held:
            state = self._held.pop(key)
            self._free_bytes += state.nbytes
            return state
        if key in self._on_host:
            return self._on_host.pop(key).to(device)
        path, dtype, shape = self._spilled.pop(key)
        state = torch.empty(shape, dtype=dtype)
        with path.open("rb") as file:
            file.readinto(_bytes(state))
        path.unlink()
        return state.to(device)


def _bytes(state: Tensor) -> memoryview:
    data: memoryview = state.view(-1).view(torch.uint8).numpy().data
    return data
