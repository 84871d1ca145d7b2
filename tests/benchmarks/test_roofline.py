"""The streaming limit and the table of stated peaks."""

import pytest
import torch

from mkd_fast.benchmarks.roofline import PEAKS, StreamingLimit, last_cache_bytes, peak_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device_name", "entry"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_peaks_are_found_by_the_name_a_driver_gives(device_name: str, entry: str) -> None:
    assert peak_of(device_name) is PEAKS[entry]


def test_no_peak_is_invented() -> None:
    assert peak_of("CPU AMD EPYC") is None
    assert peak_of("NVIDIA GeForce RTX 4090") is None


def test_every_peak_has_a_source() -> None:
    assert all(peak.source and 1e12 < peak.bytes_per_s < 1e13 for peak in PEAKS.values())


def test_the_limit_streams_through_more_than_the_last_cache() -> None:
    assert last_cache_bytes(CPU) >= 1 << 18
    assert StreamingLimit.on(CPU).read.nbytes > 2 * last_cache_bytes(CPU)


def test_a_run_reads_both_buffers_and_writes_one() -> None:
    limit = StreamingLimit(torch.full((8,), 3), torch.full((8,), 4))
    limit.run()
    assert limit.read_and_written.tolist() == [7] * 8
    assert limit.num_bytes == 3 * 8 * 8
