"""The tables of a run: the task's measures for each language, and one line for each model.

Everything shown comes from the rows of two CSV files, `languages.csv` (a row per model and
language) and `summary.csv` (a row per model), so a table made from committed files is the table
that the run printed. The files hold every measure of the task, the tables the first two. Shares
are 0 to 1 in the files and per cent in the tables; a megabyte is 10^6 bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from torch import nn

from mkd_fast.checks import evaluate as checks
from mkd_fast.evaluate.scores import TASKS, MeanScore, Measure, ModelScores, measures_of
from mkd_fast.evaluate.tables import Table, TableRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_VALUE = "—"
_SIZES = ("embedding_parameters", "layer_parameters", "head_parameters", "size_bytes")
CsvRow = Mapping[str, str]


def language_columns(measures: Sequence[Measure]) -> tuple[str, ...]:
    """The columns of languages.csv: the first measure comes with its interval."""
    headline, *others = (measure.name for measure in measures)
    known = ("model", "language", "group", "num_samples")
    return (*known, headline, f"{headline}_low", f"{headline}_high", *others)


def summary_columns(measures: Sequence[Measure]) -> tuple[str, ...]:
    """The columns of summary.csv: means over the seen and over the unseen languages, and sizes."""
    means = (f"{group}_{m.name}" for group in ("seen", "unseen") for m in measures)
    return ("model", *means, *_SIZES, "train_seconds")


def plots_of(measures: Sequence[Measure]) -> dict[str, str]:
    """The plots beside a report: what each shows, by the stem of its file."""
    headline = measures[0]
    return {
        headline.name: f"{_capitalised(headline.title)} by language",
        "loss_curves": "Training losses",
        "size": "Parameters and size on disk",
    }


@dataclass(frozen=True)
class ParameterCounts:
    """How many numbers a model learns, by where they sit."""

    embeddings: int
    layers: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embeddings + self.layers + self.head


@dataclass(frozen=True)
class ModelResult:
    """What the report says of one model.

    Attributes:
        scores: Its scores; `scores.model` is the name that tables and plots show.
        parameters: Its parameters.
        size_bytes: Size on disk of its folder, weights and tokenizer.
        train_seconds: Time of its training; None where it was not trained in this run.
    """

    scores: ModelScores
    parameters: ParameterCounts
    size_bytes: int
    train_seconds: float | None


def count_parameters(model: PreTrainedModel) -> ParameterCounts:
    """Parameters of a `transformers` model, tied ones once.

    Embeddings are the tables (word, position, type); layers are the rest of the base model; the
    head is what stands outside the base model.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    in_embeddings = {weight for table in tables for weight in table.parameters()}
    in_layers = set(model.base_model.parameters()) - in_embeddings
    in_head = set(model.parameters()) - in_embeddings - in_layers
    embeddings, layers, head = (
        sum(weight.numel() for weight in weights) for weights in (in_embeddings, in_layers, in_head)
    )
    return ParameterCounts(embeddings, layers, head)


def folder_size_bytes(folder: Path) -> int:
    """Bytes of all files below a model folder, its card (which tells them) excepted."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return sum(path.stat().st_size for path in files)


def language_rows(results: Sequence[ModelResult]) -> list[dict[str, str]]:
    """The rows of languages.csv: models in the order given, seen languages first.

    Raises:
        ValueError: Two models share a name.
    """
    columns = language_columns(_measures(results))
    rows = []
    for scores in _named_apart(results):
        for group, languages in (("seen", scores.seen), ("unseen", scores.unseen)):
            for score in languages:
                headline, *others = score.values.values()
                known = (scores.model, score.language, group, str(score.num_samples))
                cells = (*known, *map(_number, (headline, *score.interval, *others)))
                rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def summary_rows(results: Sequence[ModelResult]) -> list[dict[str, str]]:
    """The rows of summary.csv: one a model, in the order given; an unknown value is empty.

    Raises:
        ValueError: Two models share a name.
    """
    measures = _measures(results)
    columns = summary_columns(measures)
    rows = []
    for scores, result in zip(_named_apart(results), results, strict=True):
        counts, seconds = result.parameters, result.train_seconds
        cells = (
            scores.model,
            *_mean_numbers(scores.seen_mean, measures),
            *_mean_numbers(scores.unseen_mean, measures),
            *map(str, (counts.embeddings, counts.layers, counts.head, result.size_bytes)),
            "" if seconds is None else f"{seconds:.1f}",
        )
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def language_table(languages: Sequence[CsvRow], summary: Sequence[CsvRow] = ()) -> Table:
    """A row for each language, grouped, with means; a column for each model.

    Args:
        languages: Rows of languages.csv.
        summary: Rows of summary.csv: adds the parameters and the size of each model.
    """
    models = list(dict.fromkeys(row["model"] for row in languages))
    sections = [
        _group_section(title, [row for row in languages if row["group"] == group], models)
        for group, title in (("seen", "seen languages"), ("unseen", "unseen languages"))
        if any(row["group"] == group for row in languages)
    ]
    if summary:
        of_model = {row["model"]: row for row in summary}
        sections.append(
            tuple(
                TableRow((title, "", *(show(of_model[model]) for model in models)))
                for title, show in (("params, M", _millions), ("disk, MB", _megabytes))
            )
        )
    caption = _caption(_shown(languages[0]))
    return Table(caption, ("language", "samples", *models), tuple(sections))


def summary_table(summary: Sequence[CsvRow]) -> Table:
    """A row for each model: means over languages, parameters, size and training time."""
    header = ("model", "seen languages", "unseen languages", "params, M", "disk, MB")
    shown = _shown({name.removeprefix("seen_"): value for name, value in summary[0].items()})
    rows = tuple(
        TableRow(
            (
                row["model"],
                _score_cell(shown, row, "seen_"),
                _score_cell(shown, row, "unseen_"),
                _millions(row),
                _megabytes(row),
                f"{float(row['train_seconds']):.0f}" if row["train_seconds"] else _NO_VALUE,
            )
        )
        for row in summary
    )
    caption = f"{_caption(shown)}: means over languages, each language counted once"
    return Table(caption, (*header, "train, s"), (rows,))


def results_table(results: Sequence[ModelResult]) -> Table:
    """The table at the end of a run: languages, means, parameters and size."""
    return language_table(language_rows(results), summary_rows(results))


def write_report(results: Sequence[ModelResult], folder: Path) -> None:
    """Writes languages.csv, summary.csv and report.md into an existing folder.

    The Markdown holds both tables and shows what `write_plots` puts beside it.
    """
    languages, summary = language_rows(results), summary_rows(results)
    measures = _measures(results)
    _write_csv(folder / "languages.csv", language_columns(measures), languages)
    _write_csv(folder / "summary.csv", summary_columns(measures), summary)
    tables = (summary_table(summary), language_table(languages, summary))
    plots = "".join(f"\n![{what}]({stem}.png)\n" for stem, what in plots_of(measures).items())
    markdown = "\n".join(table.to_markdown() for table in tables) + plots
    (folder / "report.md").write_text(markdown, encoding="utf-8")


def markdown_from_csv(path: Path) -> str:
    """The Markdown table of a languages.csv or summary.csv that `write_report` wrote.

    Raises:
        ValueError: The file has other columns.
        OSError: The file cannot be read.
    """
    tables: dict[tuple[str, ...], Callable[[list[dict[str, str]]], Table]] = {
        columns_of(measures): table
        for measures in TASKS
        for columns_of, table in (
            (language_columns, language_table),
            (summary_columns, summary_table),
        )
    }
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if columns not in tables:
            raise checks.not_a_report_csv(path, list(columns))
        return tables[columns](list(reader)).to_markdown()


def _named_apart(results: Sequence[ModelResult]) -> list[ModelScores]:
    names = [result.scores.model for result in results]
    if len(set(names)) < len(names):
        raise checks.models_named_alike(names)
    return [result.scores for result in results]


def _measures(results: Sequence[ModelResult]) -> tuple[Measure, ...]:
    return results[0].scores.measures


def _group_section(
    title: str, rows: Sequence[CsvRow], models: Sequence[str]
) -> tuple[TableRow, ...]:
    languages = list(dict.fromkeys(row["language"] for row in rows))
    found = {(row["model"], row["language"]): row for row in rows}
    shown = _shown(rows[0])
    num_samples = {row["language"]: row["num_samples"] for row in rows}
    lines = [TableRow((title, *("" for _ in range(len(models) + 1))), strong=True)]
    for language in languages:
        of_models = (found.get((model, language)) for model in models)
        cells = (_score_cell(shown, row) if row else _NO_VALUE for row in of_models)
        lines.append(TableRow((language, num_samples[language], *cells)))
    means = (_mean_cell([row for row in rows if row["model"] == model]) for model in models)
    lines.append(TableRow((f"mean of {len(languages)}", "", *means), strong=True))
    return tuple(lines)


def _mean_cell(rows: Sequence[CsvRow]) -> str:
    if not rows:
        return _NO_VALUE
    shown = _shown(rows[0])
    return _score_cell(shown, {m.name: str(fmean(float(r[m.name]) for r in rows)) for m in shown})


def _mean_numbers(mean: MeanScore | None, measures: Sequence[Measure]) -> Iterable[str]:
    return ("" if mean is None else _number(mean.values[m.name]) for m in measures)


def _number(value: float) -> str:
    return f"{value:.6f}"


def _shown(row: CsvRow) -> tuple[Measure, ...]:
    """The measures that tables show of those in a row."""
    return measures_of(row)[:2]


def _caption(shown: Sequence[Measure]) -> str:
    titles = " / ".join(measure.title for measure in shown)
    return _capitalised(titles) + ", %" * shown[0].is_share


def _capitalised(title: str) -> str:
    return title[0].upper() + title[1:]


def _score_cell(shown: Sequence[Measure], row: CsvRow, group: str = "") -> str:
    values = [row[group + measure.name] for measure in shown]
    if not all(values):
        return _NO_VALUE
    return " / ".join(
        f"{100 * float(value):.1f}" if measure.is_share else f"{float(value):.3f}"
        for measure, value in zip(shown, values, strict=True)
    )


def _millions(row: CsvRow) -> str:
    return f"{sum(int(row[part]) for part in _SIZES[:3]) / 1e6:.1f}"


def _megabytes(row: CsvRow) -> str:
    return f"{int(row['size_bytes']) / 1e6:.1f}"


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[CsvRow]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
