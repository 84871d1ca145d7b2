"""A family that transformers has never heard of, which calls everything by names of its own."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class MadeUpConfig(PretrainedConfig):
    model_type = "made_up"

    def __init__(
        self,
        num_blocks: int = 4,
        breadth: int = 4,
        slopes: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_blocks = num_blocks
        self.breadth = breadth  # the same number, and no count of layers
        self.hidden_size = 2 * breadth
        self.vocab_size = 20
        self.slopes = slopes or [0.5 + block for block in range(num_blocks)]


class Block(nn.Module):
    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.mix = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.slope * torch.tanh(self.mix(states))


class MadeUpModel(PreTrainedModel):
    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Parameter(torch.randn(16, config.hidden_size))
        self.blocks = nn.ModuleList(
            Block(config.hidden_size, config.slopes[number]) for number in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        states = [self.words(input_ids) + self.positions[: input_ids.shape[1]]]
        for block in self.blocks:
            states.append(block(states[-1]))
        return BaseModelOutput(self.norm(states[-1]), tuple(states))
