"""The whole job of a causal language model, on running text and on chats."""

import csv
import json
import math
from dataclasses import replace

import pytest
import tiny_job
import torch
from chat_templates import INST
from tiny_job import write_rows
from tiny_problem import metric_rows
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mkd_fast.checks.wording import is_ours
from mkd_fast.files import read_json
from mkd_fast.train import models
from mkd_fast.train.config import from_dict, load
from mkd_fast.train.language_model import TokenDistillTask
from mkd_fast.train.run import Run
from mkd_fast.train.run_names import STUDENT, TEACHER

LONGER = {
    "finetune.epochs": "12",
    "finetune.learning_rate": "5e-3",
    "train.epochs": "6",
    "loss.ce_weight": "0.0",
}
NO_RIVAL = {"scratch.enabled": "false"}


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """An undisturbed run of the job; only to be read."""
    return tiny_job.distilled(tmp_path_factory.mktemp("causal"), LONGER, kind="causal_lm")


@pytest.fixture
def recipe(tmp_path):
    return tiny_job.write_job(tmp_path, kind="causal_lm")


@pytest.fixture
def known_teacher(causal, monkeypatch):
    monkeypatch.setenv("MKD_FAST_HOME", str(causal.folder.parent / "home"))


def mean(result, name):
    return result.scores.seen_mean.values[name]


def dense_logits(model, ids):
    with torch.no_grad():
        return model.double()(input_ids=ids.long()[None]).logits[0]


def test_the_student_comes_nearer_to_its_teacher(causal):
    teacher, copied, student, scratch = causal.results
    assert abs(mean(teacher, "kl_to_teacher")) < 1e3 * torch.finfo().eps
    assert mean(teacher, "top1_agreement") == 1.0
    for other in (copied, scratch):
        assert mean(student, "kl_to_teacher") < mean(other, "kl_to_teacher")
    vocabulary = models.load_tokenizer(str(causal.student)).get_vocab()
    assert mean(teacher, "perplexity") < mean(copied, "perplexity") < len(vocabulary)


def test_every_measure_is_in_the_table(causal):
    with (causal.folder / "languages.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["language"], r["group"]) for r in rows} == {
        ("de", "seen"),
        ("en", "seen"),
        ("sw", "unseen"),
    }
    assert all(float(row["nats_per_byte"]) > 0 for row in rows)
    assert all(0 <= float(row["top1_agreement"]) <= 1 for row in rows)
    assert "KL to the teacher in nats / perplexity" in (causal.folder / "report.md").read_text()


def test_a_student_s_scores_are_those_of_dense_logits(causal):
    """All measures by softmax in float64: what is at a place predicts the token behind it."""
    run = Run(load(causal.folder.parent / "recipe.toml", LONGER))
    keep = run.token_map.rows
    teacher_tokenizer, tokenizer = map(models.load_tokenizer, (run.teacher_folder, causal.student))
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (run.teacher_folder, causal.student)
    )
    kl, cross_entropy, agreed, count, num_bytes = 0.0, 0.0, 0, 0, 0
    for text, language in zip(run.corpus.test.texts, run.corpus.test.languages, strict=True):
        if language != "en":
            continue
        encoded = teacher_tokenizer(text, return_offsets_mapping=True)
        full = torch.tensor(encoded["input_ids"])
        small = run.token_map.new_ids(full)  # -1 where the student lacks a letter of "lantern"
        known = (small[1:] >= 0).nonzero().squeeze(1)
        p = dense_logits(teacher, full)[known][:, keep].log_softmax(-1)
        q = dense_logits(student, small.where(small >= 0, tokenizer.unk_token_id))[known]
        q = q.log_softmax(-1)
        kl += functional.kl_div(q, p, reduction="sum", log_target=True).item()
        cross_entropy -= q.gather(1, small[1:][known][:, None]).sum().item()
        agreed += (p.argmax(-1) == q.argmax(-1)).sum().item()
        count += len(known)
        ends = [0, *(end for _, end in encoded["offset_mapping"][1:-1]), len(text)]
        num_bytes += sum(ends[place + 1] - ends[place] for place in known.tolist())
    found = next(s for s in causal.results[2].scores.seen if s.language == "en").values
    budget = 256 * torch.finfo().eps
    scale = cross_entropy / count  # the KL is a difference of numbers as large as this
    assert found["kl_to_teacher"] == pytest.approx(kl / count, abs=budget * scale)
    assert found["perplexity"] == pytest.approx(math.exp(cross_entropy / count), rel=budget)
    assert found["nats_per_byte"] == pytest.approx(cross_entropy / num_bytes, rel=budget)
    assert found["top1_agreement"] == agreed / count


@pytest.mark.usefixtures("known_teacher")
@pytest.mark.parametrize(
    "change",
    [
        {"capture.keep": "topk:8"},
        {"capture.keep": "sampled:50", "loss.hidden_weight": "0.0"},
        {"student.vocabulary": "all"},
        {"train.packing": "24", "data.language_temperature": "inf"},
    ],
    ids=lambda change: " ".join(change.values()),
)
def test_other_recipes(recipe, change):
    run = Run(load(recipe, {**LONGER, **change, **NO_RIVAL, "train.epochs": "1"}))
    run.trained(STUDENT)
    rows = metric_rows(run.metrics_path)
    assert all(row["kd"] > 0 for row in rows)
    assert all((row["hidden"] > 0) == (run.config.loss.hidden_weight > 0) for row in rows)


@pytest.mark.usefixtures("known_teacher")
def test_a_ready_teacher_is_taken_as_it_is(recipe, causal, known_teacher, monkeypatch):
    monkeypatch.setattr("mkd_fast.train.finetune.fit", pytest.fail)
    folder = Run(from_dict(read_json(causal.folder / "run.json")["config"])).teacher_folder
    ready = {"teacher.model": str(folder), "teacher.finetuned": "true"}
    run = Run(load(recipe, {**LONGER, **NO_RIVAL, **ready}))
    assert run.result(TEACHER).scores == causal.results[0].scores
    assert run.cache.manifest.plan.keep == ("hidden",)


def test_an_encoder_that_looks_ahead_is_refused(recipe, tmp_path):
    encoder = tiny_job.write_encoder(tmp_path / "bert", model_class=tiny_job.BertForMaskedLM)
    run = Run(load(recipe, {"teacher.model": str(encoder), "teacher.finetuned": "true"}))
    with pytest.raises(ValueError, match="from those before it, got a BertLMHeadModel") as caught:
        _ = run.cache
    assert is_ours(caught.value)


@pytest.fixture
def chats(recipe, tmp_path):
    """The recipe with chats, whose answers are lines of the running text."""
    decoder = tmp_path / "encoder"
    tokenizer = models.load_tokenizer(str(decoder))
    tokenizer.chat_template = INST.replace("[INST]", "an").replace("[/INST]", "aus")
    tokenizer.save_pretrained(decoder)
    for name in ("train", "test"):
        path = tmp_path / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            action, room, lamp = row.pop("text").split()
            turns = [("user", lamp), ("assistant", action), ("user", room), ("assistant", "off")]
            row["messages"] = [{"role": role, "content": text} for role, text in turns]
        write_rows(path, [{k: row[k] for k in ("messages", "language")} for row in rows])
    return recipe


def test_of_chats_the_answers_are_learnt(chats, monkeypatch, tmp_path):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))
    longer = {"data.max_length": "20", "train.epochs": "2"}
    run = Run(load(chats, {**LONGER, **NO_RIVAL, **longer}))
    said = run.teacher_text.labels[run.teacher_text.labels >= 0]
    tokens = models.load_tokenizer(run.teacher_folder).convert_ids_to_tokens(said.tolist())
    actions = {f"▁{words[label]}" for words in tiny_job.WORDS.values() for label in tiny_job.LABELS}
    assert set(tokens) <= {*actions, "▁", "</s>"}
    run.trained(STUDENT)
    scores = run.result(STUDENT).scores
    assert scores.seen_mean.values["perplexity"] < 3  # the last answer is always the same
    (folder,) = (run.folder / STUDENT).glob("chat_template.jinja")
    assert "an" in folder.read_text()


def test_answers_beyond_the_longest_sample_are_told(chats, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))
    ready = {"teacher.finetuned": "true", "data.max_length": "10"}
    _ = Run(load(chats, {**NO_RIVAL, **ready})).teacher_text
    said = " ".join(capsys.readouterr().out.split())
    assert "data: in training, 144 of 288 tokens of answers lie beyond data.max_length = 10" in said


def test_a_softcap_behind_the_head_is_part_of_the_loss(monkeypatch, recipe, tmp_path):
    """The loss from hidden states is that of the models' own logits, which the softcap bounds."""
    monkeypatch.setenv("MKD_FAST_HOME", str(tmp_path / "home"))
    change = {"teacher.finetuned": "true", "loss.hidden_weight": "0.0", "loss.ce_weight": "0.0"}
    change |= {"student.vocabulary": "all", "loss.temperature": "1.0"}
    run = Run(load(recipe, {**NO_RIVAL, **change}))
    student = models.load_language_model(str(run.copied), run.kind.auto_class)
    cap = 0.05
    monkeypatch.setattr(student.config, "final_logit_softcapping", cap, raising=False)
    task = run._distill_task(student, run.config.train, run.config.loss)
    assert isinstance(task, TokenDistillTask)
    step = task.read([0, 1, 2])
    teacher = LlamaForCausalLM.from_pretrained(run.teacher_folder).double().eval()
    batch, found = step.batch, task.loss(student.eval(), step).kd
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        p, q = (
            model(**arguments).logits.flatten(0, 1)[batch.positions]
            for model in (teacher, student.double())
        )
    q = cap * (q / cap).tanh()
    exact = functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True
    )
    assert found.item() == pytest.approx(exact.item(), rel=256 * torch.finfo().eps)


@pytest.mark.usefixtures("known_teacher")
def test_packed_steps_cost_what_padded_ones_do(recipe):
    """The loss of a step is the same whichever way its samples are laid out."""
    run = Run(load(recipe, {**LONGER, **NO_RIVAL}))
    student = models.load_language_model(str(run.copied), run.kind.auto_class).eval()
    tasks = [
        run._distill_task(student, replace(run.config.train, packing=packing), run.config.loss)
        for packing in (0, 24)
    ]
    rows = tasks[1].batches(0)[0]
    padded, packed = (task.loss(student, task.read(rows)) for task in tasks)
    assert len(tasks[1].read(rows).batch.packed.input_ids) < len(rows)
    budget = 64 * torch.finfo().eps
    for ours, wanted in zip(vars(packed).values(), vars(padded).values(), strict=True):
        assert ours.item() == pytest.approx(wanted.item(), rel=budget)


def test_a_restart_does_not_tokenise_again(causal, monkeypatch):
    monkeypatch.setattr("mkd_fast.train.causal_lm.causal_text", pytest.fail)
    run = Run(load(causal.folder.parent / "recipe.toml", LONGER))
    student = models.load_language_model(str(run.copied), run.kind.auto_class)
    task = run._distill_task(student, run.config.train, run.config.loss)
    assert task.text.fingerprint != run.teacher_text.fingerprint  # in ids of its own
    assert len(list((causal.folder / "tokens").iterdir())) == 2
