"""``mkd-fast``: the stages one by one and at once, and bad input told in one line."""

import json
import re
import signal
import subprocess
import sys
from importlib import metadata

import pytest
import tiny_job
from cli_call import assert_told, call
from file_limit import file_size_limit
from one_thread import one_thread as one_thread
from tiny_problem import metric_rows
from typer.testing import CliRunner

from mkd_fast.cli import app
from mkd_fast.losses import ops
from mkd_fast.train import checkpoint, models
from mkd_fast.train.config import load
from mkd_fast.train.run import Run

HINT = "Stopped. The same command goes on from the last checkpoint."


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))


@pytest.fixture
def recipe(tmp_path):
    return tiny_job.write_job(tmp_path)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_stage_by_stage_is_all_at_once(recipe, tmp_path):
    at_once, apart = tmp_path / "at_once", tmp_path / "apart"
    everything = call("distill", recipe, run__folder=at_once)
    assert everything.exit_code == 0, everything.output
    assert "trained student" in everything.stdout
    made = {"capture": "cache", "student": "copied", "train": "scratch", "evaluate": "report.md"}
    for number, command in enumerate(made):
        result = call(command, recipe, run__folder=apart)
        assert result.exit_code == 0, (result.output, result.exception)
        there = [(apart / name).exists() for name in made.values()]
        assert there == [other <= number for other in range(len(made))]
    assert metric_rows(at_once / "metrics.jsonl") == metric_rows(apart / "metrics.jsonl")
    first, second = contents(at_once), contents(apart)
    assert first.keys() == second.keys()
    timed = {"run.json", "metrics.jsonl", "summary.csv", "report.md"}
    timed |= {"fits/student.json", "fits/scratch.json", "student/README.md", "scratch/README.md"}
    for name in first.keys() - timed:
        assert first[name] == second[name], name


def test_settings_reach_the_run(recipe, tmp_path):
    result = call("student", recipe, student__depth="[0, 3]", student__vocabulary="all")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["student"]["depth"] == [0, 3]
    assert config["student"]["vocabulary"] == "all"
    assert "layers 0 3 of the teacher" in result.stdout


def test_student_says_what_came_from_where_as_often_as_it_is_asked(recipe, tmp_path):
    settings = {"student__depth": "importance", "student__calibration_texts": 7}
    first, again = (call("student", recipe, **settings) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0), first.output
    assert "rank layers 7/7" in first.stdout
    assert "rank layers" not in again.stdout
    origins = (tmp_path / "run" / "copied" / "origins.md").read_text()
    summary, _, tensors = origins.partition("\n## Every tensor\n")
    assert summary in first.stdout
    assert summary in again.stdout
    assert re.search(r"\| word embeddings +\| +[\d,]+ \| +[\d,]+ \|", summary)
    assert re.search(r"\| teacher layer +\| change of hidden states +\| kept \|", summary)
    assert re.search(r"\| `bert.encoder.layer.\*` +\| layers( \d)+ +\| copied +\| +32 \|", summary)
    scores = json.loads((tmp_path / "run" / "layer_scores.json").read_text())
    kept = sorted(sorted(range(4), key=lambda layer: -scores[layer])[:2])
    assert summary.startswith(f"Teacher layers kept: {' '.join(map(str, kept))}\n")
    assert f"`bert.encoder.layer.{kept[1]}.output.dense.weight`" in tensors


def test_a_recipe_asks_for_a_narrower_student(recipe, tmp_path):
    sizes = {"student__hidden_size": 16, "student__intermediate_size": 8}
    result = call("student", recipe, **sizes, student__calibration_texts=7, loss__hidden_weight=0)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "copied" / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"]) == (16, 8)
    assert "residual units (activation 16 of 32)" in result.stdout
    elsewhere = {"run__folder": str(tmp_path / "other"), "loss__hidden_weight": 1}
    refused = call("student", recipe, **sizes, **elsewhere)
    assert refused.exit_code != 0
    assert "student.hidden_size must be left out where hidden states are matched" in refused.output


def empty_file(folder):
    (folder / "train.jsonl").write_text("")


def without_labels(folder):
    tiny_job.write_rows(folder / "train.jsonl", [{"text": "a", "language": "en"}] * 2)


def label_only_in_test(folder):
    row = {"text": "a", "label": "blink", "language": "en"}
    tiny_job.write_rows(folder / "test.jsonl", [row])


def language_with_one_example(folder):
    rows = tiny_job.sentences(("en",), ("lamp",))
    tiny_job.write_rows(folder / "train.jsonl", [*rows, {**rows[0], "language": "sw"}])


def not_utf8(folder):
    (folder / "train.jsonl").write_bytes(b'{"text": "k\xfcche", "label": "on", "language": "de"}\n')


def recipe_with_a_typo(folder):
    with (folder / "recipe.toml").open("a") as file:
        file.write("epoch = 3\n")


def recipe_not_toml(folder):
    (folder / "recipe.toml").write_text("[run\n")


def encoder_without_config(folder):
    (folder / "encoder" / "config.json").unlink()


def encoder_of_no_kind(folder):
    (folder / "encoder" / "config.json").write_text("{}")


def encoder_cut_off(folder):
    path = folder / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


def nothing(folder):
    pass


@pytest.mark.parametrize(
    ("damage", "settings", "words"),
    [
        (nothing, {"data__train": "absent.jsonl"}, ["got absent.jsonl, which does not exist"]),
        (nothing, {"data__train": "''"}, ["data.train must be given"]),
        (empty_file, {}, ["train.jsonl"]),
        (without_labels, {}, ["train.jsonl must have a column 'label'", "language"]),
        (label_only_in_test, {}, ["test.jsonl", "'blink'"]),
        (language_with_one_example, {}, ["train.jsonl", "sw"]),
        (not_utf8, {}, ["train.jsonl", "UTF-8", "line 1"]),
        (recipe_with_a_typo, {}, ["[train]: keys must be known, got 'epoch'. Did you mean"]),
        (recipe_not_toml, {}, ["recipe.toml must be TOML"]),
        (nothing, {"train__epochs": "few"}, ["epochs must be int, got 'few'"]),
        (nothing, {"epochs": "3"}, ["--set takes section.key=value, got 'epochs'"]),
        (nothing, {"run__device": "gpu"}, ["run.device must be a device of this machine"]),
        (nothing, {"data__seen": '["xx"]'}, ["languages must occur in the text", "xx"]),
        (nothing, {"finetune__freeze": '["bret"]'}, ["freeze must name parameters", "'bret'"]),
        (nothing, {"data__max_length": "2"}, ["max_length"]),
        (nothing, {"student__num_layers": "9"}, ["num_layers", "got 9"]),
        (
            nothing,
            {"student__num_layers": "9", "student__depth": "importance"},
            ["num_layers must lie in [1, 4], the teacher's layers, got 9"],
        ),
        (encoder_without_config, {}, ["a model folder must have a config.json"]),
        (encoder_of_no_kind, {}, ["encoder must be a model that transformers can load"]),
        (encoder_cut_off, {}, ["encoder must be a model that transformers can load"]),
        (nothing, {"teacher__model": "./absent"}, ["absent, which does not exist"]),
        (nothing, {"teacher__model": "nobody/nothing"}, ["nobody/nothing must be a model that"]),
    ],
)
def test_bad_input_is_told_in_one_line(recipe, damage, settings, words):
    damage(recipe.parent)
    assert_told(call("distill", recipe, **settings), *words)


def test_a_recipe_that_is_not_there(tmp_path):
    assert_told(call("distill", tmp_path / "absent.toml"), "absent.toml must be a recipe")


def test_a_setting_without_a_value(recipe):
    result = CliRunner().invoke(app, ["train", str(recipe), "--set", "train.epochs"])
    assert_told(result, "--set takes section.key=value, got 'train.epochs'. Add =value.")


def test_another_recipe_in_the_same_folder(recipe):
    assert call("student", recipe).exit_code == 0
    assert_told(call("train", recipe, run__seed=1), "run.seed: was 0, is 1", "run.folder=")


def test_a_cache_of_another_teacher(recipe, tmp_path):
    """The teacher's folder holds another model by the time its cache is asked for."""
    folder = tmp_path / "classifier"
    tokenizer = models.load_tokenizer(str(tmp_path / "encoder"))
    model = models.load_classifier(str(tmp_path / "encoder"), tiny_job.LABELS)
    models.save_folder(folder, model, tokenizer)
    settings = {"teacher__model": folder, "teacher__finetuned": "true"}
    assert call("capture", recipe, **settings).exit_code == 0
    other = models.load_classifier(str(tmp_path / "encoder"), tiny_job.LABELS, seed=1)
    other.save_pretrained(folder)
    assert_told(call("train", recipe, **settings), "cache must be of teacher '", "got teacher '")


def test_a_run_below_a_file_cannot_be_written(recipe, tmp_path):
    (tmp_path / "file").touch()
    for folder in ("file", "file/run"):
        result = call("distill", recipe, run__folder=tmp_path / folder)
        assert_told(result, f"{tmp_path / folder} must be a folder that can be written")


def test_a_disk_without_room(recipe, tmp_path):
    """Each file that does not fit is named, and with room the same commands go on."""
    run, teachers = tmp_path / "run", tmp_path / "home" / "teachers"

    def assert_no_room(command, size, words):
        with file_size_limit(size):
            result = call(command, recipe)
        assert_told(result, words, "File too large", "Make room")

    assert_no_room("capture", 100, f"{run / 'run.json'} must be written whole, ")
    Run(load(recipe))  # which has room for run.json, and so the next has
    assert_no_room("capture", 1_000, f"{run / 'data' / 'train.jsonl'} must be written whole, ")
    assert_no_room("capture", 60_000, "checkpoint.pt must be written whole, ")
    assert list(teachers.glob("*/model")) == []
    assert Run(load(recipe)).finetuned.folder in teachers.glob("*/model")
    assert_no_room("capture", 20_000, "shard-00000.safetensors must be written whole, ")
    assert_no_room("student", 50_000, f"{run / 'copied'} must be a folder that can be written, ")
    assert_no_room("train", 100_000, f"{run}/checkpoints/student.pt must be written whole, ")
    assert call("train", recipe).exit_code == 0
    assert_no_room("evaluate", 30_000, f"{run} must be a folder that can be written, ")
    assert call("evaluate", recipe).exit_code == 0


def test_ctrl_c(recipe, tmp_path, monkeypatch):
    save = checkpoint.save

    def interrupted(path, *arguments):
        save(path, *arguments)
        if path.name == "student.pt":
            signal.raise_signal(signal.SIGINT)

    # a shell's background job, as CI may be, starts with the signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", interrupted)
            result = call("distill", recipe)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert result.stderr.strip() == HINT
    assert (tmp_path / "run" / "checkpoints" / "student.pt").exists()
    assert call("train", recipe).exit_code == 0


def test_a_bug_shows_where_it_is(recipe, monkeypatch):
    def buggy(*_, **__):
        raise ValueError("not worded by us")

    monkeypatch.setattr("mkd_fast.train.run_cache.capture", buggy)
    result = call("capture", recipe)
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert result.stderr == ""


def test_info():
    result = call("info")
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert ["torch", metadata.version("torch")] in lines
    assert [line[0] for line in lines if len(line) == 1] == ["versions", "devices", "kernels"]
    assert re.search(r"^  cpu +\S+, \d+ cores", result.stdout, re.MULTILINE)


def test_info_says_why_there_are_no_kernels(monkeypatch):
    reason = "the package was built without a C++ compiler or without torch at hand"
    monkeypatch.setattr(ops, "missing_kernels", lambda device_type: reason)
    assert f"  cpu (C++)      not built: {reason}\n" in call("info").stdout


def test_no_command_shows_them_all():
    result = CliRunner().invoke(app, [])
    for command in ("distill", "capture", "student", "train", "evaluate", "info"):
        assert command in result.output


def test_as_a_process_of_its_own(recipe):
    recipe_with_a_typo(recipe.parent)
    command = [sys.executable, "-m", "mkd_fast", "distill", str(recipe)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    message = f"error: {recipe}: [train]: keys must be known, got 'epoch'. Did you mean 'epochs'?\n"
    assert ran.stderr == message
