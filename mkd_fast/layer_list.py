"""Where a model keeps its layers, and which number of its config counts them."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from mkd_fast.checks import layer_list as checks
from mkd_fast.skeleton import changed, configs_within, skeleton, text_config

_NO_MODEL = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, ValueError)


def find_layer_list(function: str, model: PreTrainedModel, name: str | None = None) -> str:
    """The dotted name of the nn.ModuleList that holds the model's layers.

    It is the outermost list with as many entries as its (text) config has num_hidden_layers. Of
    several such lists it is the one that a smaller num_hidden_layers shortens. A model of two
    stacks, encoder and decoder, has no list of layers but two, of which one must be named.

    Args:
        function: who asks, for the error.
        model: any transformers model.
        name: that name, where the model does not tell by itself.

    Raises:
        ValueError: not exactly one list is that, or the one that was named does not exist.
    """
    lengths: dict[str, int] = {
        found: len(module)
        for found, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if name is not None and name in lengths:
        return name
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    fitting = [found for found, length in lengths.items() if length == wanted]
    fitting = [
        found for found in fitting if not any(found.startswith(f"{other}.") for other in fitting)
    ]
    if len(fitting) > 1 and wanted is not None:
        place = _place_of_text_config(model)
        fitting = [found for found in fitting if _counts(model, found, place, "num_hidden_layers")]
    if name is not None or len(fitting) != 1 or model.config.is_encoder_decoder:
        raise checks.not_found(function, type(model).__name__, name, wanted, lengths)
    return fitting[0]


def layer_counter(function: str, model: PreTrainedModel, layer_list: str) -> tuple[int, str]:
    """Which number of the config says how many layers a list has: one that shortens it.

    Returns:
        Its config's place in `configs_within(model.config)`, and its name there.

    Raises:
        ValueError: there is none.
    """
    length = len(layers_of(model, layer_list))
    for place, name in _numbers(model, length):
        if _counts(model, layer_list, place, name):
            return place, name
    raise checks.not_counted(function, type(model).__name__, layer_list, length)


def layers_of(model: PreTrainedModel, layer_list: str) -> list[nn.Module]:
    """The layers of the list of this name."""
    return list(model.get_submodule(layer_list).children())


def _numbers(model: PreTrainedModel, value: int) -> Iterator[tuple[int, str]]:
    """Every number of the config with this value, those called num_hidden_layers first."""
    found = [
        (place, name)
        for place, config in enumerate(configs_within(model.config))
        for name in ("num_hidden_layers", *vars(config))
        if not name.startswith("_")
        and type(getattr(config, name, None)) is int
        and getattr(config, name) == value
    ]
    yield from sorted(dict.fromkeys(found), key=lambda number: number[1] != "num_hidden_layers")


def _counts(model: PreTrainedModel, layer_list: str, place: int, name: str) -> bool:
    """Whether a model whose config has one less of this has one layer less."""
    length = len(layers_of(model, layer_list))
    try:
        shorter = skeleton(model, changed(model.config, place, **{name: length - 1}))
        return len(layers_of(shorter, layer_list)) == length - 1
    except _NO_MODEL:  # a width of that value that heads no longer divide, and the like
        return False


def _place_of_text_config(model: PreTrainedModel) -> int:
    text = text_config(model)
    return next(i for i, config in enumerate(configs_within(model.config)) if config is text)
