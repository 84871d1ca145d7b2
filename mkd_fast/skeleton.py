"""The model that a config describes, built without memory.

Two skeletons that differ in one number of the config show what that number shapes, so that this
need not be written down for each family of models.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from mkd_fast.quiet import quiet_transformers


def skeleton(like: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The model of the same class that config describes: modules, shapes and names, no weights."""
    with quiet_transformers(), torch.device("meta"):
        return type(like)(config)


def text_config(model: PreTrainedModel) -> Any:
    """The part of a model's config that describes its text model; mostly the config itself."""
    return model.config.get_text_config()


def configs_within(config: PretrainedConfig) -> Iterator[Any]:
    """A config and every config nested in it, always in the same order."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from configs_within(value)


def changed(config: PretrainedConfig, place: int, **settings: Any) -> PretrainedConfig:
    """A copy of a config with other settings in the `place`-th of configs_within."""
    changed = copy.deepcopy(config)
    owner = list(configs_within(changed))[place]
    for name, value in settings.items():
        setattr(owner, name, value)
    return changed
