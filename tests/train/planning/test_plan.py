import pytest
from cli_call import assert_told, call
from tiny_job import write_job

from mkd_fast.train.config import load
from mkd_fast.train.planning.advice import Change
from mkd_fast.train.planning.plan import plan, resident_bytes
from mkd_fast.train.planning.workload import FromLength, FromText
from mkd_fast.train.run import Run

MIB = 1 << 20


@pytest.mark.parametrize("kind", ["sequence_classification", "masked_lm", "token_classification"])
def test_the_largest_batches_are_those_of_the_run(tmp_path, kind):
    config = load(write_job(tmp_path, kind=kind))
    run = Run(config)
    found = FromText().workload(config)
    tokens = run.kind.tokenise(run.corpus.train, run_tokenizer(run))
    steps = [run.kind.label_task(tokens, 8, 0).read(rows) for rows in batches(run, tokens)]
    sizes = [step.batch.input_ids.numel() for step in steps]
    assert found.finetuned.input_ids.numel() == max(sizes)
    assert found.num_tokens == tokens.lengths.sum()
    assert found.student.vocab_size == len(found.token_map.keep_token_ids)
    assert found.student.num_hidden_layers == 2


def run_tokenizer(run):
    from mkd_fast.train import models

    return models.load_tokenizer(run.config.teacher.model)


def batches(run, tokens):
    return run.kind.label_task(tokens, 8, run.config.run.seed).batches(0)


def test_of_a_length_every_batch_is_full(tmp_path):
    config = load(write_job(tmp_path, kind="masked_lm"), {"train.accumulate": "3"})
    found = FromLength(10).workload(config)
    assert found.finetuned.input_ids.shape == (8, 10)
    assert found.trained.input_ids.shape == (3, 10)  # the largest of the parts of 8
    assert len(found.trained.positions) == 3 * 2  # of 15 per cent of 10 tokens
    assert found.captured.input_ids.shape == (64, 10)


@pytest.mark.parametrize("kind", ["sequence_classification", "causal_lm"])
def test_every_stage_is_predicted_and_nothing_is_written(tmp_path, kind):
    recipe = write_job(tmp_path, kind=kind)
    found = plan(load(recipe), 8 << 30)
    assert found.fits
    assert [peak.stage for peak in found.peaks] == ["fine-tune", "capture", "copy", "train"]
    for peak in found.peaks:
        assert resident_bytes() / 2 < peak.num_bytes < 4 * resident_bytes()
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_told_with_settings_to_paste(tmp_path):
    recipe = write_job(tmp_path)
    result = call("plan", recipe, "--memory", "1MiB", "--length", 12)
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert "no setting is known to make it fit" in result.stdout
    assert call("plan", recipe, "--memory", "8GiB", "--length", 12).exit_code == 0
    assert call("plan", recipe, "--length", 12).exit_code == 0
    assert_told(call("plan", recipe, "--memory", "8 gigs"), "--memory must be a number of bytes")
    assert_told(call("plan", recipe, "--length", 0), "--length must be")
    assert_told(call("plan", recipe, "--length", 99), "positions of", "16, got 99")


def test_advice_makes_it_fit_and_asks_for_nothing_needless(tmp_path):
    sets = {
        "teacher.finetuned": "true",
        "capture.shard_megabytes": "1",
        "train.batch_size": "4096",
        "train.precision": "'float32'",
    }
    config = load(write_job(tmp_path), sets)
    train = plan(config, length=16).peaks[-1]
    memory_bytes = train.num_bytes - train.parts["activations"] * 3 // 4
    (advice,) = plan(config, memory_bytes, length=16).advice
    assert advice.peak.num_bytes <= memory_bytes
    (change,) = advice.chosen  # the one that changes no result
    assert change.settings.keys() == {("train", "accumulate")}
    assert plan(change.of(config), memory_bytes, length=16).fits


def test_settings_are_pasted_as_toml(tmp_path):
    change = Change({("train", "freeze"): ("a.b",), ("train", "optimizer"): "adamw8bit"}, "")
    assert str(change) == """--set train.freeze='["a.b"]' --set train.optimizer=adamw8bit"""


def test_hidden_states_that_a_schedule_brings_in_are_kept(tmp_path):
    def captured(name, schedule):
        folder = tmp_path / name
        folder.mkdir()
        sets = {"loss.hidden_weight": "0.0", "scratch.enabled": "false", **schedule}
        found = {peak.stage: peak for peak in plan(load(write_job(folder), sets), length=12).peaks}
        return found["capture"].parts["what is kept"]

    none = captured("none", {})
    assert captured("some", {"loss_schedule.hidden_weight": '["linear", 1.0]'}) > none
