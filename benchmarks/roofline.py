"""What a machine can do at best: its streaming limit, measured, and the peaks that makers state.

The limit is measured in the same rounds as the variants it judges, because a shared machine does
not offer the same bandwidth twice. On a CPU it is ``a += b``: read, read, write, with no hidden
traffic (to write a third buffer, a cache first reads it: 25 % fewer useful bytes here). On a GPU it
is a device copy.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Of the last-level cache: smaller buffers would be served from it.
_TIMES_LAST_CACHE = 4
_UNKNOWN_CACHE_BYTES = 64 << 20
_EAGER_BYTES_A_LOGIT = 128  # held at once by eager, the truth and two sets of inputs
_MOST_ROWS = 8192


@dataclass(frozen=True)
class Peak:
    """Memory bandwidth of a GPU, in bytes a second, as its maker states it."""

    bytes_per_s: float
    source: str


# Looked up by the words in a device's name; the first whose words all occur wins.
PEAKS = {
    "A100 40GB": Peak(1.555e12, "NVIDIA A100 datasheet (2021), A100 40GB"),
    "A100": Peak(2.039e12, "NVIDIA A100 datasheet (2021), A100 80GB SXM"),
    "H100 PCIe": Peak(2.0e12, "NVIDIA H100 datasheet (2022), PCIe"),
    "H100": Peak(3.35e12, "NVIDIA H100 datasheet (2023), SXM"),
    "H200": Peak(4.8e12, "NVIDIA H200 datasheet (2023)"),
    "B200": Peak(8.0e12, "NVIDIA HGX B200 datasheet (2024), each GPU"),
    "MI300X": Peak(5.3e12, "AMD Instinct MI300X data sheet (2023)"),
}


def peak_of(device_name: str) -> Peak | None:
    """The stated peak of a GPU, or None where the table has none."""
    name = device_name.lower()
    for words, peak in PEAKS.items():
        if all(word in name for word in words.lower().split()):
            return peak
    return None


def last_cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    kibibytes = [int(size.read_text().strip().removesuffix("K")) for size in sizes]
    return max(kibibytes) << 10 if kibibytes else _UNKNOWN_CACHE_BYTES


def rows_that_fit(device: torch.device, num_columns: int) -> int:
    """Rows of a GPU's benchmark: a power of two, so that the hungriest rival fits in its memory."""
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    fitting = int(memory_bytes // (_EAGER_BYTES_A_LOGIT * num_columns))
    return int(min(_MOST_ROWS, 1 << (fitting.bit_length() - 1)))


@dataclass(frozen=True, eq=False)
class StreamingLimit:
    """Two buffers that no cache holds, and the fastest way to stream through them."""

    read_and_written: Tensor
    read: Tensor

    @classmethod
    def on(cls, device: torch.device, *, is_tiny: bool = False) -> "StreamingLimit":
        """Buffers for this device; a tiny limit measures nothing, but in no time."""
        num_bytes = 4096 if is_tiny else _TIMES_LAST_CACHE * last_cache_bytes(device)
        zeros = torch.zeros(num_bytes // 4, dtype=torch.int32, device=device)
        return cls(zeros, zeros.clone())

    @property
    def num_bytes(self) -> int:
        """Bytes that one run moves."""
        num_sweeps = 2 if self.read.is_cuda else 3
        return num_sweeps * self.read.nbytes

    def run(self) -> None:
        """Stream once."""
        if self.read.is_cuda:
            self.read_and_written.copy_(self.read)
        else:
            self.read_and_written.add_(self.read)
