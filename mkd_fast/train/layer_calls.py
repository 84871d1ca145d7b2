"""How a model's layers are called while it is trained: compiled, or their activations dropped.

Of a layer with activation checkpointing only the input is kept, and backward calls it once more:
a third more operations, and of a layer's memory a tenth. What is compiled is each layer by itself,
all by the same code: so a model of any depth compiles once, its head and its loss stay what they
are, and both go together with DDP and FSDP2, whose hooks are around the layers.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mkd_fast.checks import train as checks
from mkd_fast.evaluating import without_cache
from mkd_fast.layer_list import find_layer_list, layers_of

Call = Callable[..., Any]


@contextmanager
def layer_calls(model: nn.Module, *, compile: str, checkpointing: bool) -> Iterator[None]:
    """Call the layers so while the model is in training mode; as before afterwards.

    Args:
        model: of ``transformers``; any other is called as one layer.
        compile: "no"; "layers" through ``torch.compile``, for all shapes at once; "cuda_graphs"
            records the kernels of each shape too, and starts them together.
        checkpointing: each layer is computed again in the backward pass, dropout included.

    Raises:
        RuntimeError: there is no C++ compiler for a CPU, or no CUDA device for its graphs.
    """
    if compile == "no" and not checkpointing:
        yield
        return
    _check(compile, next(model.parameters()).device)
    with ExitStack() as stack:
        stack.enter_context(without_cache(model))  # which a second call would write to again
        for layer in _layers(model):
            call = _called(layer.forward, layer, compile, checkpointing)
            stack.callback(_put_back, layer, vars(layer).get("forward"))
            layer.forward = call
        yield


def _check(compile: str, device: torch.device) -> None:
    if compile == "cuda_graphs" and device.type != "cuda":
        raise checks.no_cuda_graphs(device)
    if compile == "layers" and device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise checks.no_compiler(compiler)


def _layers(model: nn.Module) -> Sequence[Any]:
    if not isinstance(model, PreTrainedModel):
        return [model]
    return layers_of(model, find_layer_list("fit", model))


def _called(plain: Call, layer: nn.Module, compile: str, checkpointing: bool) -> Call:
    computed = plain
    if compile != "no":
        mode = "reduce-overhead" if compile == "cuda_graphs" else None
        computed = torch.compile(plain, dynamic=True, mode=mode)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        if checkpointing:
            return checkpoint(computed, *args, use_reentrant=False, **kwargs)
        return computed(*args, **kwargs)

    return call


def _put_back(layer: nn.Module, forward: Call | None) -> None:
    if forward is None:  # it was its class's
        del layer.forward
    else:
        layer.forward = forward
