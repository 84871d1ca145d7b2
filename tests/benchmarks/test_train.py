"""The loop beside its rivals: everyone trains the same, and says so in rows."""

import math
from dataclasses import replace

import pytest
import torch

from mkd_fast.benchmarks import train
from mkd_fast.benchmarks.findings import Finding
from mkd_fast.benchmarks.rivals import job as jobs
from mkd_fast.benchmarks.rivals.job import Job, Trained
from mkd_fast.benchmarks.rivals.variants import VARIANTS, Variant

pytestmark = pytest.mark.filterwarnings("default")  # rivals and what they import warn as they like


@pytest.fixture(scope="module", params=train.JOBS, ids=lambda job: job.kind)
def job(request, tmp_path_factory):
    """A tiny one, prepared."""
    job = replace(request.param, folder=str(tmp_path_factory.mktemp("job")), **train.TINY)
    job.prepare()
    job.capture()
    return job


def variants(kind: str) -> list[Variant]:
    return [variant for variant in VARIANTS[kind] if variant.is_installed]


def test_an_epoch_of_each_has_our_batches_where_it_is_to(job):
    job = replace(job, has_our_order=True)
    expected = [int(job.text.lengths[rows].sum()) for rows in job.batches]
    assert len(set(expected)) > 1
    for variant in variants(job.kind):
        trained = variant.train(job)
        if variant.name == "TextBrewer" and variant.teacher == "kept":  # it shuffles what it keeps
            assert sorted(trained.num_tokens) == sorted(expected)
        else:
            assert trained.num_tokens == expected, variant
        assert len(trained.losses) == len(trained.ended) == job.num_steps, variant
        assert sorted(trained.ended) == trained.ended, variant
        assert trained.tokens_per_s > 0, variant


def test_the_same_batches_give_the_same_losses(job):
    *relative, rounding = train.curves(job, variants(job.kind))
    assert rounding.holds, rounding.line()
    assert len(relative) == sum(variant.has_our_loss for variant in variants(job.kind))


def test_losses_that_differ_are_found(job, monkeypatch):
    ours, right = variants(job.kind)[0], Variant.train

    def other(self: Variant, job: Job) -> Trained:
        trained = right(self, job)
        off = 1.0001 if self == ours else 1.0
        return replace(trained, losses=[off * loss for loss in trained.losses])

    monkeypatch.setattr(Variant, "train", other)
    assert list(train.curves(job, variants(job.kind)))[-1].holds is False


def test_a_shorter_epoch_is_the_beginning_of_a_longer(job):
    whole, part = job.text, replace(job, num_steps=2).text
    assert len(part) == 2 * job.batch_size
    for row in range(len(part)):
        assert whole.token_hash(row) == part.token_hash(row)


@pytest.mark.parametrize("job", train.JOBS[:1], indirect=True)
def test_memory_is_of_a_process_of_its_own(job):
    ours = VARIANTS[job.kind][0]
    held = train.peak_bytes(job, ours)
    weights = sum(p.numel() for p in job.student().parameters())
    assert 4 * weights < held < 2e9


def test_rows_for_everyone_also_who_is_not_there(monkeypatch):
    monkeypatch.setattr(train, "peak_bytes", lambda job, variant: 1e6)
    there = Variant.is_installed.fget
    monkeypatch.setattr(
        Variant, "is_installed", property(lambda self: self.package != "textbrewer" and there(self))
    )
    findings = list(train.measure(torch.device("cpu"), is_tiny=True, num_rounds=2))
    by_case: dict[str, list[Finding]] = {}
    for finding in findings:
        by_case.setdefault(finding.case, []).append(finding)
    for kind, all_of_kind in VARIANTS.items():
        for variant in all_of_kind:
            found = by_case[f"{kind}, {variant.name}, {variant.teacher} teacher"]
            if not variant.is_installed:
                (row,) = found
                assert row.line().endswith(f"teacher: {variant.package} is not installed")
                assert math.isnan(row.p50)
                continue
            measures = {finding.measure for finding in found}
            assert {"MB held at most", "tokens/s"} <= measures
            is_rival = variant.package != "mkd_fast"
            assert any("as fast" in measure for measure in measures) == is_rival


def test_steps_that_warm_up_are_not_timed():
    trained = Trained(num_tokens=[1000, 1000, 30, 30], ended=[0.0, 50.0, 51.0, 52.0])
    assert jobs.WARM_UP_STEPS == 2
    assert trained.tokens_per_s == 30.0
