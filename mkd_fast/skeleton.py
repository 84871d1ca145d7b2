"""The model that a config describes, built without memory.

Two skeletons that differ in one number of the config show what that number shapes, so that this
need not be written down for each family of models.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from mkd_fast.quiet import quiet_transformers

_INITIALISERS = ("torch.nn.init", "transformers.initialization")  # which may stand in for it


def skeleton(like: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The model of the same class that config describes: modules, shapes and names, no weights."""
    with quiet_transformers(), torch.device("meta"):
        return type(like)(config)


def unfilled(like: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The same in memory, on the CPU: what is random is left as memory was, to be filled in.

    What is computed, such as rotary frequencies, is there. The caller's random state stays.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _NoRandomFill():
        return type(like)(config)


class _NoRandomFill(TorchFunctionMode):
    """Functions of torch.nn.init are skipped: most of the time of a copy, and its memory.

    Those that torch lets a mode see, that is: trunc_normal_ draws as ever.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) in _INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


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
