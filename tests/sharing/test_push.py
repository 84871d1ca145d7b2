"""What goes to the hub, and what does not."""

import types

import pytest
from cli_call import assert_told, call
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub, in place of asking it."""
    asked = {}

    class RepoUrl(str):
        repo_id = "me/name"

    def create_repo(self, repo_id, **options):
        asked["create"] = (repo_id, options)
        return RepoUrl("https://hub/me/name")

    def upload_folder(self, **options):
        asked["files"] = sorted(path.name for path in options["folder_path"].iterdir())
        asked["upload"] = options

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return types.SimpleNamespace(asked=asked)


def test_a_finished_student_goes_up_with_its_card(finished, hub):
    result = call("push", finished, "--repo", "name", "--private")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "https://hub/me/name"
    assert hub.asked["create"] == ("name", {"private": True, "exist_ok": True})
    assert hub.asked["upload"]["repo_id"] == "me/name"
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= {*hub.asked["files"]}


def test_an_unfinished_run_stays_here(begun, hub):
    result = call("push", begun, "--repo", "name")
    assert_told(result, "must be a finished run", "at step 2", "mkd-fast distill")
    assert hub.asked == {}


@pytest.mark.parametrize("name", ["studnet", "cache", "../finished"])
def test_only_trained_models_go(finished, hub, name):
    result = call("push", finished, "--repo", "name", "--model", name)
    assert_told(result, "must have the model", repr(name))


def test_other_folders_are_no_runs(tmp_path, hub):
    assert_told(call("push", tmp_path, "--repo", "name"), "no run.json")


def test_who_is_not_logged_in_is_told_how(finished, hub, monkeypatch):
    def refuse(self, repo_id, **options):
        raise LocalTokenNotFoundError("Token is required\nbut not found")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert_told(call("push", finished, "--repo", "name"), "hf auth login", "Token is required")
