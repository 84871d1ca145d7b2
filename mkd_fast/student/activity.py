"""How much each unit of a teacher does on calibration text, and which ones say the same."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mkd_fast.student import probe as probes
from mkd_fast.student.anatomy import FEED_FORWARD, HEADS, Anatomy
from mkd_fast.student.calibration import run_over
from mkd_fast.student.norms import Norm

# T tokens that count, D residual units, H heads, K units of a head


@dataclass(frozen=True, eq=False)
class Moments:
    """Of what a norm makes of the stream before gain and bias: E[x] [D], E[x x^T] [D, D]."""

    mean: Tensor
    second: Tensor

    def of_output(self, gain: Tensor, bias: Tensor | float) -> Tensor:
        """E[y y^T] of y = gain x + bias."""
        shift = torch.zeros_like(gain) + bias
        cross = torch.outer(gain * self.mean, shift)
        return gain[:, None] * self.second * gain + cross + cross.T + torch.outer(shift, shift)


@dataclass(frozen=True, eq=False)
class Activity:
    """Means over the tokens that count, on the CPU.

    Attributes:
        residual: [D] abs(x) of the stream, as ``second`` has it.
        second: [D, D] E[x x^T] of the stream that norms hand to the layers' matrices, each
            token's mean square being 1.
        moments: by norm that was run.
        heads: by layer [H], the length of what a head adds to the stream.
        feed_forward: by layer, abs of each unit that the second matrix reads.
    """

    residual: Tensor
    second: Tensor
    moments: Mapping[str, Moments]
    heads: tuple[Tensor, ...]
    feed_forward: tuple[Tensor, ...]


def measure_activity(
    model: PreTrainedModel,
    anatomy: Anatomy,
    norms: Mapping[str, Norm],
    batches: Iterable[Any],
    num_layers: int,
) -> Activity:
    """Run the model over the batches, one at a time.

    Raises:
        TypeError: a batch without input_ids or attention_mask.
        ValueError: no token counts.
    """
    writers = {
        kind: [f"{anatomy.layer_list}.{layer}.{name}" for layer in range(num_layers)]
        for kind, name in anatomy.writers.items()
    }
    heads, units = writers.get(HEADS, []), writers[FEED_FORWARD]
    grams = {name: _gram(model, anatomy, name) for name in heads}
    sums: dict[tuple[str, str], Tensor | float] = defaultdict(float)
    num_tokens: dict[str, int] = defaultdict(int)
    for inputs in _inputs(model, anatomy, [*norms, *heads, *units], batches):
        for name, x in inputs.items():
            num_tokens[name] += len(x)
            if name in norms:
                x_TD = norms[name].standardised(x)
                found = {"abs": x_TD.abs().sum(0), "sum": x_TD.sum(0), "squares": x_TD.T @ x_TD}
            elif name in grams:
                found = {"length": _lengths(x.float(), grams[name])}
            else:
                found = {"abs": x.float().abs().sum(0)}
            for what, value in found.items():
                sums[name, what] += value.cpu()

    def mean(name: str, what: str) -> Tensor:
        total = sums[name, what]
        assert isinstance(total, Tensor)
        return total / num_tokens[name]

    read = set(anatomy.norm_before.values())
    stream = [name for name in norms if name in read and anatomy.layer_of(name) is not None]
    return Activity(
        torch.stack([mean(name, "abs") for name in stream]).mean(0),
        torch.stack([mean(name, "squares") for name in stream]).mean(0),
        {n: Moments(mean(n, "sum"), mean(n, "squares")) for n in norms if num_tokens[n]},
        tuple(mean(name, "length") for name in heads),
        tuple(mean(name, "abs") for name in units),
    )


def _gram(model: PreTrainedModel, anatomy: Anatomy, name: str) -> Tensor:
    """[H, K, K]: the squared length of what head h adds is x_h gram_h x_h."""
    matrix: Any = model.get_submodule(name)
    weight = matrix.weight.detach().float().movedim(probes.output_axis(matrix), 0)
    weight_HDK: Tensor = weight.unflatten(1, (anatomy.sizes.num_heads, -1)).transpose(0, 1)
    return weight_HDK.transpose(1, 2) @ weight_HDK


def _lengths(x: Tensor, gram_HKK: Tensor) -> Tensor:
    """[H], summed over the tokens."""
    x_HTK: Tensor = x.unflatten(-1, gram_HKK.shape[:2]).transpose(0, 1)
    return ((x_HTK @ gram_HKK) * x_HTK).sum(-1).clamp(min=0).sqrt().sum(1)


def _inputs(
    model: PreTrainedModel, anatomy: Anatomy, names: Iterable[str], batches: Iterable[Any]
) -> Iterator[dict[str, Tensor]]:
    """By module that runs on every token, its input [T, ...] in each batch."""
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            seen[name] = args[0]

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(look(n)) for n in names]
    with probes.hooked(handles), closing(run_over(model, batches, anatomy.layer_list)) as passes:
        for mask in passes:
            yield {name: x[mask] for name, x in seen.items() if x.shape[:2] == mask.shape}
            seen.clear()
