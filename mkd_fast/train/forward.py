"""A model run over a batch, whose samples may share rows: then each attends to itself alone.

What a model takes for that depends on how its attention is computed:

- causal models: position ids without a mask, of which transformers makes the masks, those of
  sliding windows included;
- others: masks [R, 1, P, P], for each kind of layers that there is;
- either with a flash or varlen kind of attention: the ends of all samples, ``cu_seq_lens``.

Whether it holds is not believed of any model: ``prove_packing`` compares the hidden states of two
samples in one row with those of each alone, on the model that is to be trained.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mkd_fast.checks import train as checks
from mkd_fast.data.batches import Batch, collate
from mkd_fast.data.packing import Packed
from mkd_fast.data.tokens import TokenisedText
from mkd_fast.evaluating import evaluating
from mkd_fast.train.loop import to_device

# B samples, S tokens of the longest; packed into R rows of P tokens


def inputs_of(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What a model of ``transformers`` is called with; its outputs go through ``padded``."""
    if batch.packed is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    packed, config = batch.packed, _text_config(model)
    inputs: dict[str, Any] = {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids + _first_position(model),
        "attention_mask": None,
    }
    attention = config._attn_implementation
    if "flash" in attention or "varlen" in attention:
        return inputs | _sample_ends(packed)
    if _is_causal(model):
        return inputs | {"use_cache": False}  # with one, transformers sees no samples in a row
    return inputs | {"attention_mask": _masks(packed, config, model)}


def padded(states: Tensor, batch: Batch) -> Tensor:
    """Outputs at tokens as [B, S, ...], however the batch was laid out."""
    if batch.packed is None:
        return states
    places = batch.packed.places
    rows = states.flatten(0, 1).index_select(0, places.flatten())
    return rows.view(*places.shape, *states.shape[2:])


def at_positions(states: Tensor, batch: Batch, positions: Tensor) -> Tensor:
    """Outputs [M, ...] at some places of the padded batch, however it was laid out."""
    if batch.packed is not None:
        positions = batch.packed.places.flatten().index_select(0, positions)
    return states.flatten(0, 1).index_select(0, positions)


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config()


def _is_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) for module in model.modules())


def _first_position(model: nn.Module) -> int:
    """RoBERTa counts from behind its padding's id."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            padding: Any = module.padding_idx
            return int(padding) + 1
    return 0


def _sample_ends(packed: Packed) -> dict[str, Any]:
    """Ends of all samples in the rows laid end to end, by the names that transformers passes on."""
    # what a row is filled up with has position 0, as the beginning of a sample: it is one
    begins = (packed.position_ids.flatten() == 0).nonzero().squeeze(1)
    ends = torch.cat([begins, begins.new_tensor([packed.position_ids.numel()])]).to(torch.int32)
    longest = int(packed.places.shape[1])
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _masks(packed: Packed, config: Any, model: nn.Module) -> Any:
    """Who attends to whom in each row, [R, 1, P, P], for each kind of layers that there is."""
    segments, positions = packed.segments, packed.position_ids
    alike = segments[:, None, :, None] == segments[:, None, None, :]
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return _as_taken(alike, config, model)
    apart = (positions[:, None, :, None] - positions[:, None, None, :]).abs()
    return {
        "full_attention": _as_taken(alike, config, model),
        "sliding_attention": _as_taken(alike & (apart <= config.sliding_window), config, model),
    }


def _as_taken(mask: Tensor, config: Any, model: nn.Module) -> Tensor:
    """Booleans, or for plain attention what it adds to its scores."""
    if config._attn_implementation != "eager":
        return mask
    dtype = next(model.parameters()).dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def prove_packing(model: Any, text: TokenisedText, row_tokens: int) -> None:
    """Compare two samples in one row with each alone: the longest of a text, and the shortest.

    Args:
        model: of ``transformers``, on any device.
        text: what it is to be trained on.
        row_tokens: of packing; 0 compares nothing.

    Raises:
        ValueError: a sample is longer than a row, or the model does not keep samples apart.
    """
    if not row_tokens:
        return
    longest, shortest = int(text.lengths.argmax()), int(text.lengths.argmin())
    if (length := int(text.lengths[longest])) > row_tokens:
        raise checks.row_too_short(row_tokens, length)
    device = next(model.parameters()).device
    samples = (longest, shortest, longest)

    def states(*rows: int, row_tokens: int = 0) -> Tensor:
        batch = to_device(collate(text, rows, row_tokens=row_tokens), device)
        found = model.base_model(**inputs_of(model, batch))[0]
        return padded(found, batch)[batch.attention_mask.bool()]

    with torch.no_grad(), evaluating(model):
        wanted = torch.cat([states(row) for row in samples])
        try:
            found = states(*samples, row_tokens=3 * length)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise checks.not_packed(type(model).__name__, str(error)) from error
    # rounding is far below this share of the states, and what leaks from another sample far above
    share = ((found - wanted).abs().max() / wanted.abs().max()).item()
    if not share < torch.finfo(wanted.dtype).eps ** 0.5:
        raise checks.not_packed(type(model).__name__, f"states that differ by {share:.1e}")
