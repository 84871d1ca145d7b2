"""Labelled text: what it is, and how users' own files and hub datasets become it.

Files are JSONL, CSV or Parquet with the columns ``text``, ``label`` and ``language``. Without
``label_names`` the text is taken for training text: it defines the label set, and each of its
languages needs two examples. With ``label_names`` it is evaluated against that set and may use
no other label.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkd_fast.checks import data as checks

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("text", "label", "language")
SUFFIXES = (".jsonl", ".csv", ".parquet")
# One JSON line may be as long as a block of the reader.
_JSON_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class LabelledText:
    """Texts with a label and a language each.

    ``labels`` are indices into ``label_names``. ``groups`` names what must not be torn apart by
    a split (for templates: their ids), one a text.
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

    def select(self, indices: Iterable[int]) -> "LabelledText":
        """Return the rows at ``indices``, in that order, under the same label names."""
        rows = list(indices)
        return LabelledText(
            [self.texts[row] for row in rows],
            [self.labels[row] for row in rows],
            [self.languages[row] for row in rows],
            self.label_names,
            None if self.groups is None else [self.groups[row] for row in rows],
        )


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub, or a local folder that the ``datasets`` library can load.

    MASSIVE, for one: ``HubSource("AmazonScience/massive", "all_1.1", text_column="utt",
    label_column="intent", language_column="locale")``. A dataset in one language names it in
    ``language`` instead of ``language_column``.
    """

    name: str
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    label_column: str = "label"
    language_column: str = "language"
    language: str | None = None


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
    if not isinstance(source, HubSource) and Path(source).suffix not in SUFFIXES:
        if Path(source).is_file():
            raise checks.unknown_text_suffix(source, SUFFIXES)
        source = HubSource(str(source))
    if isinstance(source, HubSource):
        place, table = source.name, _read_hub(source)
    else:
        place, table = str(source), _read_file(Path(source))
    return _labelled(place, table, label_names)


def _read_file(path: Path) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if not path.is_file():
        raise checks.missing_text_file(path)
    if path.stat().st_size == 0:
        raise checks.empty_text_file(path)
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        _check_utf8(path)
        if path.suffix == ".jsonl":
            blocks = pyarrow.json.ReadOptions(block_size=_JSON_BLOCK_BYTES)
            return pyarrow.json.read_json(path, read_options=blocks)
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={"text": pyarrow.string(), "language": pyarrow.string()},
                # Labels that read true and false are names, as any others.
                true_values=[],
                false_values=[],
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise checks.unreadable_text_file(path, error) from error


def _check_utf8(path: Path) -> None:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise checks.not_utf8(path, number, error.start, line[error.start]) from error


def _read_hub(source: HubSource) -> "pyarrow.Table":
    import pyarrow
    from datasets import ClassLabel, load_dataset

    try:
        dataset = load_dataset(source.name, source.config, split=source.split)
    except (FileNotFoundError, ConnectionError) as error:
        raise checks.dataset_not_found(source.name, error) from error
    names = dict(
        zip((source.text_column, source.label_column, source.language_column), COLUMNS, strict=True)
    )
    columns = {names[name]: dataset[name][:] for name in dataset.column_names if name in names}
    feature = dataset.features.get(source.label_column)
    if isinstance(feature, ClassLabel):
        columns["label"] = feature.int2str(columns["label"])
    if source.language is not None:
        columns["language"] = [source.language] * len(dataset)
    return pyarrow.table(columns)


def _labelled(
    place: str, table: "pyarrow.Table", label_names: Sequence[str] | None
) -> LabelledText:
    for column in COLUMNS:
        if column not in table.column_names:
            raise checks.missing_column(place, column, table.column_names)
    if table.num_rows == 0:
        raise checks.empty_text_file(place)
    texts = _strings(place, table, "text")
    languages = _strings(place, table, "language")
    labels = _label_values(place, table)
    if label_names is None:
        _check_language_counts(place, languages)
        label_names = [str(label) for label in sorted(set(labels))]
    index_of = {name: index for index, name in enumerate(label_names)}
    indices = []
    for row, label in enumerate(labels, start=1):
        if str(label) not in index_of:
            raise checks.unknown_label(place, row, str(label), label_names)
        indices.append(index_of[str(label)])
    return LabelledText(texts, indices, languages, tuple(label_names))


def _strings(place: str, table: "pyarrow.Table", column: str) -> list[str]:
    import pyarrow

    kind = table.schema.field(column).type
    # A column of nothing but null is empty, whatever its type.
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.null()):
        raise checks.column_not_text(place, column, kind)
    try:
        values: list[str] = table[column].to_pylist()
    except UnicodeDecodeError as error:
        raise checks.parquet_not_utf8(place, column) from error
    for row, value in enumerate(values, start=1):
        if not (value or "").strip():
            raise checks.empty_cell(place, column, row)
    return values


def _label_values(place: str, table: "pyarrow.Table") -> list[Any]:
    import pyarrow

    if not pyarrow.types.is_integer(table.schema.field("label").type):
        return _strings(place, table, "label")
    if table["label"].null_count:
        raise checks.empty_cell(place, "label", table["label"].to_pylist().index(None) + 1)
    labels: list[Any] = table["label"].to_pylist()
    return labels


def _check_language_counts(place: str, languages: list[str]) -> None:
    for language, count in sorted(Counter(languages).items()):
        if count < 2:
            raise checks.language_with_one_example(place, language)
