"""``mkd-fast study`` as a command."""

import pytest
from cli_call import assert_told, call
from tiny_study import NUM_CELLS, rows_of

from mkd_fast.study import run as running

ONE = {"study__seeds": "[0]", "study__starts": '["scratch"]', "study__depths": "[]"}
HINT = "Stopped. The same command goes on with the cell that was at work."


def test_a_study_ends_with_its_report(finished, tmp_path):
    recipe = finished.folder.parent / "recipe.toml"
    result = call("study", recipe, "--out", tmp_path / "docs")
    assert result.exit_code == 0, result.output
    assert f"study: {NUM_CELLS} of {NUM_CELLS} cells finished" in result.stdout
    assert (tmp_path / "docs" / "index.html").exists()
    for name in ("cells.jsonl", "probes.jsonl", "study.json", "teacher.json", "groups.json"):
        copied = (tmp_path / "docs" / name).read_bytes()
        assert copied == (finished.folder / name).read_bytes()


def test_a_dry_run_says_what_is_missing_and_does_nothing(recipe):
    result = call("study", recipe, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"0 of {NUM_CELLS} cells finished, about " in result.stdout
    assert not (recipe.parent / "run").exists()


def test_a_budget_that_is_too_small_trains_nothing(recipe):
    result = call("study", recipe, "--budget", "0.001s", **ONE)
    assert result.exit_code == 0, result.output
    assert "the next piece of work would exceed the budget" in result.stdout
    assert "0 of 4 cells finished" in result.stdout
    assert not (recipe.parent / "run" / "report.md").exists()


def test_ctrl_c_says_how_to_go_on(recipe, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_cell", interrupt)
        result = call("study", recipe, **ONE)
    assert (result.exit_code, result.stderr.strip()) == (130, HINT)
    assert len(rows_of(recipe.parent / "run", "probes")) == 4
    assert call("study", recipe, **ONE).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "soon"], "--budget must be a time with its unit, got 'soon'"),
        (["--set", "study.seed=[0]"], "Did you mean 'seeds'?"),
        (["--set", "run.seeds=0"], "Did you mean 'seed'?"),
    ],
)
def test_bad_input_is_one_line(recipe, arguments, words):
    assert_told(call("study", recipe, *arguments), words)
