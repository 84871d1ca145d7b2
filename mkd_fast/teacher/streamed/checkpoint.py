"""A model without its weights, and where each of them lies on the disk.

``transformers`` itself says which tensor of which file belongs to which parameter: it loads the
model for accelerate's disk offload, which applies its renamings, keeps the buffers in memory, and
writes what a conversion changes (fused experts, weights that are not safetensors) to a folder. We
take the map, and leave accelerate's hooks, which would load each module whenever it is called.
"""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mkd_fast.checks import streamed as checks
from mkd_fast.quiet import quiet_transformers
from mkd_fast.teacher.streamed.reading import stored_tensors
from mkd_fast.teacher.streamed.stages import Weight


@dataclass(frozen=True)
class Checkpoint:
    """A model whose parameters are on the meta device.

    Attributes:
        model: in evaluation mode, without a key-value cache; its buffers are real.
        weights: of each parameter, by its name in the model; tied ones under each name.
    """

    model: PreTrainedModel
    weights: Mapping[str, Weight]


def open_checkpoint(
    source: str | Path,
    model_class: Any,
    dtype: torch.dtype | None,
    converted: Path,
    options: Mapping[str, Any],
) -> Checkpoint:
    """Open a model folder, or a model of a hub.

    Args:
        source: what ``from_pretrained`` takes.
        model_class: whose ``from_pretrained``.
        dtype: of the weights in memory; None as stored.
        converted: a folder for weights that cannot be used as they are stored.
        options: more arguments of ``from_pretrained``.

    Raises:
        ValueError: the checkpoint lacks a weight of the model, is quantised, or damaged.
        RuntimeError: accelerate is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise checks.needs_accelerate()
    with quiet_transformers(), _quiet_accelerate():
        model, loaded = model_class.from_pretrained(
            source,
            dtype="auto",
            device_map={"": "disk"},
            offload_folder=str(converted),
            output_loading_info=True,
            **options,
        )
    lacking = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
    if lacking:
        raise checks.weights_missing(type(model).__name__, str(source), sorted(lacking))
    if getattr(model, "is_quantized", False):
        raise checks.quantised(str(source), type(model.hf_quantizer).__name__)
    index = _take_index(model)
    if dtype not in (None, model.dtype):
        _convert(model, dtype)
    model.config.use_cache = False
    return Checkpoint(model.eval(), _weights(model, index))


@contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """It warns that parameters are on the meta device, which is what we ask for."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _take_index(model: nn.Module) -> Mapping[str, Mapping[str, str]]:
    """Accelerate's map from parameter to file and name there; its hooks are removed."""
    from accelerate.hooks import remove_hook_from_module

    maps = (getattr(getattr(m, "_hf_hook", None), "weights_map", None) for m in model.modules())
    index: Mapping[str, Mapping[str, str]] = next(m for m in maps if m is not None).dataset.index
    remove_hook_from_module(model, recurse=True)
    return index


def _convert(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give a model the dtypes and buffers that a load in another dtype would give it.

    That load would convert every weight only to forget it, and the mapped pages of all of them
    would count as this process's.
    """
    from accelerate import init_empty_weights

    model.config.dtype = dtype  # parts of a model are built from the config alone
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            wanted = type(model)(model.config)
    finally:
        torch.set_default_dtype(before)
    wanted.initialize_weights()  # the load sets the buffers that no file has by this
    stored = model.state_dict()
    for path, module in wanted.named_modules():
        owner = model.get_submodule(path)
        for name, buffer in module.named_buffers(recurse=False):
            value = stored.get(f"{path}.{name}" if path else name, buffer)
            setattr(owner, name, value.to(buffer.dtype))
        for name, parameter in module.named_parameters(recurse=False):
            setattr(owner, name, nn.Parameter(parameter, requires_grad=False))


def _weights(model: PreTrainedModel, index: Mapping[str, Mapping[str, str]]) -> dict[str, Weight]:
    in_file = cache(stored_tensors)
    # what the ordinary load keeps in float32 (routers, some biases), a load to disk forgets
    kept_dtypes = model._get_dtype_plan(model.dtype)
    weights = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place = index[name]
        stored = in_file(Path(place["safetensors_file"]))[place["weight_name"]]
        if stored.shape != tuple(parameter.shape):
            raise checks.other_shape(name, tuple(parameter.shape), stored.shape)
        dtype = next((kept_dtypes[part] for part in kept_dtypes if part in name), parameter.dtype)
        owner, _, leaf = name.rpartition(".")
        empty = nn.Parameter(parameter.to(dtype), requires_grad=False)
        weights[name] = Weight(model.get_submodule(owner), leaf, empty, stored)
    return weights
