"""A model that is only looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key-value cache, and everything as it was afterwards."""
    was_training = model.training
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    used_cache = getattr(config, "use_cache", None)
    model.eval()
    if used_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        model.train(was_training)
        if used_cache is not None:
            config.use_cache = used_cache
