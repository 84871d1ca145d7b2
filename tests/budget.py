"""The error budget of every numerical test: judged against plain torch, never a hand-set number."""

import torch
from torch import Tensor

_NOTHING = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps


def assert_within_budget(actual: Tensor, exact: Tensor, plain: Tensor, what: str = "value") -> None:
    """Fail unless ``actual`` errs at most twice as much as plain torch, plus one rounding.

    Two things lie outside of what float32 can say. Where the truth is finite and plain torch is
    not, a power or a sum has left its range: nothing is asked there, but that no finite number
    stands for a truth that has left it too. And what lies below the least normal number is 0 to a
    kernel, as it is to devices; whatever factor makes a number of it that has all its digits, up to
    1 / eps, leaves that below ``tiny / eps``, 1e-31.

    Args:
        actual: what a kernel returned, in its output dtype.
        exact: the same from the reference in float64.
        plain: the same from plain torch in the accumulation dtype (float32), cast to the output
            dtype.
        what: what is compared, for the message.
    """
    assert exact.dtype == torch.float64, "the truth is float64"
    assert actual.shape == exact.shape == plain.shape, (actual.shape, exact.shape, plain.shape)
    leaves_range = exact.isfinite() & ~plain.isfinite()
    limit = torch.finfo(actual.dtype).max
    wrong = leaves_range & (exact.abs() > limit) & actual.isfinite()
    assert not wrong.any(), f"{what}: finite where the truth overflows at {wrong.nonzero()[:4]}"
    same = (actual.double().isfinite() == exact.isfinite()) | leaves_range
    assert same.all(), f"{what}: finite in one and not in the other at {(~same).nonzero()[:4]}"
    special = ~exact.isfinite()
    torch.testing.assert_close(
        actual[special].double(), exact[special], rtol=0, atol=0, equal_nan=True
    )
    judged = exact.isfinite() & ~leaves_range
    if not judged.any():
        return
    truth = exact[judged]
    error = (actual[judged].double() - truth).abs().max().item()
    plain_error = (plain[judged].double() - truth).abs().max().item()
    rounding = torch.finfo(actual.dtype).eps * truth.abs().max().item()
    budget = 2 * plain_error + rounding + _NOTHING
    assert error <= budget, f"{what}: {error:.3e} > {budget:.3e} (plain torch {plain_error:.3e})"
