"""Errors of the student room."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.wording import one_of as one_of
from mkd_fast.checks.wording import type_error, value_error


def num_layers_out_of_range(num_layers: int, num_teacher_layers: int) -> ValueError:
    """More layers than the teacher has, or none."""
    return value_error(
        "copy_init",
        f"num_layers must lie in [1, {num_teacher_layers}], the teacher's layers",
        f"{num_layers}",
        "Leave it out for half of them.",
    )


def bad_layer_numbers(layers: Sequence[int], num_teacher_layers: int) -> ValueError:
    """A list of layers that is empty, does not rise or leaves the teacher."""
    return value_error(
        "copy_init",
        f"depth as a list must name layers from 0 to {num_teacher_layers - 1}, rising, each once",
        f"{list(layers)}",
        "Layers keep the teacher's order.",
    )


def layer_count_mismatch(layers: Sequence[int], num_layers: int) -> ValueError:
    """A list of layers and another number of them."""
    return value_error(
        "copy_init",
        f"num_layers must be {len(layers)}, as many as depth names",
        f"{num_layers}",
        "Leave num_layers out when depth is a list.",
    )


def calibration_missing() -> ValueError:
    """Layers to be ranked on nothing."""
    return value_error(
        "copy_init",
        "depth='importance' must be given text to rank the layers on",
        "no calibration",
        "Pass calibration=[tokenizer(texts, padding=True, return_tensors='pt'), ...], batches of "
        "training text.",
    )


def calibration_unused() -> ValueError:
    """Text that nothing is decided by."""
    return value_error(
        "copy_init",
        "calibration must be left out where nothing is ranked on it",
        "batches",
        "Pass depth='importance' with them.",
    )


def layers_not_seen(model: str, layer_list: str) -> ValueError:
    """Layers that are not called, or not with one hidden state for each token."""
    return value_error(
        "copy_init",
        f"{model} must hand hidden states [batch, tokens, width] from each layer of "
        f"{layer_list!r} to the next",
        "other tensors",
        "Rank its layers in another way and pass their numbers as depth.",
    )


def layer_built_otherwise(
    model: str, layer: int, place: int, what: str, was: object, now: object
) -> ValueError:
    """A layer that would not be itself in its new place."""
    before = "layer 0" if place == 0 else "every layer before it"
    return value_error(
        "copy_init",
        f"layer {layer} of {model} must be built the same as layer {place} of the student",
        f"{what} {now!r} instead of {was!r} there",
        f"Name layers with depth=[...], and keep {before}.",
    )


def not_a_transformers_model(kind: str) -> TypeError:
    """A wrapped model, or something else."""
    return type_error(
        "copy_init",
        "teacher_model must be a transformers PreTrainedModel",
        kind,
        "Unwrap it first: .module (DDP), ._orig_mod (torch.compile), .merge_and_unload() (PEFT).",
    )


def teacher_not_copyable(fact: str, way_out: str) -> ValueError:
    """Weights that are not plain numbers in one place."""
    return value_error(
        "copy_init", "teacher_model must hold floating-point weights on one device", fact, way_out
    )


def tensors_without_source(names: Sequence[str]) -> ValueError:
    """The student has tensors that the teacher has not."""
    return value_error(
        "copy_init",
        "every tensor of the student must have one of the teacher's to be copied from",
        f"none for {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}",
        "The teacher is not the model that its config describes: save it and load it again.",
    )


def tensor_shape_mismatch(name: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> ValueError:
    """The teacher's config and its weights disagree."""
    return value_error(
        "copy_init",
        f"{name} must have the shape {wanted} that the config describes",
        f"{got}",
        "Mend the teacher's config (num_labels, vocab_size, ...) to fit its weights.",
    )


def tied_tensors_differ(first: str, second: str) -> ValueError:
    """The config ties two tensors that are not equal."""
    return value_error(
        "copy_init",
        f"{first} and {second} must be equal, as the config ties them",
        "different weights",
        "Set config.tie_word_embeddings=False on the teacher.",
    )


def teacher_tensors_left(names: Sequence[str]) -> ValueError:
    """The teacher has tensors that no student of its class would have."""
    return value_error(
        "copy_init",
        "every tensor of the teacher must be one that its config describes",
        f"also {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}",
        "Merge adapters into the weights first.",
    )


def calibration_batch_incomplete(function: str, kind: str) -> TypeError:
    """A calibration batch that a model cannot be run on."""
    return type_error(
        function,
        "a batch of calibration must have input_ids and attention_mask",
        f"{kind} without them",
        "Pass what a tokenizer returns with padding=True, return_tensors='pt'.",
    )


def nothing_to_calibrate_on(function: str) -> ValueError:
    """Calibration text without a token."""
    return value_error(
        function,
        "calibration must hold at least one token that its attention_mask counts",
        "none",
        "A generator is used up by its first use: pass a list.",
    )


def vocabulary_of_several_models(model: str) -> ValueError:
    """Token ids that the config of another modality names too."""
    return value_error(
        "copy_init",
        "keep_token_ids must be left out for a model that reads more than text",
        model,
        "Cut the text model alone.",
    )


def bad_keep_token_ids(ids: Sequence[int], num_tokens: int) -> ValueError:
    """Ids that are none, outside the vocabulary or repeated."""
    outside = [token_id for token_id in ids if not 0 <= token_id < num_tokens]
    repeated = [token_id for token_id, count in Counter(ids).items() if count > 1]
    fact = f"{outside[:4]}" if outside else f"{repeated[:4]} more than once" if ids else "no ids"
    return value_error(
        "TokenMap.of",
        f"keep_token_ids must be distinct and lie in [0, {num_tokens}), the full vocabulary",
        fact,
        "token_ids_of_text collects them from a text.",
    )


def special_tokens_dropped(function: str, missing: Sequence[str]) -> ValueError:
    """Tokens that the model or the tokenizer cannot do without."""
    return value_error(
        function,
        "keep_token_ids must contain the special tokens",
        f"none of {', '.join(missing)}",
        "used_token_ids adds them.",
    )


def tokenizer_without_backend(kind: str) -> TypeError:
    """A tokenizer that is not made of a `tokenizers` JSON."""
    return type_error(
        "trim_tokenizer",
        "tokenizer must be a fast one, backed by the tokenizers library",
        kind,
        "Convert it: AutoTokenizer.from_pretrained loads the fast one where it exists.",
    )


def tokenizer_model_unsupported(fact: str) -> ValueError:
    """A tokenizer of a kind that cannot be cut right."""
    return value_error(
        "trim_tokenizer",
        "the tokenizer's model must be Unigram, WordPiece or BPE",
        fact,
        "Keep the whole vocabulary: leave keep_token_ids out.",
    )


def tokenizer_drops_merges(dropout: float) -> ValueError:
    """BPE dropout: the same text splits otherwise each time."""
    return value_error(
        "trim_tokenizer",
        "the tokenizer must split a text the same way each time",
        f"a BPE model with dropout={dropout}",
        "Turn it off: tokenizer.backend_tokenizer.model.dropout = None.",
    )


def coverage_out_of_range(coverage: float) -> ValueError:
    """A share of a text's tokens."""
    return value_error(
        "token_ids_of_text",
        "coverage must lie in (0, 1], a share of the text's tokens",
        repr(coverage),
        "1.0 keeps every token of the text, 0.999 leaves out the rarest.",
    )


def trimmed_ids_differ(token: str, wanted: int | None, got: int | None) -> ValueError:
    """The rebuilt tokenizer numbers its tokens otherwise than the plan."""
    return value_error(
        "trim_tokenizer",
        f"token {token!r} must get the id {wanted}",
        f"{got}",
        "The tokenizer numbers added tokens in a way of its own: keep the whole vocabulary.",
    )


def splits_differ(text: str, full: Sequence[str], trimmed: Sequence[str]) -> ValueError:
    """A text that the trimmed tokenizer splits in another way."""
    return value_error(
        "check_same_splits",
        f"the trimmed tokenizer must split {text!r} into {list(full)}",
        f"{list(trimmed)}",
        "Add this text to those that token_ids_of_text sees, and leave its coverage at 1.",
    )


def words_by_id(name: str) -> ValueError:
    """A setting of generation that spells words in ids."""
    return value_error(
        "copy_init",
        "generation_config must name no words by their ids where the vocabulary is cut",
        name,
        f"Set teacher_model.generation_config.{name} = None, and the new ids on the student.",
    )


def token_map_damaged(path: Path, error: Exception) -> ValueError:
    """A file that is not what TokenMap.save writes."""
    return value_error(
        "TokenMap.load",
        f"{path} must be a token map, as TokenMap.save writes it",
        f"{type(error).__name__}: {error}",
        "Save it again: trim_tokenizer gives the map.",
    )
