"""Runs side by side: what differs is shown, what does not compare is not compared."""

import json
import math
import re
import shutil

import pytest
from cli_call import assert_told, call

from mkd_fast.evaluate.scores import LanguageScore
from mkd_fast.sharing.compare import difference


def score(value, low, high):
    return LanguageScore("xx", 10, {"accuracy": value}, (low, high))


@pytest.fixture
def other(finished, tmp_path):
    """The same run under another setting."""
    folder = tmp_path / "other"
    ignored = shutil.ignore_patterns("cache", "*.safetensors", "*.png")
    shutil.copytree(finished, folder, ignore=ignored)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["train"]["learning_rate"] = 0.125
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def page_of(tmp_path, *runs):
    out = tmp_path / "pages" / "page.html"
    result = call("report", *runs, "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    return out.read_text()


def test_settings_scores_and_curves_are_on_one_page(finished, other, tmp_path):
    page = page_of(tmp_path, finished, other)
    assert "train.learning_rate" in page
    assert "0.125" in page
    assert "run.folder" not in page
    assert re.search(r"<td>other - run</td><td>3</td><td>\+0</td><td>-[\d.]+</td>", page)
    assert page.count("<svg") == 1
    assert "src=" not in page  # it needs no other file
    assert "finished" in page


def test_unfinished_runs_say_how_far_they_are(finished, begun, tmp_path):
    page = page_of(tmp_path, finished, begun)
    assert "begun: unfinished: trained student at step 2 of " in page
    alone = page_of(tmp_path, begun)
    assert "No student is scored yet." in alone


def test_other_test_text_is_not_compared(finished, other, tmp_path):
    with (other / "data" / "test.jsonl").open("a") as file:
        file.write("{}\n")
    page = page_of(tmp_path, finished, other)
    assert "other was tested on other text than run" in page
    assert "other - run" not in page


def test_a_folder_of_something_else_is_refused(tmp_path):
    assert_told(call("report", tmp_path, "--out", tmp_path / "x.html"), "no run.json")


def test_distances_to_the_bounds_add_in_squares():
    mean, low, high = difference([score(0.8, 0.5, 0.9)], [score(0.6, 0.5, 1.0)], "accuracy")
    assert mean == pytest.approx(0.2)
    assert low == pytest.approx(0.2 - 0.5)  # 0.3 and 0.4
    assert high == pytest.approx(0.2 + math.hypot(0.1, 0.1))


def test_more_languages_narrow_it_by_their_root():
    one = difference([score(0.5, 0.4, 0.6)], [score(0.5, 0.4, 0.6)], "accuracy")
    four = difference([score(0.5, 0.4, 0.6)] * 4, [score(0.5, 0.4, 0.6)] * 4, "accuracy")
    assert four[2] == pytest.approx(one[2] / 2)
