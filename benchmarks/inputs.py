"""What one call of a benchmarked loss works on, and how it is run and judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Argument = Tensor | tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]  # the loss, then the gradients
Run = Callable[["Inputs"], Outputs]

_TRUTH_BYTES = 512 << 20  # of a chunk's largest tensor in float64


@dataclass(frozen=True, eq=False)
class Inputs:
    """Tensors by argument name, or tuples of one a layer; those that require a gradient get one."""

    arguments: dict[str, Argument]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        arguments = self.arguments.values()
        return [t for a in arguments for t in ((a,) if isinstance(a, Tensor) else a)]

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that receive a gradient."""
        return [tensor for tensor in self.tensors if tensor.requires_grad]

    def without(self, *names: str) -> "Inputs":
        """The same, some arguments left out."""
        return Inputs({name: a for name, a in self.arguments.items() if name not in names})

    def in_float64(self) -> "Inputs":
        """The same numbers, as the truth is computed from."""
        return self._each(lambda t: t.double() if t.is_floating_point() else t)

    def rows(self, first: int, end: int) -> "Inputs":
        """Some tokens: every tensor begins with that dimension."""
        return self._each(lambda tensor: tensor[first:end])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        def changed(tensor: Tensor) -> Tensor:
            return change(tensor.detach()).requires_grad_(tensor.requires_grad)

        return Inputs(
            {
                name: changed(a) if isinstance(a, Tensor) else tuple(map(changed, a))
                for name, a in self.arguments.items()
            }
        )


def with_gradients(loss_of: Callable[..., Tensor]) -> Run:
    """A loss of the named arguments, and its gradients."""

    def run(inputs: Inputs) -> Outputs:
        loss = loss_of(**inputs.arguments)
        return (loss.detach(), *torch.autograd.grad(loss, inputs.leaves))

    return run


def exact(loss_of: Callable[..., Tensor]) -> Run:
    """The truth: a loss and its gradients in float64."""
    run = with_gradients(loss_of)
    return lambda inputs: run(inputs.in_float64())


def by_rows(loss_of: Callable[..., Tensor], run_of: Callable[[Callable[..., Tensor]], Run]) -> Run:
    """A mean over tokens taken some tokens at a time, so that its truth fits beside the inputs.

    Args:
        loss_of: takes ``num_tokens``, the denominator of the mean, besides the inputs.
        run_of: ``exact`` or ``with_gradients``.
    """

    def run(inputs: Inputs) -> Outputs:
        num_tokens = len(inputs.tensors[0])
        each = run_of(partial(loss_of, num_tokens=num_tokens))
        losses, *gradients = zip(*map(each, _chunks(inputs, num_tokens)), strict=True)
        return (torch.stack(losses).sum(), *map(torch.cat, gradients))

    return run


def _chunks(inputs: Inputs, num_tokens: int) -> Iterator[Inputs]:
    widest = max(tensor.numel() for tensor in inputs.tensors) // num_tokens
    step = max(1, _TRUTH_BYTES // (8 * widest))
    for first in range(0, num_tokens, step):
        yield inputs.rows(first, first + step)
