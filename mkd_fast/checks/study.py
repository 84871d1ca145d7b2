"""Errors of the room that runs studies."""

from collections.abc import Sequence
from pathlib import Path

from mkd_fast.checks.wording import message, runtime_error, value_error
from mkd_fast.checks.wording import not_negative as not_negative
from mkd_fast.checks.wording import one_of as one_of
from mkd_fast.checks.wording import positive as positive


def not_distinct(place: str, key: str, values: Sequence[object]) -> ValueError:
    """A side of the grid without values, or with one twice."""
    return value_error(
        place, f"{key} must be different values, at least one", f"{list(values)}", "Name each once."
    )


def depth_twice(place: str, depth: str, depths: Sequence[str]) -> ValueError:
    """The main grid's depth is compared with others."""
    return value_error(
        place,
        f"depths must be different choices other than depth, {depth!r}",
        f"{list(depths)}",
        "Name each once.",
    )


def bad_fraction(place: str, fraction: float) -> ValueError:
    """A part of the text that is nothing, or more than all."""
    return value_error(place, "fractions must lie in (0, 1]", f"{fraction!r}", "Write e.g. 0.1.")


def teacher_not_pretrained() -> ValueError:
    """What is compared is a model before and after fine-tuning."""
    return value_error(
        "study",
        "teacher.model must be a pretrained model, which the study fine-tunes",
        "teacher.finetuned = true",
        "Name the model that your classifier was fine-tuned from, and leave the key out.",
    )


def objectives_of_classifiers(kind: str, objectives: Sequence[str]) -> ValueError:
    """A head that is the embeddings, and is trained with them, does not stay the teacher's."""
    return value_error(
        "recipe: [study]",
        f"objectives and depth_objective must be among labels, kl and kl_hidden where task.kind ="
        f' "{kind}"',
        ", ".join(objectives),
        "Leave out logit_mse, which is for small label sets, and hidden, which teaches no head.",
    )


def no_study_of_chats() -> ValueError:
    """Languages are compared by the sentences that they have."""
    return value_error(
        "study",
        "a language model's text must be running text, with the columns text and language",
        "chats",
        "Distil chats one by one with mkd-fast distill.",
    )


def language_without_tokens(languages: Sequence[str]) -> ValueError:
    """Nothing can be scored in a language none of whose tokens a student can say."""
    return value_error(
        "study",
        "the students' vocabulary must have some of the tokens to be said in each language",
        f"none in {', '.join(languages)}",
        'Name text in them in data.vocabulary_text, or set study.vocabulary = "all".',
    )


def no_dev_text() -> ValueError:
    """Learning rates are chosen on text that is neither trained on nor tested."""
    return value_error(
        "study",
        "data.dev must name the development text",
        "none",
        "Name a file like data.train, or a split of the hub dataset.",
    )


def frozen_students(freeze: Sequence[str]) -> ValueError:
    """Random weights that stay as they are would be no student."""
    return value_error(
        "recipe: [train]",
        "train.freeze must be empty in a study",
        f"{list(freeze)}",
        "Leave it out.",
    )


def no_hidden_weight() -> ValueError:
    """An objective that would be the same as another."""
    return value_error(
        "recipe: [loss]",
        'hidden_weight must be positive where study.objectives has "kl_hidden"',
        "0.0",
        "Write e.g. hidden_weight = 1.0.",
    )


def folder_of_other_files(folder: Path, file: str) -> ValueError:
    """Somebody's files, that a study might overwrite."""
    return value_error(
        "study",
        "run.folder must be new, empty or a study's own",
        f"{folder} with {file!r} and no study.json",
        "Name another folder.",
    )


def study_is_running(folder: Path) -> RuntimeError:
    """Two processes would train the same cells."""
    return runtime_error(
        "study",
        f"one process at a time may run the study in {folder}",
        "another one at work",
        "Wait for it, or pass --set run.folder=...",
    )


def no_rate_works(start: str, objective: str, rates: Sequence[float]) -> ValueError:
    """Every probe of an arm diverged."""
    return value_error(
        "study",
        f"one of the rates must train {start!r} with {objective!r}",
        f"losses that were not finite with all of {', '.join(map(repr, rates))}",
        "Add lower ones to study.rates.",
    )


def not_a_duration(text: str) -> ValueError:
    """Time with its unit."""
    return value_error(
        "study", "--budget must be a time with its unit", repr(text), 'Write e.g. "90min" or "2h".'
    )


def row_not_read(path: Path, line: int, error: Exception) -> ValueError:
    """A line that no study wrote."""
    return value_error(
        "study",
        f"{path} must hold one JSON object a line",
        f"line {line}: {error}",
        "Remove that line; its cell is trained again.",
    )


def logits_not_finite() -> FloatingPointError:
    """A student that training has left useless."""
    return FloatingPointError(
        message(
            "study",
            "a student's logits must be finite",
            "NaN or infinity",
            "Lower the learning rates of study.rates.",
        )
    )


def no_finished_cells(folder: Path) -> ValueError:
    """Nothing to report on."""
    return value_error(
        "study report",
        "the study's folder must hold a finished cell",
        f"none in {folder}",
        "Run `mkd-fast study RECIPE` first; it goes on where it was stopped.",
    )


def malformed_study(folder: Path, error: Exception) -> ValueError:
    """Rows of another version, or of something else."""
    return value_error(
        "study report",
        "rows must be those that `mkd-fast study` writes",
        f"{type(error).__name__} {error} in {folder}",
        "Take a folder that was written by this version, or run the study again in a new one.",
    )


def fed_otherwise() -> ValueError:
    """Cells see the same rows in the same steps."""
    return value_error(
        "study",
        "students take each row once an epoch, beside others of about the same length",
        "train.packing or data.language_temperature",
        "Leave them out.",
    )
