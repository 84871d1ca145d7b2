"""Where the benchmarks of the tests run."""

import pytest
import torch

from mkd_fast.benchmarks.roofline import StreamingLimit


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def limit(cpu: torch.device) -> StreamingLimit:
    """A streaming limit that is measured in no time, and means nothing."""
    return StreamingLimit.on(cpu, is_tiny=True)
