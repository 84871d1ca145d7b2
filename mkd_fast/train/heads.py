"""What goes into a language model's head, at some tokens, and what is done behind it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mkd_fast.data.batches import PickedBatch
from mkd_fast.evaluating import without_cache
from mkd_fast.losses import TeacherHead
from mkd_fast.train.forward import at_positions, inputs_of

# M tokens with a label, D width


@dataclass(frozen=True)
class BehindHead:
    """What a model does to the products of its head before they are its logits.

    Args:
        softcap: z -> softcap * tanh(z / softcap), after the scale; None: off.
        scale: z -> scale * z.
    """

    softcap: float | None = None
    scale: float = 1.0


def behind_head(config: Any) -> BehindHead:
    """As the config of a model says."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    return BehindHead(getattr(config, "final_logit_softcapping", None), float(scale))


def into_head(
    model: nn.Module, batch: Any, layers: Sequence[int] = ()
) -> tuple[TeacherHead, list[Tensor]]:
    """Head and its input at the tokens that have a label, and some hidden states [M, D] there.

    Args:
        model: of ``transformers``, with a linear head.
        batch: a ``PickedBatch``.
        layers: by their numbers as hidden states.
    """
    assert isinstance(batch, PickedBatch), "labelled_only() made it"
    with _head_left_out(model) as (head, inputs):
        out = model(**inputs_of(model, batch), output_hidden_states=bool(layers))

    def picked(states: Tensor) -> Tensor:
        return at_positions(states, batch, batch.positions)

    hidden = picked(inputs.pop()).to(head.weight.dtype)
    states = [picked(out.hidden_states[layer]) for layer in layers]
    return TeacherHead(hidden, head.weight, getattr(head, "bias", None)), states


@contextmanager
def _head_left_out(model: nn.Module) -> Iterator[tuple[Any, list[Tensor]]]:
    """The head, and where its input goes while it is left out; no key-value cache is made."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]  # transformers' models
    inputs: list[Tensor] = []

    def forward(states: Tensor) -> Tensor:
        inputs.append(states)
        return states

    head.forward = forward
    try:
        with without_cache(model):
            yield head, inputs
    finally:
        del head.forward
