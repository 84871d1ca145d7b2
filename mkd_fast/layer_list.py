"""Where a model keeps its layers."""

from torch import nn
from transformers import PreTrainedModel

from mkd_fast.checks import layer_list as checks


def find_layer_list(function: str, model: PreTrainedModel, name: str | None = None) -> str:
    """The dotted name of the nn.ModuleList that holds the model's layers.

    Args:
        function: who asks, for the error.
        model: any transformers model.
        name: that name, where the model does not tell by itself.

    Raises:
        ValueError: not exactly one outermost ModuleList has config.num_hidden_layers entries, or
            the one that was named does not exist or has another number of them.
    """
    lengths: dict[str, int] = {
        found: len(module)
        for found, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    wanted = getattr(model.config, "num_hidden_layers", None)
    fitting = [found for found, length in lengths.items() if length == wanted]
    if name is not None:
        fitting = [name] if name in fitting else []
    outermost = [
        found for found in fitting if not any(found.startswith(f"{other}.") for other in fitting)
    ]
    if len(outermost) != 1:
        raise checks.not_found(function, type(model).__name__, name, wanted, lengths)
    return outermost[0]
