"""A whole study on a tiny input: what it leaves, and how it goes on."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tiny_job
import tiny_study
import torch
from tiny_study import NUM_CELLS, NUM_PROBES, rows_of, without_clock

from mkd_fast.study import run as running
from mkd_fast.study.records import only_process
from mkd_fast.study.results import read_results
from mkd_fast.study.run import predict, study

LANGUAGES = {"de": 6, "en": 6, "sw": 9}


class Stopped(BaseException):
    """What Ctrl-C raises is no Exception either."""


def test_each_cell_once_with_everything_that_a_report_needs(finished):
    rows = rows_of(finished.folder)
    assert (finished.num_cells, finished.num_finished) == (NUM_CELLS, NUM_CELLS)
    assert (finished.num_failed, finished.num_stale, finished.seconds_left) == (0, 0, 0.0)
    assert len({row["key"] for row in rows}) == len(rows) == NUM_CELLS
    info = json.loads((finished.folder / "study.json").read_text())
    assert info["keys"] == [row["key"] for row in rows]
    assert (info["seen"], info["unseen"]) == (["de", "en"], ["sw"])
    assert (info["task"], info["metric"]) == ("sequence_classification", "accuracy")
    for row in rows:
        assert row["num_train"] == {1.0: 48, 0.25: 12}[row["fraction"]]
        assert row["steps"] == {1.0: 12, 0.25: 5}[row["fraction"]]
        assert row["epochs"] == pytest.approx(row["steps"] * 8 / row["num_train"])
        assert [point["step"] for point in row["curve"]] == {12: [0, 3, 6, 12], 5: [0, 2, 3, 5]}[
            row["steps"]
        ]
        assert row["curve"][-1]["tokens"] == row["tokens"] > 0
        assert row["layers"] == {"stride": [1, 3], "first": [0, 1]}[row["depth"]]
        assert {name: score["n"] for name, score in row["scores"].items()} == LANGUAGES
        assert row["probe"][str(row["learning_rate"])] == max(row["probe"].values())
        assert (row["before"] is not None) == (row["start"] == "finetuned")
        assert row["bytes"] == 4 * row["parameters"]
        assert {"commit", "versions", "device", "seconds", "wall_seconds"} <= set(row)
        for language, digits in row["correct"].items():
            right = bin(int(digits, 16)).count("1")
            assert row["scores"][language]["accuracy"] == pytest.approx(right / LANGUAGES[language])
    assert len({row["parameters"] for row in rows}) == 1


def test_seeds_are_outermost_and_cheap_cells_come_first(finished):
    order = [(row["seed"], row["steps"]) for row in rows_of(finished.folder)]
    assert order == sorted(order)


def test_every_rate_is_tried_for_every_start_and_objective(finished):
    rows = rows_of(finished.folder, "probes")
    tried = Counter((row["start"], row["objective"]) for row in rows)
    assert len(rows) == NUM_PROBES
    assert set(tried.values()) == {2}
    assert all(row["steps"] == 4 and row["fraction"] == 1.0 for row in rows)


def test_the_teacher_is_tested_as_a_student_is(finished):
    row = json.loads((finished.folder / "teacher.json").read_text())
    groups = json.loads((finished.folder / "groups.json").read_text())
    assert {name: score["n"] for name, score in row["scores"].items()} == LANGUAGES
    assert {name: len(found) for name, found in groups.items()} == LANGUAGES
    assert 0.0 <= row["dev"] <= 1.0
    assert row["parameters"] > rows_of(finished.folder)[0]["parameters"]


def test_a_copy_is_worth_more_than_random_weights(finished):
    """Three times twelve steps are enough to see on which side of chance a student is."""
    by_start = {}
    for row in rows_of(finished.folder):
        if row["fraction"] == 1.0 and row["depth"] == "stride":
            by_start.setdefault(row["start"], []).append(row["curve"][-1]["loss"])
    assert max(by_start["finetuned"]) < min(by_start["scratch"])


def test_called_again_it_redoes_nothing(finished, monkeypatch):
    for work in ("run_cell", "run_probe", "score_copy", "score_teacher"):
        monkeypatch.setattr(running, work, pytest.fail)
    before = (finished.folder / "cells.jsonl").read_bytes()
    assert study(finished.folder.parent / "recipe.toml") == finished
    assert (finished.folder / "cells.jsonl").read_bytes() == before


KILLED = """
import os, signal, sys
import torch
from mkd_fast.study import run as running
torch.set_num_threads(1)
run_cell, cells = running.run_cell, []
def killing(*arguments):
    row = run_cell(*arguments)
    cells.append(row)
    if len(cells) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return row
running.run_cell = killing
running.study(sys.argv[1], {"study.seeds": "[0]"})
"""


def test_killed_and_called_again_it_ends_as_if_it_had_not_been(finished, recipe):
    command = [sys.executable, "-c", KILLED, str(recipe)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    folder = recipe.parent / "run"
    kept = (folder / "cells.jsonl").read_bytes()
    assert kept.count(b"\n") == 2
    with (folder / "cells.jsonl").open("ab") as file:
        file.write(kept[:100])  # as if killed while a row was written
    state = study(recipe, {"study.seeds": "[0]"})
    assert state.num_finished == state.num_cells == NUM_CELLS // 2
    assert (folder / "cells.jsonl").read_bytes().startswith(kept)
    of_seed = [row for row in rows_of(finished.folder) if row["seed"] == 0]
    assert list(map(without_clock, rows_of(folder))) == list(map(without_clock, of_seed))


def test_another_grid_keeps_old_rows_as_stale(finished, recipe):
    few = {"study.seeds": "[0]", "study.objectives": '["kl"]', "study.depths": "[]"}
    few["study.min_steps"] = "6"
    first = study(recipe, {**few, "study.starts": '["finetuned"]'})
    assert (first.num_cells, first.num_stale) == (2, 0)
    second = study(recipe, {**few, "study.starts": '["scratch"]'})
    assert (second.num_cells, second.num_finished, second.num_stale) == (2, 2, 2)
    assert len(rows_of(first.folder)) == 4
    assert "2 stale rows" in str(second)
    results = read_results(second.folder)
    assert (len(results.cells), results.num_planned) == (2, NUM_CELLS)
    assert (results.planned["start"], results.planned["seed"]) == (("scratch", "finetuned"), (0, 1))
    longer = study(recipe, {**few, "study.starts": '["scratch"]', "train.epochs": "3"})
    # What has more sentences takes more steps; the other has min_steps as before.
    assert (longer.num_cells, longer.num_finished, longer.num_stale) == (2, 2, 3)


def test_a_budget_ends_a_call_between_two_cells(recipe):
    little = {"study.seeds": "[0]", "study.starts": '["scratch"]', "study.depths": "[]"}
    none = study(recipe, little, budget_seconds=1e-3)
    assert (none.num_finished, rows_of_or_none(none.folder)) == (0, [])
    assert none.seconds_left > 0
    assert predict(recipe, little).num_cells == 4
    rest = study(recipe, little, budget_seconds=3600.0)
    assert rest.num_finished == rest.num_cells == 4


def rows_of_or_none(folder):
    return rows_of(folder) if (folder / "cells.jsonl").exists() else []


def test_stopped_in_a_cell_it_goes_on_with_that_cell(recipe, monkeypatch):
    little = {"study.seeds": "[0]", "study.starts": '["scratch"]', "study.depths": "[]"}
    run_cell, calls = running.run_cell, []

    def stopping(*arguments):
        calls.append(arguments[1])
        if len(calls) == 2:
            raise Stopped
        return run_cell(*arguments)

    monkeypatch.setattr(running, "run_cell", stopping)
    with pytest.raises(Stopped):
        study(recipe, little)
    state = study(recipe, little)
    assert state.num_finished == state.num_cells == 4
    assert calls[1] == calls[2]
    assert len(calls) == 5


def test_a_cell_that_diverges_has_an_error_and_the_study_goes_on(recipe, monkeypatch):
    little = {"study.seeds": "[0]", "study.starts": '["scratch"]', "study.depths": "[]"}

    def diverging(*arguments, **keywords):
        if keywords["name"].endswith("labels, 1 of the text, seed 0") and "probes" in done:
            raise FloatingPointError("fit: loss must be finite, got NaN. Lower the rate.")
        return fit(*arguments, **keywords)

    from mkd_fast.study import cells

    fit, done = cells.fit, set()
    monkeypatch.setattr(cells, "fit", diverging)
    try_rates = running.Study._try_rates
    monkeypatch.setattr(
        running.Study, "_try_rates", lambda self: (try_rates(self), done.add("probes"))
    )
    state = study(recipe, little)
    assert (state.num_finished, state.num_failed) == (4, 1)
    (failed,) = [row for row in rows_of(state.folder) if "error" in row]
    assert failed["error"].startswith("fit: loss must be finite")
    assert (failed["objective"], failed["fraction"]) == ("labels", 1.0)
    assert "scores" not in failed
    assert study(recipe, little) == state


def test_one_process_at_a_time(finished):
    recipe = finished.folder.parent / "recipe.toml"
    with (
        only_process(finished.folder),
        pytest.raises(RuntimeError, match="one process at a time may run the study"),
    ):
        study(recipe)


def test_a_folder_of_other_files_is_left_alone(recipe):
    folder = recipe.parent / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=re.escape("'mine.txt' and no study.json")):
        study(recipe)
    assert os.listdir(folder) == ["mine.txt"]


def test_predicting_writes_nothing(recipe):
    state = predict(recipe)
    assert (state.num_cells, state.num_finished) == (NUM_CELLS, 0)
    assert state.seconds_left > 0
    assert not (recipe.parent / "run").exists()


def test_a_prediction_knows_what_is_finished(finished):
    recipe = finished.folder.parent / "recipe.toml"
    assert predict(recipe) == finished
    more = predict(recipe, {"study.seeds": "[0, 1, 2]"})
    assert (more.num_finished, more.num_cells) == (NUM_CELLS, NUM_CELLS * 3 // 2)


def test_a_study_of_tagged_words(tmp_path):
    """Spans are counted for each sentence, and the counts give the scores."""
    few = {"study.seeds": "[0]", "study.fractions": "[1.0]", "study.min_steps": "40"}
    objectives = '["kl_hidden", "hidden", "labels"]'
    recipe = tiny_study.write_study(tmp_path, kind="token_classification")
    state = study(recipe, {**few, "study.objectives": objectives, "finetune.epochs": "30"})
    assert state.num_finished == state.num_cells == 2 * 3 + 1
    assert state.num_failed == 0
    teacher = json.loads((state.folder / "teacher.json").read_text())
    assert teacher["dev"] > 0.5
    for row in (teacher, *rows_of(state.folder)):
        assert row["metric"] == "span_f1"
        assert set(row["scores"]) == set(row["correct"]) == set(LANGUAGES)
        for language, counts in row["correct"].items():
            assert {len(found) for found in counts.values()} == {LANGUAGES[language]}
            tp, fp, fn = (sum(counts[name]) for name in ("tp", "fp", "fn"))
            assert row["scores"][language]["span_f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    rows = [row for row in rows_of(state.folder) if row["start"] == "finetuned"]
    assert max(row["curve"][-1]["dev"] for row in rows) > 0.5


def assert_tokens_are_counted(row, metric):
    """The counts of each text give the scores."""
    assert row["metric"] == metric
    assert set(row["scores"]) == set(row["correct"]) == set(LANGUAGES)
    for language, counts in row["correct"].items():
        assert {len(found) for found in counts.values()} == {LANGUAGES[language]}
        assert all(np.less_equal(counts["right"], counts["tokens"]))
        scores = row["scores"][language]
        assert scores["n"] == LANGUAGES[language]
        assert scores[metric] == pytest.approx(sum(counts["right"]) / sum(counts["tokens"]))
        assert scores["perplexity"] > 1.0


def test_a_study_of_masked_text(tmp_path):
    """All starts, hidden states too; what is hidden is the same for all, the teacher included."""
    few = {
        "study.starts": '["scratch", "embeddings", "pretrained", "finetuned"]',
        "study.objectives": '["labels", "kl", "kl_hidden"]',
        "study.fractions": "[1.0]",
        "study.seeds": "[0]",
        "study.depths": "[]",
        "finetune.epochs": "30",
        "loss.temperature": "1.0",
    }
    recipe = tiny_study.write_study(tmp_path, kind="masked_lm")
    state = study(recipe, few)
    assert state.num_finished == state.num_cells == 4 * 3
    assert state.num_failed == 0
    teacher = json.loads((state.folder / "teacher.json").read_text())
    budget = 256 * torch.finfo().eps
    assert max(of["kl_to_teacher"] for of in teacher["scores"].values()) < budget
    rows = rows_of(state.folder)
    for row in (teacher, *rows):
        assert_tokens_are_counted(row, "masked_accuracy")
        for language, counts in row["correct"].items():
            assert counts["tokens"] == teacher["correct"][language]["tokens"]
    results = read_results(state.folder)
    seen = {arm.start: [] for arm in results.by_arm}
    for row in rows:
        seen[row["start"]].append(row["curve"][-1]["loss"])
    assert max(seen["finetuned"]) < min(seen["scratch"])
    assert results.teacher.dev > results.chance > 0.0
    lines = (state.folder / "cells.jsonl").read_text().splitlines(keepends=True)
    (state.folder / "cells.jsonl").write_text("".join(lines[:-1]) + lines[-1][:80])  # as if killed
    assert study(recipe, few) == state
    assert list(map(without_clock, rows_of(state.folder))) == list(map(without_clock, rows))


def test_a_study_of_text_that_is_read_in_order(tmp_path):
    """A model that has its head already: what "pretrained" starts from is the model as it is."""
    few = {
        "study.starts": '["pretrained"]',
        "study.objectives": '["kl"]',
        "study.fractions": "[1.0]",
        "study.seeds": "[0]",
        "study.depths": "[]",
        "train.head_rate": "10.0",
    }
    state = study(tiny_study.write_study(tmp_path, kind="causal_lm"), few)
    (row,) = rows_of(state.folder)
    assert_tokens_are_counted(row, "next_accuracy")
    assert json.loads((state.folder / "shared" / "head.json").read_text()) == []


def test_a_language_without_a_token_that_students_can_say_is_told(tmp_path):
    recipe = tiny_study.write_study(tmp_path, kind="masked_lm")
    rows = [{"text": word, "language": "sw"} for word in ("ukumbi", "jiko")]
    tiny_job.write_rows(tmp_path / "test.jsonl", rows)
    words = "some of the tokens to be said in each language, got none in sw. Name text in them"
    with pytest.raises(ValueError, match=re.escape(words)):
        study(recipe, {"data.vocabulary_text": '""', "study.objectives": '["labels"]'})
