"""The Triton kernels behind ``kd_loss(impl="fused")``: on a GPU as they are, else interpreted."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mkd_fast.losses import ops


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where kernels run; memory handed to them uninitialised is filled with NaN."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        if torch.cuda.is_available():
            yield "cuda"
        else:
            from triton.runtime.interpreter import InterpretedFunction

            from mkd_fast.kernels import dense_kd, scale, sparse_kd

            monkeypatch.setattr(torch.ops.mkd_fast, "dense_kd", dense_kd.dense_kd)
            monkeypatch.setattr(torch.ops.mkd_fast, "sparse_kd", sparse_kd.sparse_kd)
            monkeypatch.setattr(torch.ops.mkd_fast, "scale_", scale.scale_)
            monkeypatch.setattr(ops, "missing_kernels", lambda device_type: None)
            # A launch prepares triton.language for all of a kernel; each of our functions that it
            # calls would do so once more, which is half of the interpreter's time.
            call = InterpretedFunction.__call__
            monkeypatch.setattr(
                InterpretedFunction,
                "__call__",
                lambda function, *arguments: (
                    call(function, *arguments)
                    if function.fn.__module__.startswith("triton.")
                    else function.rewrite()(*arguments)
                ),
            )
            # The interpreter's numpy warns of the inf - inf and all-NaN rows that a GPU computes.
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
                yield "cpu"
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
