"""Tables of text: users' JSONL, CSV and Parquet files, and hub datasets, column by column."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkd_fast.checks import data as checks

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".csv", ".parquet")
# What BCP 47 calls a language that nobody has said.
UNDETERMINED = "und"
# One JSON line may be as long as a block of the reader.
_JSON_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub, or a local folder that the ``datasets`` library can load.

    MASSIVE, for one: ``HubSource("AmazonScience/massive", "all_1.1", text_column="utt",
    label_column="intent", language_column="locale")``. A dataset in one language names it in
    ``language`` instead of ``language_column``. Where words are tagged, ``text_column`` holds lists
    of words and ``label_column`` those of their tags.
    """

    name: str
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    label_column: str = "label"
    language_column: str = "language"
    language: str | None = None


def read_table(
    source: str | Path | HubSource, columns: Sequence[str], suffixes: Sequence[str] = SUFFIXES
) -> tuple[str, "pyarrow.Table"]:
    """Read a file or a dataset that has these columns and at least one row.

    Args:
        source: a path that ends in one of the suffixes, a ``HubSource``, or the bare name of a
            dataset with the columns of the files.
        columns: of text, label (if there is one) and language, as files call them.
        suffixes: of the files that can hold such columns.

    Returns:
        What errors call it, and the table.

    Raises:
        FileNotFoundError: no such file or dataset.
        ValueError: an empty file, one that is not UTF-8 or cannot be parsed, or a missing column.
    """
    if not isinstance(source, HubSource) and Path(source).suffix not in suffixes:
        if Path(source).is_file():
            raise checks.unknown_text_suffix(source, suffixes)
        source = HubSource(str(source), text_column=columns[0], label_column=columns[1])
    if isinstance(source, HubSource):
        place, table = source.name, _read_hub(source, columns)
    else:
        place, table = str(source), _read_file(Path(source))
    for column in columns:
        if column not in table.column_names:
            raise checks.missing_column(place, column, table.column_names)
    if table.num_rows == 0:
        raise checks.empty_text_file(place)
    return place, table


def column_names(path: str | Path) -> list[str]:
    """The columns of a JSONL or Parquet file, by its first row; none of what is no such file."""
    import pyarrow.parquet

    path = Path(path)
    try:
        if path.suffix == ".parquet" and path.is_file():
            return list(pyarrow.parquet.read_schema(path).names)
        if path.suffix == ".jsonl" and path.is_file():
            with path.open("rb") as file:
                return list(json.loads(file.readline()))
    except ValueError:  # what is wrong is told by whoever reads it
        pass
    return []


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
        if path.suffix == ".txt":
            lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            return pyarrow.table({"text": lines, "language": [UNDETERMINED] * len(lines)})
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


def _read_hub(source: HubSource, wanted: Sequence[str]) -> "pyarrow.Table":
    import pyarrow
    from datasets import ClassLabel, load_dataset

    try:
        dataset = load_dataset(source.name, source.config, split=source.split)
    except (FileNotFoundError, ConnectionError) as error:
        raise checks.dataset_not_found(source.name, error) from error
    text, *label, language = wanted
    names = {source.text_column: text, source.language_column: language}
    if label:
        names[source.label_column] = label[0]
    columns = {names[name]: dataset[name][:] for name in dataset.column_names if name in names}
    feature = dataset.features.get(source.label_column) if label else None
    if isinstance(feature, ClassLabel):
        columns[label[0]] = feature.int2str(columns[label[0]])
    elif isinstance(of_each := getattr(feature, "feature", None), ClassLabel):
        columns[label[0]] = [of_each.int2str(row) for row in columns[label[0]]]
    if source.language is not None:
        columns["language"] = [source.language] * len(dataset)
    return pyarrow.table(columns)


def strings(place: str, table: "pyarrow.Table", column: str) -> list[str]:
    """A column of text, no cell of it empty.

    Raises:
        TypeError: it holds something else.
        ValueError: an empty cell, or text that is not UTF-8.
    """
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


def check_language_counts(place: str, languages: list[str]) -> None:
    """Raise ValueError if a language has one row: it can be neither split nor learnt."""
    for language, count in sorted(Counter(languages).items()):
        if count < 2:
            raise checks.language_with_one_example(place, language)
