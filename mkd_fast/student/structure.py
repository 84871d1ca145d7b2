"""What a model is made of, found from the model itself rather than from a table of names."""

import copy

from torch import nn
from transformers import PreTrainedModel

from mkd_fast.skeleton import skeleton


def vocabulary_tensors(model: PreTrainedModel) -> frozenset[str]:
    """Names of the tensors with one row for each id of the vocabulary, tied ones included."""
    wider = copy.deepcopy(model.config)
    wider.vocab_size += 1
    before = skeleton(model, model.config).state_dict()
    after = skeleton(model, wider).state_dict()
    return frozenset(name for name, tensor in before.items() if tensor.shape != after[name].shape)


def word_table(model: PreTrainedModel) -> str:
    """The dotted name of the word embeddings."""
    words = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is words)


def embedding_prefixes(model: PreTrainedModel, layer_list: str) -> tuple[str, ...]:
    """How names of embeddings begin, and of their norm where it shares a module with them alone.

    What acts before the first layer would be the exact answer, but that takes a forward pass.
    """
    inside, block = f"{layer_list}.", f"{word_table(model).rpartition('.')[0]}."
    tables = (
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not name.startswith(inside)
    )
    has_own = block != "." and not inside.startswith(block)
    return (*tables, block) if has_own else tuple(tables)


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


def drop_absent_modules(model: PreTrainedModel, like: PreTrainedModel) -> None:
    """Set to None what `like` was built without, such as the pooler of BertModel."""
    modules = dict(like.named_modules())
    for name, _ in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if name and parent in modules and getattr(modules[parent], child, modules) is None:
            setattr(model.get_submodule(parent), child, None)
