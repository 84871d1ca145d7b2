"""The benchmark of streamed teachers writes a table, and notices other logits."""

from dataclasses import replace

import pytest

from mkd_fast.benchmarks import streamed, streamed_run
from mkd_fast.benchmarks.results import read_rows


@pytest.fixture
def in_process(monkeypatch):
    """No fresh process for each measurement: memory is then that of the tests."""

    def run(job):
        return streamed_run.limits(job) if job.variant == "limits" else streamed_run.measure(job)

    monkeypatch.setattr(streamed, "run", run)


@pytest.mark.usefixtures("in_process")
def test_a_row_for_each_variant(tmp_path):
    rows = read_rows(streamed.bench(tmp_path / "model", tmp_path, "cpu", is_tiny=True))
    variants = ["streamed"] * 3 + ["accelerate disk", "in memory"]
    assert [row["variant"] for row in rows] == variants
    assert {row["is_same"] for row in rows} == {"True"}
    for row in rows[:3]:
        assert float(row["predicted_tokens_per_s"]) > 0
        # what is read beside the weights: rows of the embedding, and configs
        assert float(row["read_bytes_per_token"]) > float(row["predicted_bytes_per_token"])
    halved = [float(row["predicted_bytes_per_token"]) for row in rows[:3]]
    assert halved == pytest.approx([halved[0], 2 * halved[0], 4 * halved[0]], rel=1e-3)


@pytest.mark.usefixtures("in_process")
def test_other_logits_are_an_error(tmp_path, monkeypatch):
    def other(job):
        for logits in streamed_run.in_memory(job):
            yield logits if logits is None else logits + 1

    monkeypatch.setitem(streamed_run.VARIANTS, "accelerate disk", other)
    with pytest.raises(RuntimeError, match=r"same logits, bit by bit, got others from accel"):
        streamed.bench(tmp_path / "model", tmp_path, "cpu", is_tiny=True)


def test_a_process_of_its_own(tmp_path):
    streamed.make_checkpoint(tmp_path, streamed.config(is_tiny=True))
    job = next(streamed.jobs(tmp_path, "cpu", 0, is_tiny=True))
    measured = streamed.run(job)
    assert measured["digest"] == streamed_run.measure(replace(job, variant="in memory"))["digest"]
    assert measured["peak_rss_bytes"] > 100 << 20
