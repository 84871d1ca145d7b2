"""A model over several processes: copied to each (DDP), or its parameters dealt out (FSDP2).

Either way a process computes its rows of a step, and the gradients are the mean over processes.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from mkd_fast.layer_list import find_layer_list, layers_of
from mkd_fast.train.processes import Processes

Parallel = Literal["ddp", "fsdp"]


class _Copied(DistributedDataParallel):
    """DDP that a task can ask what it asks the model: its head, its config."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def over(model: nn.Module, parallel: Parallel, processes: Processes) -> nn.Module:
    """What is to be called instead of the model, so that gradients are those of all processes.

    After what is frozen is frozen, and before the optimizer is made.

    Args:
        model: the same in every process, on the process's device.
        parallel: "ddp" copies rank 0's parameters to all. "fsdp" deals out, in place, those of
            each layer and those of what is around the layers: a process holds its share of them,
            of their gradients and of the optimizer's state, and a whole layer while it is at work.
        processes: the model itself where there is one.
    """
    if processes.size == 1:
        return model
    if parallel == "ddp":
        with warnings.catch_warnings():  # torch 2.13 has another name for it, that 2.10 has not
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return _Copied(
                model,
                process_group=processes.group,
                broadcast_buffers=False,  # none changes in training
                gradient_as_bucket_view=True,  # no second copy of the gradients
            )
    assert processes.group is not None, "there are several processes"
    # heads return views, which no loss of ours writes into
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = DeviceMesh.from_group(processes.group, next(model.parameters()).device.type)
    if isinstance(model, PreTrainedModel):
        for layer in layers_of(model, find_layer_list("fsdp", model)):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def sum_gradients(model: nn.Module, *, after: bool) -> None:
    """Whether the backward pass to come is the last of a step, after which gradients are summed.

    Until then each process adds up its own; dealt out, of the whole model.

    Args:
        model: what ``over`` returned, before its forward pass.
        after: nothing is summed after it where False.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(after)
    elif isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = after


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, which every process must ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def dealt_as(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where the other, of its shape, is dealt out."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state on the CPU with whole tensors, tied ones still one; all must ask for it."""
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor in state.values():
            if id(tensor) not in found:
                found[id(tensor)] = whole(tensor).cpu()
    return {name: found[id(tensor)] for name, tensor in state.items()}
