"""Tiny teachers of every family, with every parameter random so that none can be lost unseen."""

from collections.abc import Callable

import pytest
import torch
import transformers
from one_thread import one_thread as one_thread
from transformers import (
    BertConfig,
    DistilBertConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
DISTILBERT_SHAPE = {
    "vocab_size": 40,
    "dim": 16,
    "n_layers": 5,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
CONFIGS = {
    "Bert": lambda: BertConfig(**SHAPE),
    "BertWithPadOne": lambda: BertConfig(**SHAPE, pad_token_id=1),  # multilingual-e5-small
    "Roberta": lambda: RobertaConfig(**SHAPE, type_vocab_size=1),
    "XLMRoberta": lambda: XLMRobertaConfig(**SHAPE, type_vocab_size=1),
    "XLMRobertaWithPadNine": lambda: XLMRobertaConfig(**SHAPE, type_vocab_size=1, pad_token_id=9),
    "DistilBert": lambda: DistilBertConfig(**DISTILBERT_SHAPE),
    "DistilBertWithPadOne": lambda: DistilBertConfig(**DISTILBERT_SHAPE, pad_token_id=1),
}


@pytest.fixture
def make_teacher() -> Callable[..., PreTrainedModel]:
    def make(
        family: str, head: str = "ForSequenceClassification", **settings: object
    ) -> PreTrainedModel:
        config = CONFIGS[family]()
        for name, value in settings.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        teacher = getattr(transformers, family.split("With")[0] + head)(config).eval()
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.normal_(std=0.3)
        return teacher

    return make
