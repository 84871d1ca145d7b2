"""The predicted table: arithmetic, and that nobody can take it for measurements."""

import csv
from pathlib import Path

import pytest

from mkd_fast.benchmarks import gates as gates_csv
from mkd_fast.benchmarks.predict import CHIPS, Work, predict, table, work
from mkd_fast.benchmarks.readme import measured
from mkd_fast.benchmarks.roofline import PEAKS
from mkd_fast.kernels.gates import Report

ROOT = Path(__file__).parents[2]


def test_every_chip_has_a_bandwidth_and_sources() -> None:
    for device, chip in CHIPS.items():
        assert chip.source
        assert PEAKS[device].source
        assert 1e12 < chip.exponentials_per_s < 2e13


def test_the_floor_is_bytes_over_bandwidth() -> None:
    row = predict(Work("op", "case", 4_800_000_000, 0, 0, 0), "H200")
    assert row["floor_ms"] == row["memory_ms"] == pytest.approx(1.0)
    assert row["bound"] == "memory"


def test_what_stays_in_the_cache_is_not_read_again() -> None:
    fits = predict(Work("op", "case", 10_000, 4_000, 1000, 0), "H100")
    assert fits["assumed_hits"] == 1.0
    assert fits["memory_ms"] == pytest.approx(fits["no_hits_ms"] * 0.6)
    half = (50 << 20) // (132 * 2) * 2
    assert predict(Work("op", "case", 10_000, 4_000, half, 0), "H100")["assumed_hits"] == (
        pytest.approx(0.5, rel=1e-3)
    )


def test_exponentials_may_bound() -> None:
    row = predict(Work("op", "case", 1, 0, 0, 10**12), "A100")
    assert row["bound"] == "exponentials"
    assert row["floor_ms"] == row["exponentials_ms"]


def test_every_case_requests_at_least_what_it_repeats() -> None:
    cases = list(work())
    assert {case.op for case in cases} == {"dense_kd", "sparse_kd", "hidden"}
    assert all(0 <= case.repeated_bytes < case.num_bytes for case in cases)


def test_the_table_says_that_it_is_predicted() -> None:
    rows = [predict(case, device) for case in work() for device in CHIPS]
    assert {row["kind"] for row in rows} == {"predicted"}
    text = [{name: str(value) for name, value in row.items()} for row in rows]
    assert table(text).startswith("PREDICTED, not measured")
    assert not any("predicted" in path.parts for path in measured(ROOT))


def test_gates_are_written_as_they_are_reported(tmp_path: Path) -> None:
    report = Report("32k/dense_kd_rows", "sm_90", 8, 64, 0, 0, 1024, 4, 0, 2, 1, 0.5)
    with gates_csv.write([report], tmp_path).open() as file:
        (row,) = csv.DictReader(file)
    assert row["registers"] == "64"
    assert row["occupancy"] == "0.5"
