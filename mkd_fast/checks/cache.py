"""Errors of the teacher's cache."""

from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.files import folder_not_made as folder_not_made
from mkd_fast.checks.wording import message, runtime_error, value_error


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


def folder_not_empty(function: str, folder: Path, file: str) -> ValueError:
    """A folder of somebody else's files."""
    return value_error(
        function,
        "the cache's folder must be new, empty or left by the same call that was stopped",
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


def unknown_keep(keep: object) -> ValueError:
    """What can be kept of a teacher's output."""
    return value_error(
        "capture",
        "keep must be one or several of 'logits', 'topk:K', 'sampled:N' (N <= 255) and 'hidden'",
        repr(keep),
        "Pass e.g. 'topk:64' or ('hidden', 'sampled:50').",
    )


def kept_more_than_columns(kept: int, columns: int) -> ValueError:
    """A small label set needs no selection."""
    return value_error(
        "capture",
        f"keep must not select more than the {columns} columns there are",
        f"'topk:{kept}'",
        "Pass keep='logits'.",
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
        "If it was one it is damaged; run: mkd-fast cache repair",
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
        "Restore it from a copy, or run: mkd-fast cache repair",
    )


def draws_damaged(kind: str) -> ValueError:
    """Bytes that no capture writes; their checksum was made by whoever changed them."""
    return value_error(
        "TeacherCache.batch",
        f"{kind} must be runs of draws and rising ids, as a capture writes them",
        "other bytes, with a checksum that fits them",
        "Capture again, or restore the cache from a copy.",
    )


def cache_file_missing(path: Path) -> ValueError:
    """A file that the manifest lists."""
    return cache_damaged(path, "it is missing")


def cache_file_of_other_size(path: Path, found: int, expected: int) -> ValueError:
    """Cut, or longer than it was written."""
    return cache_damaged(path, f"it has {found} bytes in place of {expected}")


def cache_file_of_other_content(path: Path) -> ValueError:
    """Of the right size, and yet another."""
    return cache_damaged(path, "its content does not match the manifest's sha256")


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


def kind_not_cached(folder: Path, keep: str | None, stored: Sequence[str]) -> ValueError:
    """A kind that was not captured, or none named of several."""
    fact = "none named" if keep is None else repr(keep)
    return value_error(
        "TeacherCache.batch",
        f"keep must be one of those in {folder}, {list(stored)}",
        fact,
        "Name one, or capture the teacher with it.",
    )


def repaired_otherwise(path: Path, stored: str, found: str) -> ValueError:
    """The same teacher and text give the same bytes, or they are not the same."""
    return value_error(
        "repair",
        f"{path} must come out with sha256 {stored}",
        found,
        "Teacher, text, device and library versions must be those of the capture; "
        "where they cannot be, capture again with resume=False.",
    )


def unknown_suffix(function: str, path: Path, known: Sequence[str]) -> ValueError:
    """A file's format is told by its name."""
    return value_error(
        function, f"a file must end in {' or '.join(known)}", str(path), "Rename it or convert it."
    )


def repair_needs(folder: Path, lost: Sequence[str], argument: str) -> ValueError:
    """What a teacher said can only come from the teacher."""
    return value_error(
        "repair",
        f"{argument} must be given to write {', '.join(lost)} in {folder} again",
        "none",
        "Pass the teacher and the batches of the capture.",
    )


def more_parts_than_batches(num_parts: int, part: int) -> ValueError:
    """A part of nothing would be a cache of nothing."""
    return value_error(
        "capture",
        f"batches must be at least num_parts, {num_parts}, whenever they are iterated",
        f"none for part {part}",
        "Ask for fewer parts, or pass batches that are not used up by the first pass.",
    )


def parts_begun_anew(num_parts: int) -> ValueError:
    """Each process would remove what the others have done."""
    return value_error(
        "capture",
        "resume must be True where processes share a capture",
        f"False with num_parts={num_parts}",
        "Remove the folder before they start.",
    )


def nothing_to_repair(folder: Path) -> ValueError:
    """Without both nothing says what was captured."""
    return value_error(
        "repair",
        "a cache must have its manifest.json or its capture.json",
        f"{folder} with neither",
        "Restore one of them from a copy, or capture again with resume=False.",
    )


def cannot_repair_parts(folder: Path) -> ValueError:
    """Only the manifest knows where parts end."""
    return value_error(
        "repair",
        f"{folder}, captured in parts, must have its manifest, or every shard and the index",
        "neither",
        "Capture it again in another folder.",
    )


def nothing_to_merge() -> ValueError:
    """A cache of nothing is most likely a mistake."""
    return value_error("merge", "paths must name caches", "none", "Name at least one.")


def merged_sample_twice(sample_id: int, one: Path, other: Path) -> ValueError:
    """Records are found by sample id."""
    return value_error(
        "merge",
        "sample ids must differ",
        f"{sample_id} in {one} and {other}",
        "Capture each sample once.",
    )
