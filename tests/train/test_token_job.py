"""The whole job where words are tagged: learnt, kept, distilled, scored, stopped and resumed."""

import csv
import signal
import subprocess
import sys
from dataclasses import replace

import killed_training_job
import pytest
import tiny_job
import torch
from tiny_job import weights
from tiny_problem import metric_rows
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

import mkd_fast
from mkd_fast.data.feeding import Feeding
from mkd_fast.teacher import TeacherCache
from mkd_fast.train import models
from mkd_fast.train.config import load
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import STUDENT

NO_RIVAL = {"scratch.enabled": "false"}
LONGER = {"finetune.epochs": "8", "train.epochs": "8"}
TAGS = ("O", "B-LAMP", "I-LAMP", "B-ROOM", "I-ROOM")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """An undisturbed run of the tagged job; only to be read."""
    return tiny_job.distilled(
        tmp_path_factory.mktemp("tagged"), LONGER, kind="token_classification"
    )


@pytest.fixture
def recipe(tmp_path):
    return tiny_job.write_job(tmp_path, kind="token_classification")


@pytest.fixture
def known_teacher(tagged, monkeypatch):
    monkeypatch.setenv("MKD_FAST_HOME", str(tagged.folder.parent / "home"))


def test_every_model_is_scored_by_span_f1(tagged):
    with (tagged.folder / "languages.csv").open() as file:
        rows = list(csv.DictReader(file))
    languages = {(r["language"], r["group"], r["num_samples"]) for r in rows}
    assert languages == {("de", "seen", "12"), ("en", "seen", "12"), ("sw", "unseen", "9")}
    assert len(rows) == 4 * 3
    for row in rows:
        assert float(row["span_f1_low"]) <= float(row["span_f1"]) <= float(row["span_f1_high"])
    assert "Span F1 / token accuracy, %" in (tagged.folder / "report.md").read_text()
    assert (tagged.folder / "span_f1.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_student_has_learnt_its_task(tagged):
    teacher, _, student, scratch = (r.scores.seen_mean.values for r in tagged.results)
    assert teacher["span_f1"] > 0.9
    assert student["span_f1"] > 0.9
    assert student["span_f1"] > scratch["span_f1"]


def test_the_cache_has_a_row_of_logits_a_token(tagged):
    cache = TeacherCache.open(tagged.folder / "cache")
    summary = cache.summary()
    assert summary.bytes_per_token["logits"] == 4 * len(TAGS)
    teacher = AutoModelForTokenClassification.from_pretrained(
        next((tagged.folder.parent / "home" / "teachers").iterdir()) / "model"
    ).eval()
    text = Run(load(tagged.folder.parent / "recipe.toml", LONGER)).teacher_text
    target = cache.batch([5, 0])
    for number, row in enumerate((5, 0)):
        ids = torch.from_numpy(text.row(row)).long()
        exact = teacher(input_ids=ids[None]).logits[0]
        found = target.teacher[number, : len(ids)]
        assert (found - exact).abs().max() < 16 * torch.finfo().eps * exact.abs().max()


def test_the_student_is_used_as_any_other(tagged):
    tagger = pipeline(
        "token-classification",
        model=AutoModelForTokenClassification.from_pretrained(tagged.student),
        tokenizer=AutoTokenizer.from_pretrained(tagged.student),
        device="cpu",
    )
    assert tuple(tagger.model.config.id2label.values()) == TAGS
    assert {found["entity"] for found in tagger("lantern off kitchen")} <= set(TAGS)


def test_killed_while_training(tagged, known_teacher, recipe, monkeypatch):
    longer = ["=".join(setting) for setting in LONGER.items()]
    command = [sys.executable, killed_training_job.__file__, str(recipe), *longer]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    monkeypatch.setattr("mkd_fast.train.finetune.fit", pytest.fail)
    monkeypatch.setattr("mkd_fast.train.run.copied_student", pytest.fail)
    result = mkd_fast.distill(recipe, LONGER)
    for name in ("copied", STUDENT, "scratch"):
        assert weights(result.folder / name) == weights(tagged.folder / name)
    for name in ("languages.csv", "data/train.jsonl", "cache/shard-00000.safetensors"):
        assert (result.folder / name).read_bytes() == (tagged.folder / name).read_bytes()
    rows = metric_rows(tagged.folder / "metrics.jsonl")
    assert metric_rows(result.folder / "metrics.jsonl") == rows
    assert [r.scores for r in result.results] == [r.scores for r in tagged.results]


@pytest.mark.usefixtures("known_teacher")
@pytest.mark.parametrize(
    "change",
    [
        {"loss.divergence": "logit_mse", "loss.hidden_weight": "0.0"},
        {"capture.keep": "topk:3"},
        {"capture.hidden_dtype": "int8"},
        {"student.vocabulary": "all", "student.num_layers": "1"},
    ],
    ids=lambda change: " ".join(change.values()),
)
def test_other_recipes(recipe, change):
    run = Run(load(recipe, {**LONGER, **change, **NO_RIVAL, "train.epochs": "1"}))
    run.trained(STUDENT)
    rows = metric_rows(run.metrics_path)
    assert all(row["kd"] > 0 for row in rows)
    assert all((row["hidden"] > 0) == (run.config.loss.hidden_weight > 0) for row in rows)


def test_a_streamed_teacher_says_the_same(recipe, tmp_path):
    folder = tmp_path / "tagger"
    encoder = str(tmp_path / "encoder")
    auto_class = "AutoModelForTokenClassification"
    model = models.load_classifier(encoder, TAGS, seed=1, auto_class=auto_class)
    models.save_folder(folder, model, models.load_tokenizer(encoder))
    ready = {"teacher.model": str(folder), "teacher.finetuned": "true"}
    whole = Run(load(recipe, {**ready, "run.folder": str(tmp_path / "whole")})).cache
    ready |= {"run.folder": str(tmp_path / "streamed"), "capture.max_memory": "1MiB"}
    streamed = Run(load(recipe, ready)).cache
    assert {path.name: path.read_bytes() for path in streamed.path.iterdir()} == {
        path.name: path.read_bytes() for path in whole.path.iterdir()
    }


@pytest.mark.usefixtures("known_teacher")
def test_words_that_are_cut_are_told_and_count_as_outside(recipe, capsys):
    run = Run(load(recipe, {"data.max_length": "4"}))
    (score, *_) = run.result("teacher").scores.seen
    said = capsys.readouterr().out.replace("\n", " ")
    assert "data: in the test, 33 of 99 words have no piece within data.max_length = 4" in said
    assert score.values["span_recall"] < 1  # some rooms are cut, and cannot be found


@pytest.mark.usefixtures("known_teacher")
def test_types_that_are_not_asked_for_are_told(recipe, capsys):
    run = Run(load(recipe, {"data.entity_types": '["ROOM"]'}))
    assert run.corpus.train.label_names == ("O", "B-ROOM", "I-ROOM")
    said = capsys.readouterr().out.replace("\n", " ")
    assert "words in entities of other types than ROOM count as O" in said
    assert Run(run.config).corpus.train.fingerprint == run.corpus.train.fingerprint
    assert "count as O" not in capsys.readouterr().out


def test_what_continues_no_entity_is_told(recipe, capsys):
    path = recipe.parent / "train.jsonl"
    path.write_text(path.read_text().replace('"B-LAMP", "I-LAMP"', '"O", "I-LAMP"', 3))
    _ = Run(load(recipe)).corpus
    said = capsys.readouterr().out.replace("\n", " ")
    assert "data: WARNING, 3 tags I- continue no entity" in said


@pytest.mark.usefixtures("known_teacher")
def test_packed_steps_cost_what_padded_ones_do(recipe):
    """Logits and hidden states of packed rows meet the cache's targets of the same samples."""
    run = Run(load(recipe, {**LONGER, **NO_RIVAL}))
    student = run._loaded(run.copied).eval()
    tasks = [
        run._distill_task(student, replace(run.config.train, packing=packing), run.config.loss)
        for packing in (0, 16)
    ]
    rows = tasks[1].batches(0)[0]
    padded, packed = (task.loss(student, task.read(rows)) for task in tasks)
    budget = 64 * torch.finfo().eps
    for ours, wanted in zip(vars(packed).values(), vars(padded).values(), strict=True):
        assert ours.item() == pytest.approx(wanted.item(), rel=budget)
    learner = run.kind.label_task(run.teacher_text, 8, 0, Feeding(row_tokens=16))
    plain = run.kind.label_task(run.teacher_text, 8, 0)
    teacher = run._loaded(run.teacher_folder).eval()
    found, wanted = (task.loss(teacher, task.read(rows)).loss for task in (learner, plain))
    assert found.item() == pytest.approx(wanted.item(), rel=budget)
