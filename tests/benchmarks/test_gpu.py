"""gpu.py without a GPU: the interpreter stands in for it, and shapes are tiny."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mkd_fast.benchmarks import correctness, dense_kd, gpu_run, published, tune
from mkd_fast.benchmarks.inputs import Inputs, Outputs
from mkd_fast.benchmarks.results import read_rows
from mkd_fast.benchmarks.run import OPS
from mkd_fast.kernels import launch

CPU = torch.device("cpu")


@pytest.fixture
def few_cases(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case without torch.compile, and no more."""

    def cases(device: torch.device, *, is_tiny: bool) -> list[object]:
        made = dense_kd.cases(device, is_tiny=is_tiny)
        return [made[5].without(["torch.compile"])]

    monkeypatch.setattr(gpu_run, "OPS", {"dense_kd": cases})
    monkeypatch.setattr(correctness, "CHECKS", correctness.CHECKS[:1])


def run(folder: Path, **changes: object) -> dict[str, list[dict[str, str]]]:
    gpu_run.run(folder, **{"limit_s": 300.0, "has_counters": False, "is_tiny": True} | changes)
    return {path.name: read_rows(path) for path in folder.rglob("*.csv")}


def test_a_run_leaves_every_table(few_cases: None, tmp_path: Path) -> None:
    tables = run(tmp_path)
    facts = {row["fact"]: row["value"] for row in tables["environment.csv"]}
    assert float(facts["copy_gb_per_s"]) > 0.0
    assert facts["torch"] == torch.__version__
    assert [row["verdict"] for row in tables["correctness.csv"]] == ["right"]
    timed = {(row["case"], row["variant"]) for row in tables["dense_kd.csv"]}
    assert len(timed) == 2
    assert {(row["op"], row["is_table"]) for row in tables["tuning.csv"]} == {
        (op, is_table)
        for op in ("dense_kd", "sparse_kd", "hidden")
        for is_table in ("True", "False")
    }
    assert tables["skipped.csv"] == []


def test_what_fails_or_is_out_of_time_is_told_and_the_rest_goes_on(
    few_cases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(inputs: Inputs) -> Outputs:
        raise RuntimeError("no kernel image\nfor this device")

    (case,) = gpu_run.OPS["dense_kd"](CPU, is_tiny=True)
    cases = [
        replace(case, name="broken", variants={"fused": broken}),
        replace(case, variants={**case.variants, "rival": broken}),
    ]
    monkeypatch.setattr(tune, "search", lambda *_, **__: iter(()))
    monkeypatch.setattr(gpu_run, "OPS", {"dense_kd": lambda device, *, is_tiny: cases})
    tables = run(tmp_path)
    assert [(row["variant"], row["reason"]) for row in tables["skipped.csv"]] == [
        ("all", "RuntimeError: no kernel image"),
        ("rival", "RuntimeError: no kernel image"),
    ]
    assert {row["case"] for row in tables["dense_kd.csv"]} == {case.name}


def test_without_time_nothing_is_begun(few_cases: None, tmp_path: Path) -> None:
    limit = gpu_run.StreamingLimit.on(CPU, is_tiny=True)
    clock = gpu_run.Clock(limit_s=0.0)
    skipped = gpu_run.write_timings(tmp_path, CPU, limit, clock, is_tiny=False)
    assert {row["reason"] for row in skipped} == {"no time was left"}
    gpu_run.write_tuning(tmp_path, CPU, clock, is_tiny=True)
    gpu_run.write_correctness(tmp_path, CPU, replace(clock, limit_s=-1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["correctness.csv"]


def test_a_wrong_kernel_is_called_wrong(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check = correctness.CHECKS[0]
    right = correctness.Check.case

    def wrong(self: correctness.Check, device: torch.device) -> object:
        case = right(self, device)
        return replace(case, variants={"fused": lambda i: [t * 1.1 for t in case.plain(i)]})

    monkeypatch.setattr(correctness.Check, "case", wrong)
    (row,) = correctness.check(CPU, (check,))
    assert row["verdict"] == "WRONG"
    monkeypatch.setattr(correctness.Check, "case", right)
    monkeypatch.setattr(correctness, "kd_loss", None)
    (row,) = correctness.check(CPU, (check,))
    assert row["verdict"].startswith("TypeError: ")


def test_the_checks_have_names_of_their_own() -> None:
    names = [check.name for check in correctness.CHECKS]
    assert len(set(names)) == len(names)


def test_first_cases_of_all_ops_come_first() -> None:
    turns = gpu_run.in_turns(CPU, is_tiny=True)
    assert [op for op, _ in turns[: len(OPS)]] == list(OPS)
    assert len(turns) == sum(len(OPS[op](CPU, is_tiny=True)) for op in OPS)


@pytest.mark.parametrize("entry", tune.ENTRIES, ids=str)
def test_candidates_begin_with_the_table_and_differ(entry: tune.Entry) -> None:
    table, *others = tune.candidates(entry, 32)
    assert table == entry.config(32)
    assert len(others) >= 2
    assert len({table, *others}) == 1 + len(others)
    for config in others:
        assert config.block & (config.block - 1) == 0
        assert config.hidden_rows & (config.hidden_rows - 1) == 0
        assert config.num_warps >= 2


def test_the_fastest_configuration_is_printed_as_a_row() -> None:
    config = launch.LaunchConfig("rows", 1, 2048, 8, 1, 128)
    shape = {"op": "sparse_kd", "dtype": "bfloat16", "num_columns": 32000}
    (line,) = tune.table_rows([{**shape, "ratio": r, **vars(config)} for r in (0.9, 1)])
    assert line.startswith(
        "sparse_kd, bfloat16, 32000 columns: LaunchConfig(kernel='rows', rows=1, block=2048"
    )
    assert line.endswith("# 0.90 of the table's time")


def test_counters_need_ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run.shutil, "which", lambda name: None)
    (row,) = gpu_run.write_counters(tmp_path)
    assert row["reason"] == "ncu is not on PATH"
    monkeypatch.setattr(gpu_run.shutil, "which", lambda name: "/opt/ncu")
    called = []

    def recorded(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0, "dram__bytes.sum", "")

    monkeypatch.setattr(gpu_run.subprocess, "run", recorded)
    assert gpu_run.write_counters(tmp_path) == []
    assert "dram__bytes.sum" in (tmp_path / "ncu.csv").read_text()
    assert [command[-1] for command in called] == ["dense_kd", "sparse_kd"]


@pytest.mark.parametrize("formula", ["dense_kd", "jsd", "linear_kd", "linear_jsd"])
def test_rivals_that_are_not_installed_are_left_out(
    formula: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published.util, "find_spec", lambda package: None)
    assert published.rivals(formula) == {}
    monkeypatch.setattr(published.util, "find_spec", lambda package: package)
    assert published.rivals(formula)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("alone")
    script = Path(__file__).with_name("gpu_alone.py")
    command = [sys.executable, script, "--out", folder, "--only", "dense_kd"]
    return subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )


def test_torch_and_triton_are_all_it_needs(alone: subprocess.CompletedProcess[str]) -> None:
    """Imports succeed; then there is no kernel for a CPU, since nothing is installed."""
    assert "mkd_fast" in alone.stderr
    assert "impl='fused'" in alone.stderr
