"""What a model is made of, found from the model itself rather than from a table of names.

A skeleton is the model that a config describes, built without memory on the meta device. Two
skeletons that differ in one number of the config show which tensors that number shapes.
"""

import copy

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def skeleton(like: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The model of the same class that config describes: shapes and names without memory."""
    with torch.device("meta"):
        return type(like)(config)


def vocabulary_tensors(model: PreTrainedModel) -> frozenset[str]:
    """Names of the tensors with one row for each id of the vocabulary, tied ones included."""
    wider = copy.deepcopy(model.config)
    wider.vocab_size += 1
    before = skeleton(model, model.config).state_dict()
    after = skeleton(model, wider).state_dict()
    return frozenset(name for name, tensor in before.items() if tensor.shape != after[name].shape)


def offset_positions(model: PreTrainedModel) -> str | None:
    """The name of the position table that counts from its padding index, if there is one.

    RoBERTa and XLM-R give their first token position padding_idx + 1, so the table belongs to the
    id of the padding token. BERT and DistilBERT count from 0, whatever that id is.
    """
    words = model.get_input_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or module is words:
            continue
        if module.padding_idx is not None:
            return str(name)
    return None


def padding_index(model: PreTrainedModel, table: str) -> int:
    """The padding index of an embedding that has one."""
    index = model.get_submodule(table).padding_idx
    assert isinstance(index, int)
    return index
