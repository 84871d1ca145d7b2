"""The whole job on a tiny input: what it leaves, and what other recipes change."""

import csv
import gc
import json
import subprocess
import sys
from importlib import metadata

import pytest
import tiny_job
import torch
from tiny_job import weights
from tiny_problem import metric_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import mkd_fast
from mkd_fast.student import TokenMap
from mkd_fast.teacher import TeacherCache
from mkd_fast.train import models
from mkd_fast.train.config import load
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import STUDENT
from mkd_fast.train.stages import train

MODELS = ["teacher", "copied, untrained", "trained student", "from scratch"]
TEXTS = ["darken kitchen lamp", "washa jiko light"]
NO_RIVAL = {"scratch.enabled": "false"}


class Stopped(BaseException):
    """What Ctrl-C raises is no Exception either."""


@pytest.fixture
def ready_teacher(tmp_path):
    """A classifier of the labels, in an order of its own."""
    folder = tmp_path / "classifier"
    encoder = tiny_job.write_encoder(tmp_path / "encoder")
    model = models.load_classifier(str(encoder), ("on", "off", "dim"), seed=1)
    models.save_folder(folder, model, models.load_tokenizer(str(encoder)))
    return folder


def test_every_file_is_there(finished):
    found = json.loads((finished.folder / "run.json").read_text())
    assert found["config"]["loss"]["temperature"] == 2.0
    assert found["versions"]["torch"] == metadata.version("torch")
    assert {"devices", "kernels"} <= set(found)
    for plot in ("loss_curves.png", "accuracy.png", "size.png"):
        assert (finished.folder / plot).read_bytes().startswith(b"\x89PNG\r\n")
    report = (finished.folder / "report.md").read_text()
    for words in (*MODELS, "seen languages", "unseen languages", "sw"):
        assert words in report
    origins = (finished.folder / "copied" / "origins.md").read_text()
    assert origins.startswith("Teacher layers kept: 1 3\n")
    assert finished.student == finished.folder / "student"
    assert not list((finished.folder / "checkpoints").iterdir())


def test_every_model_is_scored_in_every_language(finished):
    with (finished.folder / "languages.csv").open() as file:
        rows = [
            (r["model"], r["language"], r["group"], r["num_samples"]) for r in csv.DictReader(file)
        ]
    languages = [("de", "seen", "12"), ("en", "seen", "12"), ("sw", "unseen", "9")]
    assert rows == [(model, *language) for model in MODELS for language in languages]
    with (finished.folder / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [row["model"] for row in summary] == MODELS
    assert [bool(row["train_seconds"]) for row in summary] == [True, False, True, True]
    teacher, copied, student, scratch = (int(row["layer_parameters"]) for row in summary)
    assert copied == student == scratch < teacher
    assert [result.scores.model for result in finished.results] == MODELS


def test_every_step_is_written_down(finished):
    rows = metric_rows(finished.folder / "metrics.jsonl")
    ends = [2, 3, 4, 6, 8, 9, 10, 12]
    assert [(row["model"], row["step"]) for row in rows] == [
        (model, step) for model in MODELS[2:] for step in ends
    ]
    for row in rows:
        assert row["loss"] == pytest.approx(row["kd"] + 0.5 * row["ce"] + row["hidden"], rel=1e-5)
        assert (row["hidden"] > 0) == (row["model"] == "trained student")


PLAIN = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mkd_fast":
            raise ImportError("this process has never heard of it")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
inputs = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
print(json.dumps([model(**inputs).logits.tolist(), model.config.id2label]))
"""


def test_the_student_loads_where_mkd_fast_is_not(finished, tmp_path):
    command = [sys.executable, "-c", PLAIN, str(finished.student), json.dumps(TEXTS)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    logits, labels = json.loads(ran.stdout)
    inputs = AutoTokenizer.from_pretrained(finished.student)(
        TEXTS, padding=True, return_tensors="pt"
    )
    model = AutoModelForSequenceClassification.from_pretrained(finished.student)
    assert torch.equal(torch.tensor(logits), model(**inputs).logits)
    assert labels == {"0": "dim", "1": "off", "2": "on"}


@pytest.mark.usefixtures("known_teacher")
@pytest.mark.parametrize(
    ("change", "keep", "hidden_layers", "layers"),
    [
        ({"loss.hidden_weight": "0.0"}, "logits", (), (1, 3)),
        ({"capture.keep": "topk:2", "loss.hidden_weight": "0.0"}, "topk:2", (), (1, 3)),
        ({"capture.keep": "topk:2"}, "topk:2", (2, 4), (1, 3)),
        (
            {"loss_schedule.hidden_weight": "['linear', 0.5]", "loss.hidden_weight": "0.0"},
            "logits",
            (2, 4),
            (1, 3),
        ),
        ({"student.depth": "[0, 2, 3]"}, "logits", (1, 3, 4), (0, 2, 3)),
        ({"student.depth": "first", "student.num_layers": "1"}, "logits", (1,), (0,)),
        ({"student.vocabulary": "all"}, "logits", (2, 4), (1, 3)),
        ({"student.coverage": "0.8", "loss.hidden_weight": "0.0"}, "logits", (), (1, 3)),
        (
            {"data.text_prefix": "query: ", "finetune.freeze": "['embeddings']"},
            "logits",
            (2, 4),
            (1, 3),
        ),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_other_recipes(finished, recipe, change, keep, hidden_layers, layers):
    run = Run(load(recipe, {**change, **NO_RIVAL}))
    train(run)
    summary = TeacherCache.open(run.folder / "cache").summary()
    assert (summary.keep, summary.hidden_layers) == ((keep,), hidden_layers)
    assert summary.temperatures == ((2.0,) if keep == "topk:2" else ())
    teacher = models.load_classifier(run.teacher_folder, run.corpus.train.label_names)
    copied, trained = (
        models.load_classifier(str(run.folder / n), ("a", "b", "c")) for n in ("copied", STUDENT)
    )
    assert len(copied.bert.encoder.layer) == len(layers)
    for ours, theirs in enumerate(layers):
        wanted = teacher.bert.encoder.layer[theirs].state_dict()
        found = copied.bert.encoder.layer[ours].state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert not torch.equal(
            trained.bert.encoder.layer[ours].output.dense.weight,
            copied.bert.encoder.layer[ours].output.dense.weight,
        )
    cut = copied.config.vocab_size < teacher.config.vocab_size
    assert cut == (run.config.student.vocabulary == "used")
    for folder in ("copied", STUDENT):
        token_map = TokenMap.load(run.folder / folder)
        kept = None if token_map is None else len(token_map.keep_token_ids)
        assert kept == (copied.config.vocab_size if cut else None)
    hidden = [row["hidden"] for row in metric_rows(run.metrics_path)]
    assert all(value > 0 for value in hidden) if hidden_layers else not any(hidden)


def test_a_teacher_that_is_ready_is_used_as_it_is(recipe, ready_teacher, home):
    before = weights(ready_teacher)
    change = {"teacher.model": str(ready_teacher), "teacher.finetuned": "true"}
    change |= {
        "loss_schedule.hidden_weight": "['cosine', 0.0]",
        "loss_schedule.ce_weight": "['linear', 1.0]",
    }
    result = mkd_fast.distill(recipe, change)
    assert weights(ready_teacher) == before
    assert not home.exists()
    teacher, *_, scratch = result.results
    assert teacher.train_seconds is None
    assert scratch.train_seconds > 0
    config = models.load_classifier(str(result.student), ("on", "off", "dim")).config
    assert models.labels_of(str(result.student)) == ("on", "off", "dim")
    assert config.num_hidden_layers == 2
    rows = metric_rows(result.folder / "metrics.jsonl")
    assert {row["model"] for row in rows} == {*MODELS[2:]}
    trained = [row for row in rows if row["model"] == MODELS[2]]
    for name, start, end in (("hidden_weight", 1.0, 0.0), ("ce_weight", 0.5, 1.0)):
        moved = [abs(row[name] - start) for row in trained]
        assert moved == sorted(moved)
        assert 0 < moved[0] < moved[-1] < abs(end - start)
    others = [row for row in rows if row["model"] == MODELS[3]]  # match no states, at any step
    assert all("hidden_weight" not in row and "ce_weight" in row for row in others)


def test_a_streamed_teacher_says_the_same(recipe, ready_teacher, tmp_path, capsys):
    """Memory decides how the teacher runs: the cache is the same, and so is the run."""
    ready = {"teacher.model": str(ready_teacher), "teacher.finetuned": "true"}
    whole = Run(load(recipe, {**ready, "run.folder": str(tmp_path / "whole")})).cache
    ready["run.folder"] = str(tmp_path / "streamed")
    streamed = Run(load(recipe, {**ready, "capture.max_memory": "1MiB"}))
    assert {path.name: path.read_bytes() for path in streamed.cache.path.iterdir()} == {
        path.name: path.read_bytes() for path in whole.path.iterdir()
    }
    assert "capture: layer by layer, 4 of them, in 1,048,576 bytes" in capsys.readouterr().out
    again = Run(load(recipe, ready))
    assert len(again.cache) == len(whole)


@pytest.mark.parametrize("size", ["2 gigabytes", "GiB", "-1GiB", "1GB", "1iB"])
def test_sizes_without_a_unit_are_told(recipe, size):
    with pytest.raises(ValueError, match=r"max_memory must be a number of bytes with its unit"):
        load(recipe, {"capture.max_memory": size})


def test_a_cache_of_another_teacher_is_noticed(recipe, ready_teacher):
    change = {"teacher.model": str(ready_teacher), "teacher.finetuned": "true"}
    _ = Run(load(recipe, change)).cache
    model = models.load_classifier(str(ready_teacher), ("on", "off", "dim"))
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(ready_teacher)
    with pytest.raises(ValueError, match="cache must be of teacher '") as caught:
        _ = Run(load(recipe, change)).cache
    assert "got teacher '" in str(caught.value)


def test_no_teacher_is_in_memory_while_the_student_trains(recipe, monkeypatch):
    def layers_of_models():
        return sorted(
            found.config.num_hidden_layers
            for found in gc.get_objects()
            if type(found).__name__ == "BertForSequenceClassification"
        )

    gc.collect()
    before, seen = layers_of_models(), []

    def fit(model, *args, **kwargs):
        seen.append(layers_of_models())
        raise Stopped

    monkeypatch.setattr("mkd_fast.train.run.fit", fit)
    with pytest.raises(Stopped):
        mkd_fast.distill(recipe)
    assert seen == [sorted([*before, 2])]  # the student's layers; the teacher has four


def test_leaks_are_told(recipe, capsys):
    folder = recipe.parent
    with (folder / "test.jsonl").open("a") as file:
        file.write((folder / "train.jsonl").read_text().splitlines()[0] + "\n")
    _ = Run(load(recipe)).corpus
    assert "WARNING, 1 test sentences also occur in training" in capsys.readouterr().out
