"""Errors of log-probabilities that a server returned."""

import reprlib
from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.cache import unknown_suffix as unknown_suffix
from mkd_fast.checks.wording import message, value_error
from mkd_fast.checks.wording import positive as positive

_FUNCTION = "import_logprobs"


def unreadable_row(row: object, tokens: Sequence[str], logprobs: Sequence[str]) -> ValueError:
    """A row that says too little, or in other words."""
    return value_error(
        _FUNCTION,
        "a row must have sample_id, a whole number, "
        f"one of {', '.join(tokens)}, whole numbers, and one of {', '.join(logprobs)}, a list",
        reprlib.repr(row),
        "Rename its fields, and number the samples.",
    )


def more_entries_than_tokens(sample_id: int, num_tokens: int, num_entries: int) -> ValueError:
    """Which token the entries belong to is anybody's guess."""
    return value_error(
        _FUNCTION,
        f"sample {sample_id} must have at most an entry for each of its {num_tokens} tokens",
        str(num_entries),
        "Pass prompt and answer as tokens where the entries are of both.",
    )


def first_token_predicted(sample_id: int) -> ValueError:
    """The mistake that a shift by one makes."""
    return value_error(
        _FUNCTION,
        f"entry 0 of sample {sample_id} must be None, for nothing predicts the first token",
        "log-probabilities",
        "Entry i is what predicted token i: put None before them and leave out the last.",
    )


def unreadable_entry(sample_id: int, entry: object) -> ValueError:
    """An entry in none of the layouts."""
    return value_error(
        _FUNCTION,
        f"the entries of sample {sample_id} must be ids with their log-probabilities",
        reprlib.repr(entry),
        "mkd_fast/teacher/served.py shows the layouts; vLLM's OpenAI routes give ids with "
        "return_tokens_as_token_ids.",
    )


def id_outside_vocabulary(sample_id: int, entry: object, vocab_size: int) -> ValueError:
    """Another tokenizer, or a padded vocabulary."""
    return value_error(
        _FUNCTION,
        f"the ids of sample {sample_id} must be from 0 to {vocab_size - 1}",
        reprlib.repr(entry),
        "Pass the number of columns of the teacher's logits as vocab_size.",
    )


def not_logprobs(sample_id: int, entry: object, mass: float) -> ValueError:
    """Logits, other logarithms, or NaN."""
    return value_error(
        _FUNCTION,
        f"the probabilities at a token of sample {sample_id} must sum to at most 1",
        f"{mass:.3g} of {reprlib.repr(entry)}",
        "Ask the server for natural logarithms of the teacher's own probabilities "
        "(vLLM: --logprobs-mode raw_logprobs).",
    )


def line_not_json(path: Path, line: int) -> ValueError:
    """A file cut short, most likely."""
    return value_error(
        "read_rows", f"{path} must have JSON on every line", f"line {line}", "Mend or remove it."
    )


def not_parquet(path: Path, error: Exception) -> ValueError:
    """Its name says that it is, or it is damaged."""
    return value_error(
        "read_rows",
        f"{path} must be a Parquet file that can be read",
        str(error).splitlines()[0],
        "Write it anew.",
    )


def no_such_file(path: Path) -> FileNotFoundError:
    """A path to nothing."""
    return FileNotFoundError(
        message("read_rows", "a path must lead to a file", f"{path}", "Mend the path.")
    )
