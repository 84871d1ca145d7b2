"""Tiny shapes of every case, so that the benchmark cannot rot."""

import csv
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from typer.testing import CliRunner

from mkd_fast.benchmarks import run
from mkd_fast.benchmarks.dense_kd import (
    SHAPES,
    Inputs,
    Shape,
    cases,
    make_case,
    make_inputs,
    num_bytes_moved,
)
from mkd_fast.benchmarks.harness import TINY, Case, measure
from mkd_fast.benchmarks.results import COLUMNS, plot_ratios
from mkd_fast.benchmarks.roofline import StreamingLimit
from mkd_fast.cli import app

CPU = torch.device("cpu")
LIMIT = StreamingLimit.on(CPU, is_tiny=True)
TINY_SHAPES = [shape.on(CPU, is_tiny=True) for shape in SHAPES]
OTHERS = ["fused", "eager", "reference"]
by_name = pytest.mark.parametrize("shape", TINY_SHAPES, ids=lambda shape: shape.name)


def without_compile(case: Case) -> Case:
    return run.without(case, ["torch.compile"])


@by_name
def test_every_variant_is_right_and_timed(shape: Shape) -> None:
    measurement = measure(without_compile(make_case(shape, CPU)), CPU, LIMIT, TINY)
    assert measurement.refused == {}
    assert [timing.variant for timing in measurement.timings] == OTHERS


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # imported by torch.compile
def test_torch_compile_is_right_and_timed() -> None:
    with_hidden = make_case(TINY_SHAPES[-1], CPU)
    measurement = measure(with_hidden, CPU, LIMIT, TINY)
    assert measurement.refused == {}
    assert measurement.ratio("torch.compile") is not None


def test_the_fused_op_holds_its_gradient_and_no_more() -> None:
    shape = replace(TINY_SHAPES[0], num_rows=64)
    ours = measure(without_compile(make_case(shape, CPU)), CPU, LIMIT, TINY).timings[0]
    gradient_bytes = 64 * shape.num_columns * 4
    assert gradient_bytes <= ours.extra_bytes <= gradient_bytes + 256


def test_cases_have_names_of_their_own() -> None:
    for is_tiny in (True, False):
        names = [case.name for case in cases(CPU, is_tiny=is_tiny)]
        assert len(set(names)) == len(SHAPES)


def test_bytes_are_what_the_op_moves() -> None:
    few_columns = Shape(torch.float32, 100, 60, 100)
    assert make_case(few_columns, CPU).num_bytes == 100 * 60 * 12
    with_hidden = replace(few_columns, num_layers=2, num_positions=5, width=7)
    assert make_case(with_hidden, CPU).num_bytes == 100 * 60 * 12 + 2 * 500 * 7 * 12
    gpu = torch.device("cuda")
    assert num_bytes_moved(few_columns, gpu) == 100 * 60 * 12  # a pair of rows fits on chip
    large = Shape(torch.bfloat16, 100, 128_256, 100)
    assert num_bytes_moved(large, gpu) == 100 * 128_256 * 10  # it is read twice


def bench(folder: Path, *options: str) -> list[dict[str, str]]:
    arguments = ["bench", "--tiny", "--without", "torch.compile", "--out", str(folder), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (path,) = folder.glob("*/dense_kd.csv")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def test_the_command_writes_a_row_for_each_case_and_variant(tmp_path: Path) -> None:
    rows = bench(tmp_path, "dense_kd", "--plot")
    assert [(row["case"], row["variant"]) for row in rows] == [
        (shape.name, variant) for shape in TINY_SHAPES for variant in OTHERS
    ]
    for row in rows:
        assert all(row.values()), row
        assert re.fullmatch(r"unknown|[0-9a-f]{12}\+?", row["commit"])
        assert row["torch"] == torch.__version__
        assert socket.gethostname() not in row["device"]
        assert float(row["error_of_budget"]) <= 1.0
    (plot,) = tmp_path.glob("*/dense_kd.svg")
    assert plot.read_text().lstrip().startswith("<?xml")


def test_a_wrong_kernel_is_told_and_leaves_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        loss, gradient = right.variants["fused"](inputs)
        return loss, gradient * 1.01

    right, other = (without_compile(make_case(shape, CPU)) for shape in TINY_SHAPES[:2])
    wrong = replace(right, variants={**right.variants, "fused": broken})
    monkeypatch.setitem(run.OPS, "dense_kd", lambda device, *, is_tiny: [wrong, other])
    with pytest.raises(RuntimeError, match=r"bench: fused dense_kd must agree with float64 .* at "):
        run.bench([], tmp_path, is_tiny=True, plots=False)
    (path,) = tmp_path.glob("*/dense_kd.csv")
    with path.open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {other.name}


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


def test_the_plot_draws_the_measured_ratios() -> None:
    measurement = measure(without_compile(make_case(TINY_SHAPES[0], CPU)), CPU, LIMIT, TINY)
    (axes,) = plot_ratios("dense_kd", [measurement]).axes
    assert [bar.get_width() for bar in axes.patches] == [measurement.ratio("eager")]


@by_name
def test_speed_of_the_fused_op(shape: Shape, benchmark: BenchmarkFixture) -> None:
    inputs = make_inputs(shape, CPU, 0)
    loss, *gradients = benchmark(make_case(shape, CPU).variants["fused"], inputs)
    assert loss.isfinite()
    assert [gradient.shape for gradient in gradients] == [
        tensor.shape for tensor in (inputs.student, *inputs.student_hidden)
    ]
