"""What the kernels cost when compiled for each target, which takes no device: see gates.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_gate.py")
    listing = subprocess.run(
        [sys.executable, script], env=environment, check=True, capture_output=True, text=True
    ).stdout
    return [json.loads(line) for line in listing.splitlines()]


@pytest.fixture(params=TARGETS)
def on_target(
    reports: list[dict[str, Any]], request: pytest.FixtureRequest
) -> list[dict[str, Any]]:
    found = [report for report in reports if report["target"] == request.param]
    kernels = {report["name"].rpartition("/")[2] for report in found}
    assert kernels == {
        "dense_kd_tile",
        "dense_kd_rows",
        "sparse_kd_rows",
        "count_tokens",
        "reduce_values",
        "combine_values",
        "_scale",
    }
    return found


def test_nothing_spills(on_target: list[dict[str, Any]]) -> None:
    spilled = {r["name"]: r["spill_bytes"] for r in on_target if r["spill_bytes"]}
    assert list(spilled) == ["oversized/dense_kd_tile"], (
        spilled
    )  # and that one must, or the gate is blind


def test_every_load_of_logits_and_hidden_states_takes_16_bytes(
    on_target: list[dict[str, Any]],
) -> None:
    bare = [r for r in on_target if "bare" in r["name"] and "dense_kd" in r["name"]]
    assert len(bare) == 10
    for report in bare:
        num_scales = 2 if "int8" in report["name"] else 0  # one a row of either layer
        assert report["wide_loads"] > 0, report
        assert report["narrow_loads"] == num_scales, report


def test_gradients_are_stored_16_bytes_at_a_time(on_target: list[dict[str, Any]]) -> None:
    """The narrow stores are the values, one a program; rows off 16 bytes end column by column."""
    for report in on_target:
        if "bare" in report["name"] and "XLM-R" not in report["name"] and "dense" in report["name"]:
            assert report["wide_stores"] > 0, report
            assert report["narrow_stores"] <= 2, report


def test_two_blocks_or_a_quarter_of_the_warps_fit(on_target: list[dict[str, Any]]) -> None:
    for report in on_target:
        if report["name"] != "oversized/dense_kd_tile":
            assert report["occupancy"] >= 0.25, report
