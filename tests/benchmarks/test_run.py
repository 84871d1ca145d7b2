"""``mkd-fast bench``: what it writes, draws and refuses."""

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mkd_fast.benchmarks import dense_kd, report, run
from mkd_fast.benchmarks.case import Case
from mkd_fast.benchmarks.inputs import Inputs, Outputs
from mkd_fast.benchmarks.results import COLUMNS, Row, read_rows
from mkd_fast.cli import app

CPU = torch.device("cpu")


@pytest.fixture
def cases() -> list[Case]:
    """Of dense_kd, without what takes long to compile."""
    return [case.without(["torch.compile"]) for case in dense_kd.cases(CPU, is_tiny=True)]


def bench(folder: Path, *options: str) -> list[Row]:
    arguments = ["bench", "--tiny", "--without", "torch.compile", "--out", str(folder), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (path,) = folder.glob("*/dense_kd.csv")
    return read_rows(path)


def test_the_command_writes_a_row_for_each_case_and_variant(
    tmp_path: Path, cases: list[Case]
) -> None:
    rows = bench(tmp_path, "dense_kd", "--plot")
    assert [(row["case"], row["variant"]) for row in rows] == [
        (case.name, variant) for case in cases for variant in case.variants
    ]
    for row in rows:
        assert tuple(row) == COLUMNS
        assert all(row.values()), row
        assert re.fullmatch(r"unknown|[0-9a-f]{12}\+?", row["commit"])
        assert row["torch"] == torch.__version__
        assert socket.gethostname() not in row["device"]
        assert float(row["error_of_budget"]) <= 1.0
    (plot,) = tmp_path.glob("*/dense_kd.svg")
    drawn = plot.read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert all(case.name in drawn for case in cases)
    report.save_plot(rows, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_a_wrong_kernel_is_told_and_leaves_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: list[Case]
) -> None:
    def broken(inputs: Inputs) -> Outputs:
        loss, gradient = right.variants["fused"](inputs)
        return loss, gradient * 1.01

    right, other = cases[:2]
    wrong = replace(right, variants={**right.variants, "fused": broken})
    monkeypatch.setattr(run, "OPS", {"dense_kd": lambda device, *, is_tiny: [wrong, other]})
    with pytest.raises(RuntimeError, match=r"bench: fused dense_kd must agree with float64 .* at "):
        run.bench([], tmp_path, is_tiny=True, plots=False)
    (path,) = tmp_path.glob("*/dense_kd.csv")
    assert {row["case"] for row in read_rows(path)} == {other.name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dense_kb"], "bench: op must be a known name, got 'dense_kb'. Did you mean 'dense_kd'?"),
        (["--without", "fused"], "bench: without must be a known name, got 'fused'."),
    ],
)
def test_unknown_names_are_told(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "--tiny", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.output


ROWS = [
    {
        "op": "dense_kd",
        "device": "CPU",
        "case": "float32 2 x 60",
        "variant": variant,
        "p50_ms": f"{ratio * 2}",
        "ratio": f"{ratio}",
        "ratio_p20": f"{ratio * 0.9}",
        "ratio_p80": f"{ratio * 1.1}",
        "share_of_limit": "0.5",
        "extra_mb": f"{10 * ratio}",
    }
    for variant, ratio in (("fused", 1.0), ("eager", 12.0), ("torch.compile", 4.0))
]


def test_the_plot_draws_the_ratios_from_one_and_the_limit() -> None:
    (axes,) = report.plot(ROWS).axes
    assert [bar.get_width() for bar in axes.patches] == [11.0, 3.0]
    assert {bar.get_x() for bar in axes.patches} == {1.0}
    assert list(axes.lines[0].get_xdata()) == [0.5]


def test_the_summary_has_ratios_with_their_spread_and_memory() -> None:
    line = report.summary(ROWS).splitlines()[-1]
    cells = "float32 2 x 60 | 2 | 12.0x (10.8-13.2) | 4.0x (3.6-4.4) | 50% | 10 | 120"
    assert line == f"| {cells} |"
