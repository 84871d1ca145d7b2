"""Splits that depend on the data and a seed only, and the check that none of it leaks.

Template text must be split by group: a random split by row puts 10-72 % of the test sentences'
skeletons into training. Names are sorted before they are shuffled, so that neither the order of
a set nor that of a file's rows decides.
"""

import random
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from mkd_fast.checks import data as checks

T = TypeVar("T")


def split_names(
    names: Iterable[str], shares: Sequence[float], *, seed: str | int
) -> list[list[str]]:
    """Deal distinct names out to one part per share, and the rest to a last part.

    Args:
        names: repeated names count once.
        shares: each in [0, 1), together below 1. A part gets its share of the names, rounded;
            the first part gets at least one of two names, and the last part always one.
        seed: part of the result, with the names and the shares.

    Returns:
        len(shares) + 1 sorted lists of names.
    """
    if min(shares, default=0) < 0 or sum(shares) >= 1:
        raise checks.bad_shares(shares)
    order = sorted(set(names))
    random.Random(str(seed)).shuffle(order)
    parts = []
    num_names = len(order)
    for number, share in enumerate(shares):
        at_least = 1 if number == 0 and share > 0 else 0
        count = min(max(round(share * num_names), at_least), max(len(order) - 1, 0))
        parts.append(sorted(order[:count]))
        order = order[count:]
    return [*parts, sorted(order)]


def split_by_group(
    groups: Sequence[str], shares: Sequence[float], *, seed: str | int
) -> list[list[int]]:
    """Split rows so that all rows of a group stay together; arguments as ``split_names``.

    Returns:
        len(shares) + 1 ascending lists of row numbers.
    """
    parts = split_names(groups, shares, seed=seed)
    part_of = {name: number for number, names in enumerate(parts) for name in names}
    rows: list[list[int]] = [[] for _ in parts]
    for row, group in enumerate(groups):
        rows[part_of[group]].append(row)
    return rows


def split_by_row(num_rows: int, shares: Sequence[float], *, seed: str | int) -> list[list[int]]:
    """Split rows that have nothing in common; arguments and result as ``split_by_group``."""
    return split_by_group([f"{row:012d}" for row in range(num_rows)], shares, seed=seed)


def balanced_order(labels: Sequence[int], languages: Sequence[str], *, seed: int) -> list[int]:
    """Order rows so that every beginning holds each label, and each language, about equally often.

    The first rows of it are the small parts of a text: each is contained in any larger one.

    Args:
        labels: of each row.
        languages: of each row.
        seed: part of the result, with labels and languages.

    Returns:
        All row numbers. Beginnings hold labels that differ by at most one row in number, and
        likewise the languages of a label, until one of them runs out of rows.
    """
    rng = random.Random(f"balanced/{seed}")
    rows: dict[int, dict[str, list[int]]] = {}
    for row, (label, language) in enumerate(zip(labels, languages, strict=True)):
        rows.setdefault(label, {}).setdefault(language, []).append(row)
    label_order, language_order = sorted(rows), sorted(set(languages))
    rng.shuffle(label_order)
    rng.shuffle(language_order)
    per_label = []
    for number, label in enumerate(label_order):
        turn = number % len(language_order)  # so that the labels begin with different languages
        turns = [*language_order[turn:], *language_order[:turn]]
        of_language = [rows[label].get(language, []) for language in turns]
        for found in of_language:
            rng.shuffle(found)
        per_label.append(in_turns(of_language))
    return in_turns(per_label)


def in_turns(parts: Iterable[Sequence[T]]) -> list[T]:
    """The first of each part, then the second of each, and so on."""
    return [item for layer in zip_longest(*parts) for item in layer if item is not None]


def normalised(text: str) -> str:
    """Fold what does not make a sentence another one: case, Unicode form, outer punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(".,!?;: ")


def check_no_overlap(train: Iterable[str], test: Iterable[str]) -> None:
    """Raise ValueError, naming the first such sentence, if a test sentence is in training.

    Sentences are compared after ``normalised``.
    """
    known = {normalised(text) for text in train}
    for text in test:
        if normalised(text) in known:
            raise checks.test_sentence_in_training(text)
