"""Hidden states come back as they were, wherever they have been."""

import errno
from pathlib import Path

import pytest
import torch

from mkd_fast.teacher.streamed.states import HiddenStates

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_bytes", [0, 100, 10_000])
@pytest.mark.parametrize("spills", [False, True])
def test_states_come_back(tmp_path, dtype, memory_bytes, spills):
    states = HiddenStates(memory_bytes, tmp_path if spills else None)
    generator = torch.Generator().manual_seed(0)
    values = {n: torch.randn(2, 3, 4, generator=generator).to(dtype) for n in range(5)}
    values[2] = values[2].transpose(0, 1)
    for round_ in range(2):
        for key, value in values.items():
            states.put((round_, key), value)
        num_bytes = values[0].nbytes
        num_spilled = 5 - min(5, memory_bytes // num_bytes) if spills else 0
        assert len(list(tmp_path.iterdir())) == num_spilled
        for key, value in values.items():
            assert torch.equal(states.take((round_, key), CPU), value)
        assert not list(tmp_path.iterdir())


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"must be a folder that can be written.*No space left") as e:
        HiddenStates(0, tmp_path).put(0, torch.zeros(3))
    assert e.value.errno == errno.ENOSPC
