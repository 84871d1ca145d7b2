"""Where else a student can start: the rivals of a copy in a comparison."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mkd_fast.evaluating import evaluating
from mkd_fast.layer_list import find_layer_list, layers_of
from mkd_fast.student.structure import drop_absent_modules


def scratch_like(student: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the student's config and shape with fresh weights.

    Args:
        student: any transformers model.
        seed: of the weights; the caller's random state stays as it is.

    Returns:
        A model of the same class, modules, dtype and device, in eval mode.
    """
    config = copy.deepcopy(student.config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, the CPU's only
        fresh = type(student)(config)
    drop_absent_modules(fresh, student)
    nn.Module.to(fresh, device=student.device, dtype=student.dtype)
    fresh.train(False)
    return fresh


def embeddings_only(
    student: PreTrainedModel, seed: int, *, layer_list: str | None = None
) -> PreTrainedModel:
    """The fresh model of `scratch_like` with the student's own embeddings.

    Embeddings are all that acts before the first layer, and every nn.Embedding outside the layers:
    words, positions, token types, their norm and projection, relative positions. A language model
    head that is tied to the words comes with them; all else is fresh.

    Args:
        student: any transformers model whose forward takes input_ids and attention_mask.
        seed: of the other weights; the caller's random state stays as it is.
        layer_list: the name of the nn.ModuleList of layers, where the model does not tell.

    Returns:
        A model of the same class, modules, dtype and device, in eval mode. It shares no memory
        with the student.

    Raises:
        ValueError: the layers are not found.
    """
    list_name = find_layer_list("embeddings_only", student, layer_list)
    fresh = scratch_like(student, seed)
    weights = fresh.state_dict()
    with torch.no_grad():
        for name, tensor in _embeddings(student, list_name).items():
            weights[name].copy_(tensor)
    return fresh


def _embeddings(model: PreTrainedModel, layer_list: str) -> dict[str, Tensor]:
    """Tensors that act before the first layer, as one token run through the model shows."""
    layers = layers_of(model, layer_list)
    before: list[nn.Module] = []
    in_layers = {module for layer in layers for module in layer.modules()}
    others = [module for module in model.modules() if module not in in_layers]
    hooks = [
        module.register_forward_pre_hook(lambda module, _: before.append(module))
        for module in (*others, layers[0])
    ]
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        with evaluating(model), torch.inference_mode():
            model(input_ids=token, attention_mask=torch.ones_like(token))
    finally:
        for hook in hooks:
            hook.remove()
    acting = before[: before.index(layers[0])]
    acting += [module for module in others if isinstance(module, nn.Embedding)]
    names = {module: name for name, module in model.named_modules()}
    weights = model.state_dict()
    own = [
        f"{names[module]}.{name}".lstrip(".")
        for module in acting
        for tensors in (module.named_parameters, module.named_buffers)
        for name, _ in tensors(recurse=False)
    ]
    return {name: weights[name] for name in own if name in weights}
