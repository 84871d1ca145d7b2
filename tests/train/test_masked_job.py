"""The whole job on running text: masked once, kept, distilled, scored, stopped and resumed."""

import csv
import math
import signal
import subprocess
import sys

import killed_training_job
import pytest
import tiny_job
import torch
from tiny_job import weights
from tiny_problem import metric_rows
from torch.nn import functional
from transformers import AutoModelForMaskedLM

import mkd_fast
from mkd_fast.checks.wording import is_ours
from mkd_fast.train import models
from mkd_fast.train.config import load
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import STUDENT

NO_RIVAL = {"scratch.enabled": "false"}
LONGER = {
    "finetune.epochs": "40",
    "finetune.learning_rate": "5e-3",
    "train.epochs": "6",
    "loss.ce_weight": "0.0",
}


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """An undisturbed run of the job; only to be read."""
    return tiny_job.distilled(tmp_path_factory.mktemp("masked"), LONGER, kind="masked_lm")


@pytest.fixture
def recipe(tmp_path):
    return tiny_job.write_job(tmp_path, kind="masked_lm")


@pytest.fixture
def known_teacher(masked, monkeypatch):
    monkeypatch.setenv("MKD_FAST_HOME", str(masked.folder.parent / "home"))


def masked_vocabulary(masked):
    return models.load_tokenizer(str(masked.student)).get_vocab()


def mean(result, group, name):
    return getattr(result.scores, f"{group}_mean").values[name]


def test_every_model_is_scored_by_kl_and_perplexity(masked):
    with (masked.folder / "languages.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["language"], r["group"]) for r in rows} == {
        ("de", "seen"),
        ("en", "seen"),
        ("sw", "unseen"),
    }
    for row in rows:
        low, kl, high = (float(row[f"kl_to_teacher{end}"]) for end in ("_low", "", "_high"))
        assert low <= kl <= high
    report = (masked.folder / "report.md").read_text()
    assert "KL to the teacher in nats / perplexity" in report
    assert (masked.folder / "kl_to_teacher.png").exists()


def test_the_student_comes_nearer_to_its_teacher(masked):
    teacher, copied, student, scratch = masked.results
    assert abs(mean(teacher, "seen", "kl_to_teacher")) < 1e3 * torch.finfo().eps
    assert mean(student, "seen", "kl_to_teacher") < mean(copied, "seen", "kl_to_teacher")
    assert mean(student, "seen", "kl_to_teacher") < mean(scratch, "seen", "kl_to_teacher")
    uniform = len(masked_vocabulary(masked))
    assert mean(teacher, "seen", "perplexity") < mean(scratch, "seen", "perplexity") < uniform


def test_a_student_s_scores_are_those_of_dense_logits(masked):
    """KL and cross-entropy by softmax in float64, over the tokens that the student has."""
    run = Run(load(masked.folder.parent / "recipe.toml", LONGER))
    keep = run.token_map.rows
    tokenizer = models.load_tokenizer(run.teacher_folder)
    full = run.kind._masked(run.corpus.test, tokenizer, 1)
    small = models.load_tokenizer(str(masked.student))
    ours = run.kind.student_text(run.corpus.test, full, small, run.token_map)
    teacher, student = (
        AutoModelForMaskedLM.from_pretrained(folder).eval().double()
        for folder in (run.teacher_folder, masked.student)
    )
    kl, cross_entropy, count = 0.0, 0.0, 0
    for row in range(len(full)):
        if run.corpus.test.languages[full.texts[row]] != "en":
            continue
        labels = torch.from_numpy(ours.labels[ours.offsets[row] : ours.offsets[row + 1]])
        places = (labels != -100).nonzero().squeeze(1)
        ids = (torch.from_numpy(text.row(row)).long()[None] for text in (full, ours))
        p, q = (
            model(input_ids=row_ids).logits[0, places].detach()
            for model, row_ids in zip((teacher, student), ids, strict=True)
        )
        p, q = p[:, keep].log_softmax(-1), q.log_softmax(-1)
        kl += functional.kl_div(q, p, reduction="sum", log_target=True).item()
        cross_entropy -= q.gather(1, labels[places][:, None]).sum().item()
        count += len(places)
    found = next(s for s in masked.results[2].scores.seen if s.language == "en")
    budget = 256 * torch.finfo().eps
    scale = cross_entropy / count  # the KL is a difference of numbers as large as this
    assert found.values["kl_to_teacher"] == pytest.approx(kl / count, abs=budget * scale)
    assert found.values["perplexity"] == pytest.approx(math.exp(cross_entropy / count), rel=budget)


def test_an_epoch_trains_on_one_masking_and_all_are_cached(masked):
    run = Run(load(masked.folder.parent / "recipe.toml", LONGER))
    text = run.teacher_text
    assert len(run.cache) == len(text) == 4 * text.num_pieces
    task = run.kind.label_task(text, 8, 0)
    for epoch in range(6):
        rows = sorted(row for rows in task.batches(epoch) for row in rows)
        first = epoch % 4 * text.num_pieces
        assert rows == list(range(first, first + text.num_pieces))


def test_killed_while_training(masked, known_teacher, recipe, monkeypatch):
    longer = ["=".join(setting) for setting in LONGER.items()]
    command = [sys.executable, killed_training_job.__file__, str(recipe), *longer]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    monkeypatch.setattr("mkd_fast.train.finetune.fit", pytest.fail)
    monkeypatch.setattr("mkd_fast.train.run.copied_student", pytest.fail)
    result = mkd_fast.distill(recipe, LONGER)
    for name in ("copied", STUDENT, "scratch"):
        assert weights(result.folder / name) == weights(masked.folder / name)
    for name in ("languages.csv", "data/train.jsonl", "cache/shard-00000.safetensors"):
        assert (result.folder / name).read_bytes() == (masked.folder / name).read_bytes()
    rows = metric_rows(masked.folder / "metrics.jsonl")
    assert metric_rows(result.folder / "metrics.jsonl") == rows


@pytest.mark.usefixtures("known_teacher")
def test_a_language_that_the_vocabulary_has_nothing_of_is_told(recipe, capsys):
    run = Run(load(recipe, {**LONGER, **NO_RIVAL, "data.vocabulary_text": ""}))
    scores = run.result("copied").scores
    assert ([s.language for s in scores.seen], scores.unseen) == (["de", "en"], ())
    said = capsys.readouterr().out.replace("\n", " ")
    assert "evaluate: WARNING, no score in sw" in said


@pytest.mark.usefixtures("known_teacher")
@pytest.mark.parametrize(
    "change",
    [
        {"capture.keep": "topk:8"},
        {"capture.keep": "sampled:50", "loss.hidden_weight": "0.0"},
        {"student.vocabulary": "all"},
        {"student.vocabulary": "all", "capture.keep": "topk:8", "data.num_maskings": "1"},
        {"loss.divergence": "reverse_kl", "loss.ce_weight": "0.5", "capture.hidden_dtype": "int8"},
    ],
    ids=lambda change: " ".join(change.values()),
)
def test_other_recipes(recipe, change):
    run = Run(load(recipe, {**LONGER, **change, **NO_RIVAL, "train.epochs": "1"}))
    run.trained(STUDENT)
    rows = metric_rows(run.metrics_path)
    assert all(row["kd"] > 0 for row in rows)
    assert all((row["hidden"] > 0) == (run.config.loss.hidden_weight > 0) for row in rows)
    assert run.result(STUDENT).scores.seen_mean.values["perplexity"] > 1


def test_a_ready_teacher_without_a_head_is_refused(recipe, tmp_path):
    encoder = tiny_job.write_encoder(tmp_path / "bare")
    change = {"teacher.model": str(encoder), "teacher.finetuned": "true", **NO_RIVAL}
    run = Run(load(recipe, change))
    with pytest.raises(ValueError, match="must be a language model with a head, got") as caught:
        run.kind.load(str(encoder), ())
    assert is_ours(caught.value)
    assert run.kind.load(str(encoder), (), new_head_seed=0).config.num_hidden_layers == 4


def test_a_tokenizer_without_a_mask_is_refused(recipe, tmp_path):
    encoder = tiny_job.write_encoder(tmp_path / "bare")
    run = Run(load(recipe, {"teacher.model": str(encoder), **NO_RIVAL}))
    with pytest.raises(ValueError, match="the tokenizer must have a mask token, got"):
        _ = run.teacher_text


def test_another_masking_is_another_teacher(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))
    changes = ({}, {"data.mask_share": "0.3"}, {"data.num_maskings": "2"})
    teachers = {
        Run(load(recipe, {"run.folder": str(tmp_path / f"{n}"), **changed})).teacher_folder
        for n, changed in enumerate(changes)
    }
    assert len(teachers) == len(changes)


def test_a_streamed_teacher_says_the_same(recipe, tmp_path, known_teacher, masked):
    folder = next((masked.folder.parent / "home" / "teachers").iterdir()) / "model"
    ready = {"teacher.model": str(folder), "teacher.finetuned": "true"}
    whole = Run(load(recipe, {**ready, "run.folder": str(tmp_path / "whole")})).cache
    ready |= {"run.folder": str(tmp_path / "streamed"), "capture.max_memory": "1MiB"}
    streamed = Run(load(recipe, ready)).cache
    assert {path.name: path.read_bytes() for path in streamed.path.iterdir()} == {
        path.name: path.read_bytes() for path in whole.path.iterdir()
    }
