"""Where the benchmarks of the tests run."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mkd_fast.benchmarks.roofline import StreamingLimit
from mkd_fast.losses import ops


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def limit(cpu: torch.device) -> StreamingLimit:
    """A streaming limit that is measured in no time, and means nothing."""
    return StreamingLimit.on(cpu, is_tiny=True)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ops are Triton's kernels, in its interpreter."""
    from mkd_fast.kernels import dense_kd, scale, sparse_kd

    monkeypatch.setattr(torch.ops.mkd_fast, "dense_kd", dense_kd.dense_kd)
    monkeypatch.setattr(torch.ops.mkd_fast, "sparse_kd", sparse_kd.sparse_kd)
    monkeypatch.setattr(torch.ops.mkd_fast, "scale_", scale.scale_)
    monkeypatch.setattr(ops, "missing_kernels", lambda device_type: None)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        yield
