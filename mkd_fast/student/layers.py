"""Fewer layers: which, the config that describes them, and the proof that each stays what it was.

What a config says layer by layer (`layer_types`, `no_rope_layers`, ...) keeps the entries of the
layers that are kept. What a rule says instead (every third layer attends globally) is said by the
list that it stands for; the rule goes where it would now say something else.

A layer may also be built by its place alone: ModernBERT's first has no norm before attention,
and GPT-2 may scale attention by the layer's number. So each layer of the student, as its class
builds it, is compared with the teacher's, as its class builds that.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mkd_fast.checks import student as checks
from mkd_fast.layer_list import layer_counter, layers_of
from mkd_fast.skeleton import changed, configs_within, skeleton
from mkd_fast.student.depth import choose_layers

# Lists that transformers itself reads by layer, whether or not the model does.
_READ_BY_LAYER = ("layer_types", "mlp_layer_types")
# The first layer of another kind. As the kept ones rise, it is the number of those below it.
_FIRST_OF_A_KIND = ("max_window_layers",)
# What a layer holds beside tensors and modules.
_PLAIN = (bool, int, float, str, tuple, list, type(None), torch.dtype)
# Rules that some configs keep beside the layer_types that they stand for.
_RULES = ("global_attn_every_n_layers", "sliding_window_pattern")


@dataclass(frozen=True)
class KeptLayers:
    """The layers of a student.

    Attributes:
        layers: the teacher's layer that each is, from 0.
        config: a copy of the teacher's config that describes these layers only.
        scores: of every layer of the teacher, where they decided.
    """

    layers: tuple[int, ...]
    config: PretrainedConfig
    scores: tuple[float, ...] | None = None


def keep_layers(
    model: PreTrainedModel,
    layer_list: str,
    depth: str | Sequence[int],
    num_layers: int | None,
    scores: tuple[float, ...] | None = None,
) -> KeptLayers:
    """The layers of `choose_layers`, in a config, once it is sure that they can be kept.

    Where a model builds its first layer unlike the others, a depth by name keeps that one and
    chooses among the rest.

    Args:
        model: the teacher, or its skeleton.
        layer_list: the dotted name of its list of layers.
        depth: as for `choose_layers`, like num_layers and scores.
        num_layers: how many to keep.
        scores: of every layer, for "importance".

    Raises:
        ValueError: see `choose_layers`; no number of the config counts the layers; or the class
            would build one of them in another way.
    """
    num_all = len(layers_of(model, layer_list))
    layers = choose_layers(depth, num_all, num_layers, scores=scores)
    config = _config_with(model, layer_list, layers)
    misfit = _misfit(model, layer_list, layers, config)
    if misfit is not None and misfit.place == 0 and isinstance(depth, str):
        layers = choose_layers(depth, num_all, num_layers, scores=scores, first_stays=True)
        config = _config_with(model, layer_list, layers)
        misfit = _misfit(model, layer_list, layers, config)
    if misfit is not None:
        raise checks.layer_built_otherwise(
            type(model).__name__, misfit.layer, misfit.place, misfit.what, misfit.was, misfit.now
        )
    return KeptLayers(layers, config, scores)


def _config_with(
    model: PreTrainedModel, layer_list: str, layers: Sequence[int]
) -> PretrainedConfig:
    num_all = len(layers_of(model, layer_list))
    if len(layers) == num_all:
        return copy.deepcopy(model.config)
    place, counter = layer_counter("copy_init", model, layer_list)
    kept: dict[str, Any] = {counter: len(layers)}
    for name, value in vars(list(configs_within(model.config))[place]).items():
        if name in _FIRST_OF_A_KIND and value is not None:
            kept[name] = sum(layer < value for layer in layers)
        elif (
            isinstance(value, (list, tuple))
            and len(value) >= num_all
            and (name in _READ_BY_LAYER or _is_read_by_layer(model, place, name, num_all))
        ):
            kept[name] = type(value)(value[layer] for layer in layers)
    config = changed(model.config, place, **kept)
    _drop_stale_rules(list(configs_within(config))[place])
    return config


def _is_read_by_layer(model: PreTrainedModel, place: int, name: str, num_layers: int) -> bool:
    """Whether the model cannot be built with an entry less than it has layers."""
    value = getattr(list(configs_within(model.config))[place], name)
    try:
        skeleton(model, changed(model.config, place, **{name: value[: num_layers - 1]}))
    except IndexError:
        return True
    return False


def _drop_stale_rules(config: Any) -> None:
    """A reader that knows the rule and not the list must not build another model from it."""
    for rule in _RULES:
        if hasattr(config, rule):
            by_rule = config.to_dict()
            del by_rule["layer_types"]
            if type(config).from_dict(by_rule).layer_types != config.layer_types:
                delattr(config, rule)


@dataclass(frozen=True)
class _Misfit:
    """A layer that its new place would build otherwise, and the first thing that differs."""

    layer: int
    place: int
    what: str
    was: object
    now: object


def _misfit(
    model: PreTrainedModel, layer_list: str, layers: Sequence[int], config: PretrainedConfig
) -> _Misfit | None:
    if len(layers) == len(layers_of(model, layer_list)):
        return None
    before = layers_of(skeleton(model, model.config), layer_list)
    after = layers_of(skeleton(model, config), layer_list)
    for place, layer in enumerate(layers):
        was, now = dict(_build(before[layer])), dict(_build(after[place]))
        for what in chain(was, now):
            pair = was.get(what), now.get(what)
            if pair[0] != pair[1] and pair != (layer, place):  # its own number may differ
                return _Misfit(layer, place, what, *pair)
    return None


def _build(layer: nn.Module) -> Iterator[tuple[str, object]]:
    """What a layer is made of: the class of each of its modules, and the plain values they hold."""
    for path, module in layer.named_modules():
        yield path or "layer", type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, _PLAIN):
                yield f"{path}.{name}".lstrip("."), value
