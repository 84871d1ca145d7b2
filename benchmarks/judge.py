"""Who computes a case right: values and gradients against float64, before anything is timed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_fast.benchmarks.case import Case
from mkd_fast.benchmarks.inputs import Inputs

_ROWS_AT_ONCE = 512
# A rival's sums may be rough, and it is timed all the same with its error told; one that is off by
# more than a rounding to bfloat16 computes something else.
_SOMETHING_ELSE = torch.finfo(torch.bfloat16).eps


@dataclass(frozen=True)
class Verdict:
    """Whether a variant may be timed.

    Attributes:
        error_of_budget: its largest error, as a share of what float32 sums may err.
        refused: why not, or None.
    """

    error_of_budget: float
    refused: str | None = None


def judge(case: Case, inputs: Inputs) -> dict[str, Verdict]:
    """A verdict for each variant.

    An output may err twice as much as plain torch with sums in float32, plus one rounding of its
    largest entry, as in the tests. A rival may also err by a bfloat16 rounding of that entry, or
    twice as much as plain torch does where it computes in the dtype of the inputs throughout:
    these are choices, and its error is told.
    """
    truth = case.exact(inputs)
    budgets = _budgets(case.plain(inputs), truth)
    rough = budgets if case.rough is None else _budgets(case.rough(inputs), truth)
    rough = [
        max(*pair, _SOMETHING_ELSE * float(exact.abs().max()))
        for *pair, exact in zip(budgets, rough, truth, strict=True)
    ]
    verdicts = {}
    for number, (name, run) in enumerate(case.variants.items()):
        try:
            outputs = run(inputs)
            errors = [_largest_difference(*pair) for pair in zip(outputs, truth, strict=True)]
            del outputs
        except Exception as error:
            if number == 0:  # what another package raises is a result; what we raise is a bug
                raise
            verdicts[name] = Verdict(math.nan, f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        share = _largest_share(errors, budgets)
        allowed = share if number == 0 else _largest_share(errors, rough)
        told = f"off by {share:.3g} times what float32 may err"
        verdicts[name] = Verdict(share, None if allowed <= 1.0 else told)
    return verdicts


def _budgets(plain: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    return [
        2.0 * _largest_difference(ours, exact)
        + torch.finfo(ours.dtype).eps * float(exact.abs().max())
        for ours, exact in zip(plain, truth, strict=True)
    ]


def _largest_share(errors: Sequence[float], budgets: Sequence[float]) -> float:
    tiny = torch.finfo(torch.float64).tiny
    shares = [error / max(budget, tiny) for error, budget in zip(errors, budgets, strict=True)]
    return float(torch.tensor(shares, dtype=torch.float64).max())  # NaN wins


def _largest_difference(actual: Tensor, truth: Tensor) -> float:
    """Some rows at a time: the difference of two large gradients need not fit."""
    if actual.shape != truth.shape:
        raise ValueError(f"outputs of shape {tuple(actual.shape)} for {tuple(truth.shape)}")
    pieces = zip(*(torch.atleast_1d(t).split(_ROWS_AT_ONCE) for t in (actual, truth)), strict=True)
    return float(torch.stack([(a.double() - b).abs().max() for a, b in pieces]).max())
