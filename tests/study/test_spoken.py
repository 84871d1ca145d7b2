"""Studies of language models: which tokens are to be said, and how it is counted what was."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import tiny_job
import tiny_study
import torch
from torch.nn import functional

from mkd_fast.data.masked import MaskedText
from mkd_fast.study.config import STARTS, load
from mkd_fast.study.measure import chance, measure
from mkd_fast.study.objectives import SomeSteps, task_of
from mkd_fast.study.shared import Shared
from mkd_fast.study.starts import build
from mkd_fast.train.examiner import said

LAYERS = (1, 3)
MASKED = {"study.objectives": '["labels", "kl"]', "study.depths": "[]", "loss.temperature": "1.0"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The shared work of a tiny study of masked text, each sentence in a group with the next."""
    folder = tmp_path_factory.mktemp("spoken")
    recipe = tiny_study.write_study(folder, kind="masked_lm")
    path = folder / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tiny_job.write_rows(path, [{**row, "group": f"g{n // 2}"} for n, row in enumerate(rows)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKD_FAST_HOME", str(folder / "home"))
        made = Shared(load(recipe, MASKED))
        _ = made.fingerprints
    return made


def test_the_teacher_s_words_are_at_hand_for_any_samples(shared):
    teacher, _, test = shared.teacher_parts()
    rows = [5, 0, 20, 11]
    (ours, _), _ = said(teacher.eval(), test.tokens, rows, shared.token_map)
    kept, _ = shared.test_part.teacher_said.at(rows)
    assert torch.equal(kept.weight, ours.weight)
    assert torch.equal(kept.bias, ours.bias)
    budget = 16 * torch.finfo().eps  # samples of other lengths lie beside it
    assert (kept.hidden - ours.hidden).abs().max() <= budget * ours.hidden.abs().max()


def test_all_are_asked_for_the_same_tokens(shared):
    _, _, theirs = shared.teacher_parts()
    ours = shared.test_part
    assert np.array_equal(ours.tokens.labels, theirs.tokens.labels)
    assert len(ours.tokens) == len(theirs.tokens) == len(ours)
    assert not np.array_equal(ours.tokens.ids, theirs.tokens.ids)
    is_asked = ours.tokens.labels >= 0
    by_language = ours.labels_by_language()
    assert sum(map(len, by_language.values())) == is_asked.sum()
    assert set(by_language) == {"de", "en", "sw"}


def test_scores_are_those_of_dense_logits(shared):
    """By softmax in float64, over the tokens that students have."""
    student = build(shared, "scratch", LAYERS, "labels", 0)
    found = measure(student, shared.test_part, shared)
    teacher, _, test = shared.teacher_parts()
    keep, models = shared.token_map.rows, (student.double(), teacher.eval().double())
    sums = {name: np.zeros(4) for name in ("de", "en", "sw")}
    for row, language in enumerate(shared.test_part.text.languages):
        begin, end = shared.test_part.tokens.offsets[row : row + 2]
        labels = torch.from_numpy(shared.test_part.tokens.labels[begin:end])
        places = (labels >= 0).nonzero().squeeze(1)
        ids = (torch.from_numpy(part.tokens.row(row)).long()[None] for part in (found.part, test))
        q, p = (
            model(input_ids=of).logits[0, places].detach()
            for model, of in zip(models, ids, strict=True)
        )
        q, p, labels = q.log_softmax(-1), p[:, keep].log_softmax(-1), labels[places]
        kl = functional.kl_div(q, p, reduction="sum", log_target=True).item()
        right = (q.argmax(-1) == labels).sum().item()
        sums[language] += (right, functional.nll_loss(q, labels, reduction="sum"), kl, len(labels))
    budget = 256 * torch.finfo().eps
    for language, (right, cross_entropy, kl, count) in sums.items():
        scores = found.by_language()[language]
        assert scores["masked_accuracy"] == right / count
        assert scores["perplexity"] == pytest.approx(math.exp(cross_entropy / count), rel=budget)
        assert scores["kl_to_teacher"] == pytest.approx(kl / count, rel=budget)
        assert sum(found.correct()[language]["right"]) == right
    right, cross_entropy, _, count = sum(sums.values())
    assert found.score == right / count
    assert found.loss == pytest.approx(cross_entropy / count, rel=budget)


def test_chance_is_to_say_what_is_commonest_in_training(shared):
    labels = shared.train_part.tokens.labels
    counts = Counter(labels[labels >= 0].tolist())
    commonest = min(label for label, count in counts.items() if count == max(counts.values()))
    shares = [
        np.mean([label == commonest for label in of.tolist()])
        for of in shared.test_part.labels_by_language().values()
    ]
    assert chance(shared) == pytest.approx(np.mean(shares))


def test_sentences_of_a_group_are_drawn_together(shared):
    groups = shared.test_part.groups_by_language()
    assert list(map(len, groups.values())) == [6, 6, 9]
    assert groups["de"] == ["g0", "g0", "g1", "g1", "g2", "g2"]


def test_an_epoch_reads_one_masking_of_the_chosen_texts(shared):
    text = shared.train_part.tokens
    assert isinstance(text, MaskedText)
    rows = [3, 7, 20, 21]
    task = SomeSteps(None, text, rows, num_steps=5, batch_size=2, seed=1)
    steps = [sample for step in task.batches(0) for sample in step]
    of_epochs = [sorted(steps[first : first + 4]) for first in (0, 4, 8)]
    assert of_epochs[:2] == [rows, [row + 48 for row in rows]]
    assert set(of_epochs[2]) < {row + 96 for row in rows}


def test_the_new_head_is_what_is_not_tied(shared):
    names = set(shared.head_names)
    assert "cls.predictions.bias" in names
    assert "cls.predictions.transform.dense.weight" in names
    assert not any("decoder" in name or "embeddings" in name for name in names)


@pytest.mark.parametrize("start", STARTS)
def test_a_student_says_tokens_of_its_own_embeddings(shared, start):
    """A head that is tied goes with the embeddings; the rest of it is where the start has it."""
    student, teacher = build(shared, start, LAYERS, "kl", 0), shared.finetuned_parent
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    ours, theirs = (dict(model.named_parameters()) for model in (student, teacher))
    words = "bert.embeddings.word_embeddings.weight"
    transform = "cls.predictions.transform.dense.weight"
    assert torch.equal(ours[words], theirs[words]) == (start in ("embeddings", "finetuned"))
    assert torch.equal(ours[transform], theirs[transform]) == (start == "finetuned")
    scratch = dict(build(shared, "scratch", LAYERS, "kl", 0).named_parameters())
    assert torch.equal(ours[transform], scratch[transform]) == (start != "finetuned")


def test_the_teacher_is_at_no_distance_from_itself(shared):
    model, _, test = shared.teacher_parts()
    found = measure(model, test, shared)
    budget = 16 * torch.finfo().eps
    assert all(abs(of["kl_to_teacher"]) < budget for of in found.by_language().values())


def test_distilling_reads_what_the_cache_has_of_these_samples(shared):
    rows = list(range(48))
    task = task_of(shared, "kl", LAYERS, rows, 1, 0)
    step = task.read([3, 50, 190])
    every = tuple(range(shared.num_teacher_layers))
    copy = build(shared, "finetuned", every, "kl", 0)
    loss = task.loss(copy.eval(), step).loss.item()
    assert abs(loss) < 16 * torch.finfo(torch.bfloat16).eps  # as the cache keeps hidden states


def test_logits_that_are_not_finite_are_told(shared):
    student = build(shared, "finetuned", LAYERS, "kl", 0)
    with torch.no_grad():
        student.cls.predictions.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="a student's logits must be finite"):
        measure(student, shared.test_part, shared)


def test_chats_are_told_to_be_no_text_of_a_study(tmp_path):
    recipe = tiny_study.write_study(tmp_path, kind="causal_lm")
    said = [{"role": "user", "content": "on?"}, {"role": "assistant", "content": "on"}]
    rows = [{"messages": said, "language": language} for language in ("de", "en")]
    for part in ("train", "dev", "test"):
        tiny_job.write_rows(tmp_path / f"{part}.jsonl", rows)
    shared = Shared(load(recipe, MASKED))
    with pytest.raises(ValueError, match=r"study: a language model's text must be running text"):
        _ = shared.corpus
