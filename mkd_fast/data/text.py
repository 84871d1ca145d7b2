"""Labelled text: what it is, and how users' own files and hub datasets become it.

Files are JSONL, CSV or Parquet with the columns ``text``, ``label`` and ``language``; a column
``group``, where there is one, names what a row is not independent of. Without
``label_names`` the text is taken for training text: it defines the label set, and each of its
languages needs two examples. With ``label_names`` it is evaluated against that set and may use
no other label.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from mkd_fast.checks import data as checks
from mkd_fast.data.tables import HubSource, check_language_counts, read_table, strings

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("text", "label", "language")


class Text(Protocol):
    """What a run trains on or tests, whatever it is labelled with."""

    @property
    def texts(self) -> Sequence[str]:
        """What a person reads, a sample each."""
        ...

    @property
    def languages(self) -> list[str]:
        """Of each sample."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes, in the order of a model's logits."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells it apart from any other text, of its kind or another."""
        ...

    @property
    def languages_present(self) -> tuple[str, ...]:
        """The languages, each once, sorted."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def rows(self) -> Iterator[dict[str, Any]]:
        """The samples as rows that ``json`` writes and its reader reads."""
        ...

    def select(self, indices: Iterable[int]) -> Self:
        """The samples at ``indices``, in that order."""
        ...


@dataclass(frozen=True)
class LabelledText:
    """Texts with a label and a language each.

    ``labels`` are indices into ``label_names``. ``groups`` names what must not be torn apart by
    a split (for templates: their ids), one a text: rows of a group are not independent.
    """

    texts: list[str]
    labels: list[int]
    languages: list[str]
    label_names: tuple[str, ...]
    groups: list[str] | None = None

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of texts, labels, languages and label names, in their order."""
        content = (self.texts, self.labels, self.languages, self.label_names)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def languages_present(self) -> tuple[str, ...]:
        """The languages, each once, sorted."""
        return tuple(sorted(set(self.languages)))

    @property
    def strata(self) -> list[int]:
        """What a part should hold as often as the whole, besides languages: the label of each."""
        return self.labels

    def rows(self) -> Iterator[dict[str, Any]]:
        """The texts as rows that ``json`` writes and ``load_text`` reads."""
        groups = [{}] * len(self) if self.groups is None else [{"group": g} for g in self.groups]
        columns = (self.texts, self.labels, self.languages, groups)
        for text, label, language, group in zip(*columns, strict=True):
            yield {"text": text, "label": self.label_names[label], "language": language, **group}

    def select(self, indices: Iterable[int]) -> Self:
        """Return the rows at ``indices``, in that order, under the same label names."""
        rows = list(indices)
        return type(self)(
            [self.texts[row] for row in rows],
            [self.labels[row] for row in rows],
            [self.languages[row] for row in rows],
            self.label_names,
            None if self.groups is None else [self.groups[row] for row in rows],
        )


def load_text(
    source: str | Path | HubSource, *, label_names: Sequence[str] | None = None
) -> LabelledText:
    """Read labelled text from a file or a dataset.

    Args:
        source: a path that ends in ``.jsonl``, ``.csv`` or ``.parquet``, a ``HubSource``, or the
            bare name of a dataset with the columns of the files.
        label_names: the known labels; None derives them from the text, sorted (numbers by value).

    Raises:
        FileNotFoundError: no such file or dataset.
        ValueError: an empty file, one that is not UTF-8 or cannot be parsed, a missing column, an
            empty text or language, an unknown label, or a training language with one example.
        TypeError: a column of another type than text (labels: text or integers).
    """
    place, table = read_table(source, COLUMNS)
    return _labelled(place, table, label_names)


def _labelled(
    place: str, table: "pyarrow.Table", label_names: Sequence[str] | None
) -> LabelledText:
    texts = strings(place, table, "text")
    languages = strings(place, table, "language")
    labels = _label_values(place, table)
    if label_names is None:
        check_language_counts(place, languages)
        label_names = [str(label) for label in sorted(set(labels))]
    index_of = {name: index for index, name in enumerate(label_names)}
    indices = []
    for row, label in enumerate(labels, start=1):
        if str(label) not in index_of:
            raise checks.unknown_label(place, row, str(label), label_names)
        indices.append(index_of[str(label)])
    groups = strings(place, table, "group") if "group" in table.column_names else None
    return LabelledText(texts, indices, languages, tuple(label_names), groups)


def _label_values(place: str, table: "pyarrow.Table") -> list[Any]:
    import pyarrow

    if not pyarrow.types.is_integer(table.schema.field("label").type):
        return strings(place, table, "label")
    if table["label"].null_count:
        raise checks.empty_cell(place, "label", table["label"].to_pylist().index(None) + 1)
    labels: list[Any] = table["label"].to_pylist()
    return labels
