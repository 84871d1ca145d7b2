"""How much each layer of a model does to a text.

A layer's change is 1 - cos(x, y) of a token's hidden state x before it and y behind it, averaged
over the tokens that count: the block influence of ShortGPT (arXiv 2403.03853, equation 1). Layers
that change little are dropped with little loss. All layers are ranked in one pass of the whole
model, not again after each that is dropped.
"""

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from mkd_fast.checks import student as checks
from mkd_fast.layer_list import layers_of
from mkd_fast.student.calibration import run_over


def layer_changes(
    model: PreTrainedModel, batches: Iterable[Any], layer_list: str
) -> tuple[float, ...]:
    """The mean change of every layer, in order: from 0 (it does nothing) to 2, up to rounding.

    Cosines and the sum of a batch are float32, the sum of batches float64. One batch is in memory
    at a time.

    Args:
        model: on one device, in any mode; it is left as it is.
        batches: mappings, or objects, with input_ids and attention_mask [B, S]; read once.
        layer_list: the dotted name of the model's list of layers.

    Raises:
        TypeError: a batch without one of the two.
        ValueError: no token counts, or the layers do not hand hidden states on, [B, S, width].
    """
    layers = layers_of(model, layer_list)
    changes: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        after: Tensor = output[0] if isinstance(output, tuple) else output
        if before.shape == after.shape:
            changes[layer] = 1 - functional.cosine_similarity(before.float(), after.float(), dim=-1)

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    sums, num_tokens = torch.zeros(len(layers), dtype=torch.float64), 0
    try:
        with closing(run_over(model, batches, layer_list)) as passes:
            for mask in passes:
                found = [changes.pop(layer, mask.new_empty(0)) for layer in layers]
                if any(change.shape != mask.shape for change in found):
                    raise checks.layers_not_seen(type(model).__name__, layer_list)
                of_batch = torch.stack([change.masked_fill(~mask, 0.0).sum() for change in found])
                sums += of_batch.cpu().double()
                num_tokens += int(mask.sum())
    finally:
        for hook in hooks:
            hook.remove()
    return tuple((sums / num_tokens).tolist())
