"""A model that is only looked at, and one that makes no key-value cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key-value cache, and everything as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with without_cache(model):
            yield
    finally:
        model.train(was_training)


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """No key-value cache is made, which only generation needs; the config is as it was after."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    used_cache = getattr(config, "use_cache", None)
    if used_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if used_cache is not None:
            config.use_cache = used_cache
