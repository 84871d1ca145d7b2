"""Errors of the data room."""

from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.wording import message, nearest, runtime_error, type_error, value_error
from mkd_fast.checks.wording import not_negative as not_negative
from mkd_fast.checks.wording import positive as positive


def missing_text_file(path: Path) -> FileNotFoundError:
    """The path leads nowhere."""
    return FileNotFoundError(
        message("load_text", "source must be a file", f"{path}, which does not exist", "Mend it.")
    )


def empty_text_file(place: object) -> ValueError:
    """There is nothing to train on or to evaluate."""
    return value_error(
        "load_text", f"{place} must have at least one row", "none", "Was it written to the end?"
    )


def unknown_text_suffix(path: object, known: Sequence[str]) -> ValueError:
    """The reader is chosen by the suffix."""
    return value_error(
        "load_text", f"a file's name must end in {', '.join(known)}", str(path), "Rename the file."
    )


def unreadable_text_file(path: Path, error: Exception) -> ValueError:
    """The file is not what its suffix says."""
    detail = str(error).splitlines()[0]
    return value_error(
        "load_text", f"{path} must be valid {path.suffix[1:]}", repr(detail), "Mend that row."
    )


def not_utf8(path: Path, line: int, byte: int, value: int) -> ValueError:
    """A byte that no UTF-8 text has at this place."""
    return value_error(
        "load_text",
        f"{path} must be UTF-8",
        f"byte 0x{value:02x} in line {line} at byte {byte} of the line",
        "Convert the file, e.g. with iconv -t utf-8.",
    )


def parquet_not_utf8(place: object, column: str) -> ValueError:
    """A text column of a Parquet file holds bytes that are no text."""
    return value_error(
        "load_text",
        f"column {column!r} of {place} must be UTF-8",
        "other bytes",
        "Write it from decoded text.",
    )


def missing_column(place: object, column: str, found: Sequence[str]) -> ValueError:
    """One of text, label, language is not there."""
    return value_error(
        "load_text",
        f"{place} must have a column {column!r}",
        f"the columns {', '.join(map(repr, found))}",
        "Rename yours, or name it in a HubSource.",
    )


def column_not_text(place: object, column: str, kind: object) -> TypeError:
    """Texts and languages are strings, labels strings or integers."""
    also = " or integers" if column == "label" else ""
    return type_error(
        "load_text",
        f"column {column!r} of {place} must hold strings{also}",
        f"{kind}",
        "Convert the column.",
    )


def empty_cell(place: object, column: str, row: int) -> ValueError:
    """Nothing to tokenise, or to count by."""
    return value_error(
        "load_text",
        f"column {column!r} of {place} must not be empty",
        f"nothing in row {row}",
        "Remove or fill in the row.",
    )


def unknown_label(place: object, row: int, label: str, known: Sequence[str]) -> ValueError:
    """Evaluation text uses a label that training did not."""
    return value_error(
        "load_text",
        f"labels of {place} must be among the {len(known)} known ones",
        f"{label!r} in row {row}",
        nearest(label, known),
    )


def column_not_lists(place: object, column: str, kind: object) -> TypeError:
    """Words and their tags are lists of strings."""
    return type_error(
        "load_tagged",
        f"column {column!r} of {place} must hold lists of strings",
        f"{kind}",
        "Write a list a sentence, of words or of the names of their tags.",
    )


def tags_and_words_differ(place: object, row: int, num_tags: int, num_words: int) -> ValueError:
    """A word without a tag, or a tag without a word."""
    return value_error(
        "load_tagged",
        f"every word of {place} must have a tag",
        f"{num_tags} tags for {num_words} words in row {row}",
        "Mend or remove the row.",
    )


def not_iob2(place: object, row: int, tag: str) -> ValueError:
    """A tag of another scheme."""
    return value_error(
        "load_tagged",
        f"tags of {place} must be IOB2: O, B-TYPE or I-TYPE",
        f"{tag!r} in row {row}",
        "Convert them: an entity begins with B- and goes on with I-.",
    )


def no_entities(place: object) -> ValueError:
    """Training text that has nothing to learn."""
    return value_error(
        "load_tagged",
        f"training text in {place} must have an entity of a type that is asked for",
        "none",
        "Correct data.entity_types, or tag the text.",
    )


def unknown_tag(place: object, row: int, tag: str, known: Sequence[str]) -> ValueError:
    """Text that is tested has a tag that training does not: no model could ever find it."""
    types = sorted({name[2:] for name in known if name != "O"})
    return value_error(
        "load_tagged",
        f"tags of {place} must be of the training text's types, {', '.join(types)}",
        f"{tag!r} in row {row}",
        f"Set data.entity_types = {types}, and words of other types count as O.",
    )


def language_with_one_example(place: object, language: str) -> ValueError:
    """A language that can be neither split nor learnt."""
    return value_error(
        "load_text",
        f"a training language in {place} must have at least two examples",
        f"one for {language!r}",
        "Add examples or leave the language out.",
    )


def dataset_not_found(name: str, error: Exception) -> FileNotFoundError:
    """No such file, and no such dataset within reach."""
    detail = str(error).splitlines()[0]
    return FileNotFoundError(
        message(
            "load_text",
            f"source must be a .jsonl, .csv or .parquet file or a dataset that can be reached, "
            f"as {name!r} should be",
            repr(detail),
            "Check the name, or go online.",
        )
    )


def bad_shares(shares: Sequence[float]) -> ValueError:
    """Something must be left to train on."""
    return value_error(
        "split_names",
        "shares must be zero or positive, together below 1",
        f"{list(shares)}",
        "Pass e.g. [0.25, 0.1].",
    )


def test_sentence_in_training(sentence: str) -> ValueError:
    """A test that measures memory."""
    return value_error(
        "check_no_overlap",
        "no test sentence may occur in training",
        f"{sentence!r} in both",
        "Split by group, or remove it from one.",
    )


def no_room_for_tokens(max_length: int, num_special: int) -> ValueError:
    """Special tokens would fill a sample."""
    return value_error(
        "tokenise",
        f"max_length must exceed the {num_special} special tokens",
        f"{max_length}",
        "Pass e.g. 64.",
    )


def no_pad_token(name: str) -> ValueError:
    """Samples of a batch are padded to the same length."""
    return value_error(
        "tokenise",
        "the tokenizer must have a pad token",
        f"{name!r} without one",
        "Set tokenizer.pad_token first.",
    )


def no_mask_token(name: str) -> ValueError:
    """Nothing to put in place of what is to be found."""
    return value_error(
        "mask_text",
        "the tokenizer must have a mask token",
        f"{name!r} without one",
        "Name a masked language model.",
    )


def one_batch_limit(function: str, batch_size: object, max_tokens: object) -> ValueError:
    """Two ways to limit a batch, one at a time."""
    return value_error(
        function,
        "one of batch_size and max_tokens must be given",
        f"batch_size={batch_size} and max_tokens={max_tokens}",
        "Leave out one.",
    )


def batch_size_below_one(function: str, batch_size: int) -> ValueError:
    """A batch has a row."""
    return value_error(function, "batch_size must be at least 1", f"{batch_size}", "Pass e.g. 32.")


def max_tokens_too_small(function: str, max_tokens: int, longest: int) -> ValueError:
    """The longest row must fit into a batch of its own."""
    return value_error(
        function,
        f"max_tokens must be at least the longest row's {longest} and 1",
        f"{max_tokens}",
        "Raise it, or lower max_length.",
    )


def missing_intents_extra(package: str) -> RuntimeError:
    """The home-intent task needs packages that the rest does without."""
    return runtime_error(
        "home_intents",
        f"{package} must be installed",
        "an ImportError",
        "Run: pip install 'mkd_fast[intents]'",
    )


def no_words_for_slot(locale: str, slot: str, template: str) -> ValueError:
    """A slot that would be left open."""
    return value_error(
        "LocaleTemplates",
        f"every slot of {template} must have words in {locale}",
        f"none for {slot!r}",
        "Add them to home_words.toml.",
    )


def unknown_locale(locales: Sequence[str], known: Sequence[str]) -> ValueError:
    """Slots can only be filled with words that are there."""
    return value_error(
        "HomeIntentOptions",
        f"seen and unseen must be among {', '.join(known)}",
        ", ".join(locales),
        "Add the words of a locale to home_words.toml.",
    )


def no_seen_language() -> ValueError:
    """There would be nothing to train on."""
    return value_error("HomeIntentOptions", "seen must name a language", "none", "Pass ('en',).")


def locale_seen_and_unseen(locales: Sequence[str]) -> ValueError:
    """An unseen language is one that training does not see."""
    return value_error(
        "HomeIntentOptions",
        "a language must be either seen or unseen",
        f"{', '.join(locales)} twice",
        "Name it once.",
    )


def no_common_intents(minimum: int) -> ValueError:
    """The label set is what all languages have enough utterances of."""
    return value_error(
        "build",
        f"at least two intents must have {minimum} utterances in every language",
        "fewer",
        "Lower min_utterances or choose other languages.",
    )


def unknown_text_language(language: str, known: Sequence[str]) -> ValueError:
    """The package of the text has no such translation."""
    return value_error(
        "running_text",
        f"languages must be among {', '.join(known)}",
        repr(language),
        nearest(language, known),
    )
