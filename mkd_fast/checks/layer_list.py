"""Errors of finding a model's layers."""

from collections.abc import Mapping

from mkd_fast.checks.wording import value_error


def not_found(
    function: str, model: str, name: str | None, num_layers: int | None, lengths: Mapping[str, int]
) -> ValueError:
    """No module list, or several, that could be the layers."""
    found = ", ".join(f"{path!r} ({length})" for path, length in lengths.items()) or "none"
    asked = f"layer_list={name!r} among " if name is not None else ""
    return value_error(
        function,
        f"{model} must have one nn.ModuleList of config.num_hidden_layers = {num_layers} layers",
        f"{asked}these lists: {found}",
        "Name the list of its layers with layer_list=.",
    )


def not_counted(function: str, model: str, layer_list: str, length: int) -> ValueError:
    """A list of layers whose length the config does not decide."""
    return value_error(
        function,
        f"the config of {model} must have a number that says how many layers {layer_list!r} has",
        f"none that is {length} and shortens it",
        "Build the list in __init__ with range(config.num_hidden_layers).",
    )
