"""Single numbers: their spread, their budgets, and where they go; the cache's, on tiny sizes."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mkd_fast.benchmarks import findings
from mkd_fast.benchmarks.cache.reading import Echo, forget
from mkd_fast.benchmarks.cache.setting import ORIGIN
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.benchmarks.results import read_rows
from mkd_fast.cli import app
from mkd_fast.teacher import TeacherCache, capture


def test_a_budget_holds_for_the_median() -> None:
    values = [3.0, 1.0, 2.0]
    assert Finding.of("case", "x", values, at_least=2.0).holds
    assert not Finding.of("case", "x", values, at_least=2.1).holds
    assert Finding.of("case", "x", values, at_most=2.0).holds
    assert not Finding.of("case", "x", values, at_most=1.9).holds
    alone = Finding.of("case", "x", [4.0])
    assert (alone.p20, alone.p50, alone.p80, alone.holds) == (4.0, 4.0, 4.0, None)


def test_what_people_and_tables_get(tmp_path: Path) -> None:
    found = [
        Finding.of("opening", "ms", [1.0, 2.0, 3.0]),
        Finding.of("step", "share of it waiting", [0.2], at_most=0.03),
    ]
    assert found[0].line() == "opening: 2 (1 to 3) ms"
    assert found[1].line().endswith("wanted <= 0.03, DOES NOT HOLD")
    path = findings.write("part", found, torch.device("cpu"), tmp_path)
    rows = read_rows(path)
    assert [row["holds"] for row in rows] == ["", "False"]
    assert tuple(rows[0]) == findings.COLUMNS


def test_forgetting_a_folder_leaves_it_as_it_is(tmp_path, echo_capture) -> None:
    before = {path.name: path.read_bytes() for path in echo_capture.iterdir()}
    forget(echo_capture)
    assert {path.name: path.read_bytes() for path in echo_capture.iterdir()} == before
    assert len(TeacherCache.open(echo_capture)) == 2


@pytest.fixture
def echo_capture(tmp_path: Path) -> Path:
    """A cache of two samples."""
    ids = torch.tensor([[1], [2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sample_ids": ids[:, 0]}
    capture(Echo(), [batch], tmp_path / "cache", keep="logits", fingerprints=ORIGIN)
    return tmp_path / "cache"


def test_the_cache_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "cache", "--tiny", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("*/cache.csv")
    rows = {(row["case"], row["measure"]): row for row in read_rows(path)}
    ((_, curve),) = [(key, row) for key, row in rows.items() if key[0] == "loss curve"]
    assert curve["holds"] == "True"
    budgets = [row["budget"] for row in rows.values() if row["budget"]]
    assert sorted(set(budgets)) == ["<= 0.0001", "<= 0.03", "<= 1.1", ">= 1.5", ">= 20"]
    assert all(float(row["p50"]) >= 0 for row in rows.values())
