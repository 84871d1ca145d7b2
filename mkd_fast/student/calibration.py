"""A model run over calibration text, for those who watch what its layers and units do there."""

from collections.abc import Generator, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mkd_fast.checks import student as checks
from mkd_fast.evaluating import evaluating


def run_over(
    model: PreTrainedModel, batches: Iterable[Any], layer_list: str, function: str = "copy_init"
) -> Generator[Tensor, None, None]:
    """Run the model's layers over batches, one at a time, and yield after each which tokens count.

    Without a task head where the layers can be run without it, without gradients or a key-value
    cache, in eval mode, on the model's device. Hooks of the caller see what happens inside.

    Args:
        model: on one device.
        batches: mappings, or objects, with input_ids and attention_mask [B, S], as `capture` takes
            them; read once.
        layer_list: the dotted name of the model's list of layers.
        function: who asks, for errors.

    Yields:
        bool [B, S] on the model's device: the tokens of the batch that are no padding.

    Raises:
        TypeError: a batch without one of the two.
        ValueError: no batch has a token that counts.
    """
    layers = model.get_submodule(layer_list)
    body = model.base_model if layers in set(model.base_model.modules()) else model
    num_tokens = 0
    with evaluating(model):
        for batch in batches:
            input_ids, mask = (tensor.to(model.device) for tensor in _inputs(batch, function))
            with torch.inference_mode():
                body(input_ids=input_ids, attention_mask=mask)
            num_tokens += int(mask.sum())
            yield mask.bool()
    if not num_tokens:
        raise checks.nothing_to_calibrate_on(function)


def _inputs(batch: Any, function: str) -> tuple[Tensor, Tensor]:
    get = batch.get if isinstance(batch, Mapping) else partial(getattr, batch)
    input_ids, mask = get("input_ids", None), get("attention_mask", None)
    if input_ids is None or mask is None:
        raise checks.calibration_batch_incomplete(function, type(batch).__name__)
    return torch.as_tensor(input_ids), torch.as_tensor(mask)
