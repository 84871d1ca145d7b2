"""Running text: sentences or documents in a language each, and nothing that they are labelled with.

Files are JSONL, CSV or Parquet with the columns ``text`` and ``language``, or ``.txt``, a text a
line, whose language is then "und", undetermined. A column ``group``, where there is one, names what
a row is not independent of.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from mkd_fast.data.tables import SUFFIXES, HubSource, read_table, strings

COLUMNS = ("text", "language")


@dataclass(frozen=True)
class RunningText:
    """Texts with a language each.

    ``groups`` names what a text is a part of, one a text: texts of a group are not independent.
    """

    texts: list[str]
    languages: list[str]
    label_names: tuple[str, ...] = ()
    groups: list[str] | None = None

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of texts and languages, in their order."""
        content = ("running", self.texts, self.languages)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def languages_present(self) -> tuple[str, ...]:
        """The languages, each once, sorted."""
        return tuple(sorted(set(self.languages)))

    @property
    def strata(self) -> list[int]:
        """What a part should hold as often as the whole, besides languages: nothing."""
        return [0] * len(self)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The texts as rows that ``json`` writes and ``load_running`` reads."""
        groups = [{}] * len(self) if self.groups is None else [{"group": g} for g in self.groups]
        for text, language, group in zip(self.texts, self.languages, groups, strict=True):
            yield {"text": text, "language": language, **group}

    def select(self, indices: Iterable[int]) -> Self:
        """Return the texts at ``indices``, in that order."""
        rows = list(indices)
        return type(self)(
            [self.texts[row] for row in rows],
            [self.languages[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )


def load_running(
    source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
) -> RunningText:
    """Read running text from a file or a dataset.

    Args:
        source: a path that ends in ``.txt``, ``.jsonl``, ``.csv`` or ``.parquet``, a
            ``HubSource``, or the bare name of a dataset with the columns of the files.
        label_names: there are none; it is a reader like those of labelled text.

    Raises:
        FileNotFoundError: no such file or dataset.
        ValueError: what ``read_table`` refuses, or an empty text or language.
        TypeError: a column of another type than text.
    """
    place, table = read_table(source, COLUMNS, (*SUFFIXES, ".txt"))
    groups = strings(place, table, "group") if "group" in table.column_names else None
    return RunningText(
        strings(place, table, "text"), strings(place, table, "language"), groups=groups
    )
