import csv
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification

from mkd_fast.evaluate.metrics import wilson_interval
from mkd_fast.evaluate.plots import write_plots
from mkd_fast.evaluate.report import (
    ModelResult,
    ParameterCounts,
    count_parameters,
    folder_size_bytes,
    language_columns,
    language_rows,
    language_table,
    markdown_from_csv,
    results_table,
    summary_columns,
    summary_rows,
    summary_table,
    write_report,
)
from mkd_fast.evaluate.scores import SEQUENCE_CLASSIFICATION
from mkd_fast.evaluate.tables import Table, TableRow

MakeResult = Callable[..., ModelResult]


# --- CSV ---


def test_files_have_their_columns_and_a_row_for_each_case(
    four_results: list[ModelResult], tmp_path: Path
) -> None:
    write_report(four_results, tmp_path)
    with (tmp_path / "languages.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == language_columns(SEQUENCE_CLASSIFICATION)
    assert len(rows) == 4 * 14
    low, high = wilson_interval(0.86, 200)
    assert rows[0] == [
        *("teacher", "en", "seen", "200", "0.860000"),
        *(f"{low:.6f}", f"{high:.6f}", "0.430000"),
    ]
    with (tmp_path / "summary.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == summary_columns(SEQUENCE_CLASSIFICATION)
    assert [row[0] for row in rows] == [result.scores.model for result in four_results]
    assert rows[0][1:5] == ["0.860000", "0.430000", "0.655000", "0.327500"]
    assert rows[0][5:] == ["7000000", "10600000", "40000", "72340000", "61.2"]
    assert rows[1][-1] == "", "the copy was not trained"


def test_a_report_can_be_written_again(four_results: list[ModelResult], tmp_path: Path) -> None:
    write_report(four_results, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(four_results, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"languages.csv", "summary.csv", "report.md"}


def test_markdown_from_the_files_is_the_run_s(
    four_results: list[ModelResult], tmp_path: Path
) -> None:
    write_report(four_results, tmp_path)
    of_summary = summary_table(summary_rows(four_results)).to_markdown()
    assert markdown_from_csv(tmp_path / "summary.csv") == of_summary
    of_languages = language_table(language_rows(four_results)).to_markdown()
    assert markdown_from_csv(tmp_path / "languages.csv") == of_languages
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith(of_summary)


def test_columns_of_a_classifier_are_those_of_committed_files() -> None:
    assert language_columns(SEQUENCE_CLASSIFICATION) == (
        *("model", "language", "group", "num_samples"),
        *("accuracy", "accuracy_low", "accuracy_high", "macro_f1"),
    )
    assert summary_columns(SEQUENCE_CLASSIFICATION)[1:5] == (
        *("seen_accuracy", "seen_macro_f1"),
        *("unseen_accuracy", "unseen_macro_f1"),
    )


def test_another_task_has_its_own_measures(tagged_result: ModelResult, tmp_path: Path) -> None:
    write_report([tagged_result], tmp_path)
    with (tmp_path / "languages.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        **{"model": "tagger", "language": "da", "group": "seen", "num_samples": "40"},
        **{"span_f1": "0.700000", "span_f1_low": "0.650000", "span_f1_high": "0.750000"},
        **{"token_accuracy": "0.950000", "span_precision": "0.800000", "span_recall": "0.620000"},
    }
    lines = markdown_from_csv(tmp_path / "languages.csv").splitlines()
    assert lines[0] == "Span F1 / token accuracy, %"
    assert "| da | 40 | 70.0 / 95.0 |" in lines
    lines = markdown_from_csv(tmp_path / "summary.csv").splitlines()
    assert (
        lines[0] == "Span F1 / token accuracy, %: means over languages, each language counted once"
    )
    assert lines[-1] == "| tagger | 70.0 / 95.0 | — | 17.6 | 72.3 | 61 |"
    assert "![Span F1 by language](span_f1.png)" in (tmp_path / "report.md").read_text()


def test_another_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    path.write_text("step,loss\n1,2\n", encoding="utf-8")
    message = (
        f"markdown_from_csv: {path} must have the columns of languages.csv or summary.csv, "
        "got ['step', 'loss']. Pass a file that write_report wrote."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        markdown_from_csv(path)


def test_models_of_one_name_are_refused(make_result: MakeResult) -> None:
    message = (
        "report: models must have names of their own, got ['student', 'student']. "
        "Rename one of those that share a name."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        results_table([make_result("student"), make_result("student")])


# --- tables ---


def test_language_table_by_hand(make_result: MakeResult) -> None:
    results = [
        make_result("a", 0.5, 0.25, seen=("en",), unseen=("th",)),
        make_result("b", 1.0, 0.0, seen=("en",), unseen=()),
    ]
    assert results_table(results).to_markdown().splitlines() == [
        "Accuracy / macro-F1, %",
        "",
        "| language | samples | a | b |",
        "| --- | ---: | ---: | ---: |",
        "| **seen languages** |  |  |  |",
        "| en | 200 | 50.0 / 25.0 | 100.0 / 50.0 |",
        "| **mean of 1** |  | **50.0 / 25.0** | **100.0 / 50.0** |",
        "| **unseen languages** |  |  |  |",
        "| th | 80 | 25.0 / 12.5 | — |",
        "| **mean of 1** |  | **25.0 / 12.5** | **—** |",
        "| params, M |  | 17.6 | 17.6 |",
        "| disk, MB |  | 72.3 | 72.3 |",
    ]


def test_a_group_without_languages_is_left_out(make_result: MakeResult) -> None:
    table = results_table([make_result("a", unseen=())])
    assert [section[0].cells[0] for section in table.sections] == ["seen languages", "params, M"]


def test_summary_table_by_hand(make_result: MakeResult) -> None:
    results = [make_result("a", 0.5, unseen=(), train_seconds=None)]
    assert summary_table(summary_rows(results)).to_markdown().splitlines()[2:] == [
        "| model | seen languages | unseen languages | params, M | disk, MB | train, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 50.0 / 25.0 | — | 17.6 | 72.3 | — |",
    ]


def test_the_terminal_table_fits_80_columns_uncut(four_results: list[ModelResult]) -> None:
    for table in (results_table(four_results), summary_table(summary_rows(four_results))):
        console = Console(file=StringIO(), width=80)
        console.print(table.to_rich())
        shown = console.file.getvalue()
        for section in table.sections:
            for row in section:
                for cell in row.cells:
                    assert cell in shown


def test_text_is_not_taken_for_markup() -> None:
    table = Table("caption", ("a|b", "n"), ((TableRow(("[red]x|y", "1"), strong=True),),))
    assert table.to_markdown().splitlines()[2:] == [
        "| a\\|b | n |",
        "| --- | ---: |",
        "| **[red]x\\|y** | **1** |",
    ]
    console = Console(file=StringIO(), width=80)
    console.print(table.to_rich())
    assert "[red]x|y" in console.file.getvalue()


# --- sizes ---


def test_parameters_are_counted_by_part() -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=10,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    layer = 4 * (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 16
    embedding_norm, pooler = 16, 8 * 8 + 8
    assert count_parameters(model) == ParameterCounts(
        embeddings=(50 + 10 + 2) * 8,
        layers=embedding_norm + 2 * layer + pooler,
        head=8 * 3 + 3,
    )
    assert count_parameters(model).total == model.num_parameters()


def test_a_folder_s_size_is_that_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "inner" / "tokenizer.json").write_bytes(b"y" * 24)
    assert folder_size_bytes(tmp_path) == 1024


def test_the_report_shows_every_plot(four_results: list[ModelResult], tmp_path: Path) -> None:
    write_report(four_results, tmp_path)
    write_plots(four_results, [{"model": "teacher", "step": 1, "loss": 1.0}], tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown)
    assert sorted(shown) == sorted(path.name for path in tmp_path.glob("*.png"))
