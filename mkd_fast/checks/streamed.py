"""Errors of teachers that are streamed from the disk."""

from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.wording import positive as positive
from mkd_fast.checks.wording import runtime_error, value_error

_NAME = "StreamedTeacher"


def needs_accelerate() -> RuntimeError:
    """It tells which file has which weight."""
    return runtime_error(
        _NAME,
        "accelerate must be installed",
        "no such package",
        "pip install 'mkd_fast[streaming]'.",
    )


def not_safetensors(path: Path, detail: str) -> ValueError:
    """A header that cannot be read."""
    return value_error(
        _NAME, f"{path} must be a safetensors file", detail, "The file is damaged: fetch it again."
    )


def cut_short(path: Path, needed: int, found: int) -> ValueError:
    """Shorter than its header says, or than it was a moment ago."""
    return value_error(
        _NAME,
        f"{path} must have {needed:,} bytes",
        f"{found:,}",
        "The file is cut short: fetch it again.",
    )


def weights_missing(model: str, source: str, names: Sequence[str]) -> ValueError:
    """from_pretrained would fill them at random."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return value_error(
        _NAME,
        f"{source} must have every weight of {model}, in its shape",
        f"none for {', '.join(names[:3])}{more}",
        "Name the class that the model was saved as, or train the head first.",
    )


def other_shape(name: str, wanted: Sequence[int], found: Sequence[int]) -> ValueError:
    """The config and the weights contradict each other, or the weight is packed."""
    return value_error(
        _NAME,
        f"{name} must be stored in its shape {list(wanted)}",
        f"{list(found)}",
        "The config is another model's, or the weights are quantised: dequantise them first.",
    )


def quantised(source: str, quantizer: str) -> ValueError:
    """Packed weights need their library's own modules and kernels."""
    return value_error(
        _NAME,
        "weights must be floating-point numbers as they are used",
        f"{source} for {quantizer}",
        "Dequantise it: options={'quantization_config': ...(dequantize=True)} where transformers "
        "offers that, or save a dequantised copy.",
    )


def over_budget(budget: int, needed: int, weights: int, num_tokens: int) -> ValueError:
    """What the smallest block needs; the weights' part tells whether smaller batches help."""
    return value_error(
        _NAME,
        f"max_memory_bytes must hold two stages of weights, {weights:,} bytes, and a block of "
        f"{num_tokens} tokens, {needed:,} bytes in all",
        f"{budget:,}",
        "Give it that much, smaller batches or blocks, or a spill_folder for the states. If the "
        "output embedding is the largest stage, wants_logits=False (keep='hidden') leaves it out.",
    )


def layer_not_run(model: str, number: int) -> ValueError:
    """The list is not what the forward pass runs through."""
    return value_error(
        _NAME,
        f"{model} must run every layer of its list once",
        f"a forward pass without layer {number}",
        "Name the list that it runs with layer_list=.",
    )


def layers_out_of_order(model: str, expected: int, number: int) -> ValueError:
    """A model that loops over its layers, or picks some."""
    return value_error(
        _NAME,
        f"{model} must run its layers once each, in order",
        f"layer {number} where {expected} was due",
        "Such a model cannot be streamed by layer.",
    )


def layer_hands_on_more(model: str, number: int) -> ValueError:
    """A later layer may need it, and would not get it."""
    return value_error(
        _NAME,
        f"a layer of {model} must hand on its hidden state and nothing else",
        f"more tensors from layer {number}",
        "Such a model cannot be streamed by layer.",
    )


def no_such_hidden_state(layers: Sequence[int], num_layers: int) -> ValueError:
    """Numbered as transformers numbers hidden states."""
    return value_error(
        f"{_NAME}.run",
        f"hidden_layers must be numbers from 0 to {num_layers}",
        f"{list(layers)}",
        "0 is the embeddings, i what layer i hands on.",
    )


def no_output_embedding(function: str, model: str) -> ValueError:
    """Only language models have one."""
    return value_error(
        function,
        "the model must have an output embedding",
        f"{model}, whose get_output_embeddings() is None",
        "Use its logits.",
    )
