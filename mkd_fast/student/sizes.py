"""The numbers of a config that say how wide a model is."""

import copy
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from mkd_fast.checks import width as checks
from mkd_fast.skeleton import skeleton

_FEED_FORWARD = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")
_AS_WIDE = ("pooler_hidden_size",)  # the hidden size, said twice


@dataclass(frozen=True)
class Sizes:
    """How wide a model is.

    Attributes:
        hidden_size: units of the residual stream.
        num_heads: query heads.
        num_key_value_heads: num_heads, or a divisor of it.
        head_dim: of each head.
        intermediate_size: units of each feed-forward block.
        heads_fill_hidden: True where the family has no head_dim of its own, so that hidden_size is
            num_heads * head_dim.
    """

    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    heads_fill_hidden: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Sizes":
        """Read from the config; whether head_dim is free is tried out on skeletons.

        Raises:
            ValueError: a config that names no such numbers.
        """
        config: Any = model.config
        names = ("hidden_size", "num_attention_heads")
        if missing := [name for name in names if not hasattr(config, name)]:
            raise checks.config_without(type(model).__name__, missing)
        if (feed_forward := _feed_forward(config)) is None:
            raise checks.config_without(type(model).__name__, _FEED_FORWARD)
        hidden_size, num_heads = config.hidden_size, config.num_attention_heads
        sizes = cls(
            hidden_size,
            num_heads,
            getattr(config, "num_key_value_heads", None) or num_heads,
            getattr(config, "head_dim", None) or hidden_size // num_heads,
            getattr(config, feed_forward) or 4 * hidden_size,  # GPT-2's n_inner is None for that
            heads_fill_hidden=False,
        )
        is_free = bool(changed_axes(model, sizes, replace(sizes, head_dim=sizes.head_dim + 2)))
        return replace(sizes, heads_fill_hidden=not is_free)

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_heads // self.num_key_value_heads

    @property
    def wider(self) -> "Sizes":
        """The next hidden size that any family can have."""
        if not self.heads_fill_hidden:
            return replace(self, hidden_size=self.hidden_size + self.num_heads)
        return replace(
            self, hidden_size=self.hidden_size + self.head_dim, num_heads=self.num_heads + 1
        )

    def write(self, config: PretrainedConfig) -> None:
        """Put these numbers into a config."""
        numbers: dict[str, int] = {
            name: self.hidden_size
            for name in _AS_WIDE
            if getattr(config, name, None) == config.hidden_size
        }
        numbers |= {"hidden_size": self.hidden_size, "num_attention_heads": self.num_heads}
        if hasattr(config, "num_key_value_heads"):
            numbers["num_key_value_heads"] = self.num_key_value_heads
        if not self.heads_fill_hidden:
            numbers["head_dim"] = self.head_dim
        numbers[_feed_forward(config) or ""] = self.intermediate_size
        for name, value in numbers.items():
            setattr(config, name, value)


def changed_axes(model: PreTrainedModel, one: Sizes, other: Sizes) -> dict[str, tuple[int, ...]]:
    """By tensor, the axes that are longer or shorter in a model of other sizes."""
    shapes = []
    for sizes in (one, other):
        config = copy.deepcopy(model.config)
        sizes.write(config)
        weights = skeleton(model, config).state_dict()
        shapes.append({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return {
        name: axes
        for name, shape in shapes[0].items()
        if (axes := tuple(i for i, n in enumerate(shape) if n != shapes[1][name][i]))
    }


def _feed_forward(config: PretrainedConfig) -> str | None:
    return next((name for name in _FEED_FORWARD if hasattr(config, name)), None)
