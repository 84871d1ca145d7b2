"""The error budget of every numerical test: judged against plain torch, never a hand-set number."""

import torch
from torch import Tensor


def assert_within_budget(actual: Tensor, exact: Tensor, plain: Tensor, what: str = "value") -> None:
    """Fail unless ``actual`` errs at most twice as much as plain torch, plus one rounding.

    Args:
        actual: what a kernel returned, in its output dtype.
        exact: the same from the reference in float64.
        plain: the same from plain torch in the accumulation dtype (float32), cast to the output
            dtype.
        what: what is compared, for the message.
    """
    assert exact.dtype == torch.float64, "the truth is float64"
    assert actual.shape == exact.shape == plain.shape, (actual.shape, exact.shape, plain.shape)
    same = actual.double().isfinite() == exact.isfinite()
    assert same.all(), f"{what}: finite in one and not in the other at {(~same).nonzero()[:4]}"
    special = ~exact.isfinite()
    torch.testing.assert_close(
        actual[special].double(), exact[special], rtol=0, atol=0, equal_nan=True
    )
    finite = ~special
    if not finite.any():
        return
    truth = exact[finite]
    error = (actual[finite].double() - truth).abs().max().item()
    plain_error = (plain[finite].double() - truth).abs().max().item()
    rounding = torch.finfo(actual.dtype).eps * truth.abs().max().item()
    budget = 2 * plain_error + rounding
    assert error <= budget, f"{what}: {error:.3e} > {budget:.3e} (plain torch {plain_error:.3e})"
