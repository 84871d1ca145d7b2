"""A case of a benchmark: one shape of an op, and everyone who computes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from mkd_fast.benchmarks.inputs import Inputs, Run

STREAM = "stream"


@dataclass(frozen=True)
class Budget:
    """How far ahead of a rival we have to be: its time over ours; ``STREAM`` is a rival too."""

    rival: str
    at_least: float


ON_GPU = (Budget("torch.compile", 1.0), Budget("eager", 1.0), Budget(STREAM, 0.85))


def dtype_name(dtype: torch.dtype) -> str:
    """As the names of cases have it."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class Case:
    """One shape of an op.

    Attributes:
        name: unique within the op.
        make_inputs: a set of inputs from a seed.
        exact: the truth, computed in float64.
        plain: the same in plain torch, with sums in float32; twice its error is allowed.
        variants: who competes; the first is ours.
        num_bytes: what the op has to move through memory in one call.
        rough: plain torch in the dtype of the inputs throughout, which a rival may be as wrong as;
            None where that is ``plain``.
        yardsticks: who is timed beside the variants though it computes something else, and so is
            not judged.
        limit: of ``STREAM`` and the yardsticks, the one that nobody can beat.
        judged_inputs: what is judged on; None for the first set that is timed.
        budgets: what has to hold.
    """

    name: str
    make_inputs: Callable[[int], Inputs]
    exact: Run
    plain: Run
    variants: Mapping[str, Run]
    num_bytes: int
    rough: Run | None = None
    yardsticks: Mapping[str, Run] = field(default_factory=dict)
    limit: str = STREAM
    judged_inputs: Callable[[], Inputs] | None = None
    budgets: tuple[Budget, ...] = ()

    @property
    def rivals(self) -> list[str]:
        """Everyone but us."""
        return [*self.variants, *self.yardsticks][1:]

    def without(self, names: Sequence[str]) -> "Case":
        """The case with some rivals left out; ours always runs, ratios are to it."""

        def kept(runs: Mapping[str, Run]) -> dict[str, Run]:
            return {name: run for name, run in runs.items() if name not in names}

        return replace(self, variants=kept(self.variants), yardsticks=kept(self.yardsticks))
