"""A card tells what the run's files tell, and the hub can read it."""

import json

import pytest
from huggingface_hub import ModelCard

from mkd_fast.sharing.card import card_text, write_card
from mkd_fast.sharing.record import RunRecord


@pytest.fixture
def run(finished):
    return RunRecord.read(finished, "test")


def test_each_trained_model_has_one_and_others_have_none(finished):
    assert (finished / "student" / "README.md").exists()
    assert (finished / "scratch" / "README.md").exists()
    assert not (finished / "copied" / "README.md").exists()


def test_the_hub_reads_every_score(finished):
    card = ModelCard.load(finished / "student" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.language == ["de", "en", "sw"]
    assert card.data.base_model is None  # a folder of this machine is nothing to others
    scores = json.loads((finished / "scores" / "student.json").read_text())
    wanted = {
        (score["language"], name): pytest.approx(value, abs=1e-6)
        for group in ("seen", "unseen")
        for score in scores[group]
        for name, value in score["values"].items()
    }
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == wanted


def test_it_says_what_was_copied_from_where_and_how_it_was_trained(run):
    text = card_text(run, "student")
    fingerprints = json.loads((run.folder / "cache" / "manifest.json").read_text())["plan"]
    assert fingerprints["fingerprints"]["teacher"] in text
    assert "Teacher layers kept: " in text
    assert "divergence = forward_kl, temperature = 2.0" in text
    assert "learning_rate = 0.002" in text
    assert "AutoModelForSequenceClassification" in text
    assert ".." not in text.split("---")[-1].replace("...", "")
    assert "was cut to the tokens" in text


def test_the_rival_says_that_it_is_one(run):
    text = card_text(run, "scratch")
    assert "random weights" in text
    assert "What was copied" not in text


def test_a_hub_teacher_is_the_base_model(run):
    settings = {**run.settings, "teacher": {"model": "owner/name", "finetuned": True}}
    text = card_text(RunRecord(run.folder, {**run.record, "config": settings}), "student")
    assert "base_model: owner/name\n" in text


def test_of_an_unfinished_run_it_says_so(begun):
    run = RunRecord.read(begun, "test")
    assert "Not scored yet." in card_text(run, "student")
    assert run.state.startswith("unfinished: trained student at step 2 of ")


def test_it_is_left_alone_where_it_says_the_same(finished, run):
    path = finished / "student" / "README.md"
    before = path.stat().st_mtime_ns
    write_card(run, "student")
    assert path.stat().st_mtime_ns == before
