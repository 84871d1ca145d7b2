"""Errors of recipes: of their text, of a setting, and of settings that do not go together."""

from collections.abc import Iterable
from pathlib import Path

from mkd_fast.checks.wording import is_ours as is_ours
from mkd_fast.checks.wording import (
    nearest,
    os_error_like,
    type_error,
    value_error,
)
from mkd_fast.checks.wording import not_negative as not_negative
from mkd_fast.checks.wording import one_of as one_of
from mkd_fast.checks.wording import positive as positive


def recipe_not_read(path: Path, error: OSError) -> OSError:
    """No file at that path, or none that can be read."""
    return os_error_like(
        error,
        "load",
        f"{path} must be a recipe, a TOML file",
        f"{error.strerror}",
        "See recipes/ for examples.",
    )


def recipe_not_toml(path: Path, error: Exception) -> ValueError:
    """The parser's own words say where."""
    return value_error("load", f"{path} must be TOML", str(error), "Mend that line.")


def override_without_section(name: str) -> ValueError:
    """--set without a dot."""
    return value_error(
        "load", "--set takes section.key=value", repr(name), "E.g. --set train.epochs=3."
    )


def override_without_value(name: str) -> ValueError:
    """--set without an equals sign."""
    return value_error("load", "--set takes section.key=value", repr(name), "Add =value.")


def unknown_section(place: str, name: str, known: Iterable[str]) -> ValueError:
    """A table that a recipe does not have."""
    return value_error(place, "sections must be known", f"[{name}]", nearest(name, known))


def not_a_section(place: str, name: str) -> TypeError:
    """A bare key at the top of a recipe."""
    return type_error(
        place, "keys must stand in a section", f"{name!r} outside of any", "Put it under [section]."
    )


def unknown_key(place: str, key: str, known: Iterable[str]) -> ValueError:
    """A key that the section does not have."""
    return value_error(place, "keys must be known", repr(key), nearest(key, known))


def wrong_type(place: str, key: str, wanted: object, value: object) -> TypeError:
    """A value of another type."""
    name = wanted.__name__ if isinstance(wanted, type) else str(wanted)
    return type_error(place, f"{key} must be {name}", repr(value), 'Write it as TOML: 3, 0.5, "a".')


def source_of_another_task(source: str, kind: str) -> ValueError:
    """Text without the labels that the task is about."""
    for_kinds = {"home_intents": "sequence_classification", "home_text": "masked_lm or causal_lm"}
    return value_error(
        "recipe: [task]",
        f'source = "{source}" is text for {for_kinds[source]}',
        repr(kind),
        'Set data.source = "files" or "hub", and name text of the task.',
    )


def entity_types_without_tags(kind: str) -> ValueError:
    """Types of entities where there are none."""
    return value_error(
        "recipe: [data]",
        'entity_types belong to task.kind = "token_classification"',
        repr(kind),
        "Leave them out.",
    )


def kept_of_another_task(keep: str, kind: str) -> ValueError:
    """Every logit of a vocabulary, or what a classifier has no use for."""
    return value_error(
        "recipe: [capture]",
        f'keep must suit task.kind = "{kind}"',
        repr(keep),
        'A classifier keeps "logits"; a language model "hidden", "topk:64" or "sampled:50".',
    )


def other_ignore_index(found: int, wanted: int) -> ValueError:
    """Labels are made here, and so is what stands for none."""
    return value_error(
        "recipe: [loss]",
        f"loss.ignore_index must be {wanted}, the label of what has none",
        repr(found),
        "Leave it out.",
    )


def seen_and_unseen(languages: Iterable[str]) -> ValueError:
    """An unseen language is one that training does not see."""
    return value_error(
        "recipe: [data]",
        "a language must be either seen or unseen",
        f"{', '.join(sorted(languages))} as both",
        "Name it once.",
    )


def share_out_of_range(place: str, key: str, share: float) -> ValueError:
    """A part of a whole that is less than none or more than all of it."""
    return value_error(place, f"{key} must lie in [0, 1]", repr(share), "Write e.g. 0.1.")


def coverage_out_of_range(coverage: float) -> ValueError:
    """A share of the text's tokens."""
    return value_error(
        "recipe: [student]", "coverage must lie in (0, 1]", repr(coverage), "Write e.g. 0.999."
    )


def states_of_two_widths(hidden_size: int) -> ValueError:
    """Hidden states that are matched to wider ones."""
    return value_error(
        "recipe",
        "student.hidden_size must be left out where hidden states are matched, unit by unit",
        f"{hidden_size}",
        "Set loss.hidden_weight and scratch.hidden_weight to 0.",
    )


def targets_of_other_tokens(coverage: float) -> ValueError:
    """The student splits rare words otherwise than the teacher did."""
    return value_error(
        "recipe",
        "student.coverage must be 1 where words are tagged, tokens masked or states matched, "
        "which goes token by token",
        f"{coverage}",
        "Leave it out, or set loss.hidden_weight and scratch.hidden_weight to 0.",
    )


def temperature_below_one(temperature: float) -> ValueError:
    """It would make large languages larger."""
    return value_error(
        "recipe: [data]",
        "language_temperature must be at least 1",
        repr(temperature),
        "1 takes languages as they are, inf all alike.",
    )


def packed_texts(section: str) -> ValueError:
    """A class is read off where a row begins or ends."""
    return value_error(
        f"recipe: [{section}]",
        'packing must be 0 for task.kind = "sequence_classification", where a row has one class',
        "another",
        "Leave it out.",
    )


def reduction_of_parts(reduction: str) -> ValueError:
    """Processes share a mean, and so do the parts of a step."""
    return value_error(
        "recipe: [loss]",
        'reduction must be "mean" where several processes train, or [train] accumulate is above 1',
        repr(reduction),
        "Leave it out.",
    )


def not_a_size(place: str, key: str, value: str) -> ValueError:
    """Bytes with their unit."""
    return value_error(
        place, f"{key} must be a number of bytes with its unit", repr(value), 'Write e.g. "2GiB".'
    )


def graphs_replayed_within_a_step() -> ValueError:
    """A graph writes where it wrote the time before, which a step may still need."""
    return value_error(
        "recipe: [finetune], [train]",
        'a step must be taken whole, its activations kept, where compile = "cuda_graphs"',
        "accumulate above 1, or checkpointing",
        'Set compile = "layers".',
    )
