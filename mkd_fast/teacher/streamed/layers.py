"""Running one layer of a model at a time, by the model's own forward pass.

What a layer gets (masks of its kind, rotary angles, positions) is the model's affair and differs
between families. So nothing of it is rebuilt here: for layer i the whole model is called, in which
every layer has been replaced so that

    j < i - 1   hands its input on,
    j = i - 1   hands on what it computed for this batch in the stage before,
    j = i       runs, and ends the call by an exception.

The embeddings and masks are thus computed again for every layer, which is little beside the layer
itself. In the last stage i is the number of layers: the call goes on to the end.

Right for every model whose layers run once each, in order, and get nothing of each other's but the
hidden state: what the model does to that between two layers is done. A layer that returns tensors
beside it (T5's position bias) is refused; skip connections across layers, which ``transformers``
has in a few hybrid models, are not noticed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mkd_fast.checks import streamed as checks


@dataclass(frozen=True)
class LayerStep:
    """What a layer was given, and what it made of it."""

    given: Tensor
    made: Tensor


class _LayerDone(Exception):  # noqa: N818 - not an error: it ends the model's forward pass
    def __init__(self, step: LayerStep) -> None:
        self.step = step


class LayerByLayer:
    """A model whose layers run one at a time.

    Args:
        model: the model; its layers get a forward method of ours.
        layers: they, in order.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._model = model
        self._num_layers = len(layers)
        self._stage = self._next = 0
        self._state: Tensor | None = None
        # a layer's output is the hidden state, or a tuple that begins with it
        self._tuple_lengths: dict[int, int] = {}
        for number, layer in enumerate(layers):
            layer.forward = partial(self._forward, number, layer.forward)

    def run_layer(self, stage: int, state: Tensor | None, inputs: Mapping[str, Any]) -> LayerStep:
        """Run one layer on one batch.

        Args:
            stage: number of the layer.
            state: what the layer before it made; None for the first.
            inputs: of the model.

        Raises:
            ValueError: the layers do not run once each in order, or hand on more than a state.
        """
        self._stage, self._next, self._state = stage, 0, state
        try:
            self._model(**inputs)
        except _LayerDone as done:
            return done.step
        finally:
            self._state = None
        raise checks.layer_not_run(type(self._model).__name__, stage)

    def run_rest(self, state: Tensor, inputs: Mapping[str, Any]) -> Any:
        """Run what follows the layers on one batch: the model's outputs.

        Args:
            state: what the last layer made.
            inputs: of the model.
        """
        self._stage, self._next, self._state = self._num_layers, 0, state
        try:
            outputs = self._model(**inputs)
        finally:
            self._state = None
        if self._next < self._num_layers:
            raise checks.layer_not_run(type(self._model).__name__, self._next)
        return outputs

    def _forward(self, number: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if number != self._next:
            raise checks.layers_out_of_order(type(self._model).__name__, self._next, number)
        self._next += 1
        given = args[0] if args else kwargs["hidden_states"]
        if number == self._stage:
            raise _LayerDone(LayerStep(given, self._hidden(number, forward(*args, **kwargs))))
        state = self._state if number == self._stage - 1 else given
        length = self._tuple_lengths[number]
        return (state, *[None] * (length - 1)) if length else state

    def _hidden(self, number: int, output: Any) -> Tensor:
        """The hidden state in what a layer returned."""
        parts = output if isinstance(output, tuple) else (output,)
        self._tuple_lengths[number] = len(parts) if isinstance(output, tuple) else 0
        if not isinstance(parts[0], Tensor) or any(part is not None for part in parts[1:]):
            raise checks.layer_hands_on_more(type(self._model).__name__, number)
        return parts[0]


class OutputEmbedding:
    """The model's last product, whose input can be kept and which can be left out.

    Args:
        module: what get_output_embeddings returns; it gets a forward method of ours.
    """

    def __init__(self, module: nn.Module) -> None:
        self.is_left_out = False
        self._given: Tensor | None = None
        module.forward = partial(self._forward, module.forward)

    def take(self) -> Tensor | None:
        """What it was given last, which is not kept any longer."""
        given, self._given = self._given, None
        return given

    def _forward(self, forward: Any, given: Tensor) -> Tensor:
        self._given = given
        product: Tensor = given[..., :0] if self.is_left_out else forward(given)
        return product
