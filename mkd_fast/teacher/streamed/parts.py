"""What of a model is always in memory, and what comes and goes."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from mkd_fast.layer_list import find_layer_list
from mkd_fast.teacher.streamed.stages import Stage, Weight


@dataclass(frozen=True)
class Parts:
    """The weights of a model by when they are needed.

    Attributes:
        layer_modules: in order.
        layers: their weights.
        head: the output embedding's, tied or not; none if the model has no such module.
        table: of the input embedding, of which rows are read; None where it is not a plain one,
            or is wanted as a whole.
        resident: all others.
    """

    layer_modules: list[nn.Module]
    layers: list[Stage]
    head: Stage
    table: Weight | None
    resident: Stage

    def stages(self, *, with_head: bool) -> list[Stage]:
        """What a block needs, in turn; without the head the last one is empty."""
        return [*self.layers, self.head if with_head else Stage(())]


def divide(
    model: PreTrainedModel,
    weights: Mapping[str, Weight],
    layer_list: str | None,
    largest_table_bytes: int,
) -> Parts:
    """Sort the weights of a model.

    Args:
        model: the model.
        weights: by name.
        layer_list: name of the list of layers; None to find it.
        largest_table_bytes: an input embedding of at most this size is resident.

    Raises:
        ValueError: where its layers are cannot be told.
    """
    list_name = find_layer_list("StreamedTeacher", model, layer_list)
    modules = list(model.get_submodule(list_name).children())
    left = dict(weights)

    def take(prefix: str) -> Stage:
        names = [name for name in left if name.startswith(prefix + ".")]
        return Stage([left.pop(name) for name in names])

    layers = [take(f"{list_name}.{number}") for number in range(len(modules))]
    names = {module: name for name, module in model.named_modules()}
    words, output = model.get_input_embeddings(), model.get_output_embeddings()
    table, table_name = None, f"{names[words]}.weight"
    if isinstance(words, nn.Embedding) and left[table_name].num_bytes > largest_table_bytes:
        table = left.pop(table_name)
    head = Stage(()) if output is None else take(names[output])
    return Parts(modules, layers, head, table, Stage(left.values()))
