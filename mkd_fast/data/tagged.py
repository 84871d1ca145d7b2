"""Text whose words are tagged, as for named entities, in IOB2: O, B-TYPE, I-TYPE.

Files are JSONL or Parquet with the columns ``tokens`` (a list of words), ``tags`` (as many names)
and ``language``. An entity begins with B- and goes on with I- of the same type. An I- that
continues no entity of its type is kept as it is, but in strict IOB2 it belongs to none.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from mkd_fast.checks import data as checks
from mkd_fast.data.tables import HubSource, check_language_counts, read_table, strings

COLUMNS = ("tokens", "tags", "language")
SUFFIXES = (".jsonl", ".parquet")
OUTSIDE = "O"


@dataclass(frozen=True)
class TaggedText:
    """Sentences of words with a tag each, and a language a sentence.

    ``tags`` are indices into ``label_names``: "O", then B- and I- of every type.
    ``num_other_types`` counts words that were read as "O" because their type was not asked for.
    """

    sentences: list[list[str]]
    tags: list[list[int]]
    languages: list[str]
    label_names: tuple[str, ...]
    num_other_types: int = field(default=0, compare=False)

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.sentences)

    @property
    def texts(self) -> list[str]:
        """The words of each sentence with spaces between them."""
        return [" ".join(words) for words in self.sentences]

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of words, tags, languages and tag names, in their order."""
        content = ("tagged", self.sentences, self.tags, self.languages, self.label_names)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def strata(self) -> list[int]:
        """What a part should hold as often as the whole: 1 for a sentence with an entity, or 0."""
        outside = self.label_names.index(OUTSIDE)
        return [int(any(tag != outside for tag in tags)) for tags in self.tags]

    @property
    def groups(self) -> None:
        """Nothing is known: each sentence stands for itself."""

    @property
    def languages_present(self) -> tuple[str, ...]:
        """The languages, each once, sorted."""
        return tuple(sorted(set(self.languages)))

    @cached_property
    def tag_rows(self) -> list[list[str]]:
        """The names of the tags of each sentence."""
        return [[self.label_names[tag] for tag in tags] for tags in self.tags]

    @property
    def num_stray(self) -> int:
        """I- tags that continue no entity of their type: strict IOB2 takes them for none."""
        return sum(
            tag.startswith("I-") and before[1:] != tag[1:]
            for tags in self.tag_rows
            for before, tag in pairwise([OUTSIDE, *tags])
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The sentences as rows that ``json`` writes and ``load_tagged`` reads."""
        for words, tags, language in zip(
            self.sentences, self.tag_rows, self.languages, strict=True
        ):
            yield {"tokens": words, "tags": tags, "language": language}

    def select(self, indices: Iterable[int]) -> Self:
        """Return the sentences at ``indices``, in that order, under the same tag names."""
        rows = list(indices)
        return type(self)(
            [self.sentences[row] for row in rows],
            [self.tags[row] for row in rows],
            [self.languages[row] for row in rows],
            self.label_names,
        )


def load_tagged(
    source: str | Path | HubSource,
    *,
    label_names: Sequence[str] | None = None,
    entity_types: Collection[str] = (),
) -> TaggedText:
    """Read tagged text from a file or a dataset.

    Args:
        source: a path that ends in ``.jsonl`` or ``.parquet``, a ``HubSource``, or the bare name
            of a dataset with the columns of the files. A dataset's class labels go by their names.
        label_names: the known tags; None derives them from the text: "O", and B- and I- of every
            type that occurs, sorted.
        entity_types: the types that count; a word of any other is read as "O". None named: all.

    Raises:
        FileNotFoundError: no such file or dataset.
        ValueError: what ``read_table`` refuses, an empty sentence, another number of tags than of
            words, a tag that is not IOB2 or not known, training text without an entity, or with one
            sentence in a language.
        TypeError: words or tags that are not lists of text.
    """
    place, table = read_table(source, COLUMNS, SUFFIXES)
    languages = strings(place, table, "language")
    sentences, tag_rows = (_lists(place, table, column) for column in COLUMNS[:2])
    for row, (words, tags) in enumerate(zip(sentences, tag_rows, strict=True), start=1):
        if len(words) != len(tags):
            raise checks.tags_and_words_differ(place, row, len(tags), len(words))
        for tag in tags:
            if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and tag[2:]):
                raise checks.not_iob2(place, row, tag)
    tag_rows, num_other_types = _restricted(tag_rows, entity_types)
    if label_names is None:
        check_language_counts(place, languages)
        types = sorted({tag[2:] for tags in tag_rows for tag in tags if tag != OUTSIDE})
        if not types:
            raise checks.no_entities(place)
        label_names = [OUTSIDE, *(prefix + name for name in types for prefix in ("B-", "I-"))]
    index_of = {name: index for index, name in enumerate(label_names)}
    for row, tags in enumerate(tag_rows, start=1):
        if unknown := [tag for tag in tags if tag not in index_of]:
            raise checks.unknown_tag(place, row, unknown[0], label_names)
    numbers = [[index_of[tag] for tag in tags] for tags in tag_rows]
    return TaggedText(sentences, numbers, languages, tuple(label_names), num_other_types)


def _restricted(
    tag_rows: list[list[str]], entity_types: Collection[str]
) -> tuple[list[list[str]], int]:
    """The tags with "O" for those of other types, and how many these were."""
    if not entity_types:
        return tag_rows, 0
    kept = [[tag if tag[2:] in entity_types else OUTSIDE for tag in tags] for tags in tag_rows]
    pairs = zip(tag_rows, kept, strict=True)
    num_other = sum(a != b for row in pairs for a, b in zip(*row, strict=True))
    return kept, num_other


def _lists(place: str, table: Any, column: str) -> list[list[str]]:
    """A column of lists of text, none of them empty and nothing missing in them."""
    import pyarrow

    kind = table.schema.field(column).type
    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not is_list or kind.value_type not in (pyarrow.string(), pyarrow.large_string()):
        raise checks.column_not_lists(place, column, kind)
    try:
        values: list[list[str]] = table[column].to_pylist()
    except UnicodeDecodeError as error:
        raise checks.parquet_not_utf8(place, column) from error
    for row, value in enumerate(values, start=1):
        if not value or None in value:
            raise checks.empty_cell(place, column, row)
    return values
