"""What students start as, and what they are trained with."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mkd_fast.losses import LossSpec
from mkd_fast.study.cells import score_copy, train
from mkd_fast.study.config import OBJECTIVES, STARTS, load
from mkd_fast.study.grid import Cell, curve_steps
from mkd_fast.study.measure import measure
from mkd_fast.study.objectives import SomeSteps, spec_of, task_of
from mkd_fast.study.shared import Shared, limited
from mkd_fast.study.starts import build
from mkd_fast.teacher import pretrained
from mkd_fast.train import models

LAYERS = (1, 3)
ALL = {
    "study.starts": str(list(STARTS)).replace("'", '"'),
    "study.objectives": str(list(OBJECTIVES)).replace("'", '"'),
    "study.depths": '["importance"]',
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The shared work of the tiny study, for every start and objective."""
    import tiny_study

    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKD_FAST_HOME", str(folder / "home"))
        made = Shared(load(tiny_study.write_study(folder), ALL))
        _ = made.fingerprints
    return made


def tensors(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def is_head(name):
    return name.startswith(("bert.pooler", "classifier"))


def is_embedding(name):
    return name.startswith("bert.embeddings")


def test_the_head_is_what_finetuning_added(shared):
    names = set(tensors(shared.finetuned_parent))
    # The tiny encoder was saved with its pooler, unlike multilingual-e5-small.
    assert set(shared.head_names) == {name for name in names if name.startswith("classifier")}


def test_parents_differ_by_finetuning_and_in_nothing_else(shared):
    before, after = tensors(shared.pretrained_parent), tensors(shared.finetuned_parent)
    assert {name: t.shape for name, t in before.items()} == {n: t.shape for n, t in after.items()}
    source = models.load_classifier(
        pretrained.resolve_model(shared.config.teacher.model), ("dim", "off", "on")
    )
    words = source.get_input_embeddings().weight
    full, kept = (
        models.load_tokenizer(str(folder))
        for folder in (shared.config.teacher.model, shared.copied)
    )
    for token, new_id in kept.get_vocab().items():
        ours = before["bert.embeddings.word_embeddings.weight"][new_id]
        assert torch.equal(ours, words[full.get_vocab()[token]])
    assert not torch.equal(
        before["bert.encoder.layer.0.output.dense.weight"],
        after["bert.encoder.layer.0.output.dense.weight"],
    )


@pytest.mark.parametrize("start", STARTS)
def test_what_each_start_copies(shared, start):
    teacher, encoder = tensors(shared.finetuned_parent), tensors(shared.pretrained_parent)
    student, again, other = (
        tensors(build(shared, start, LAYERS, "kl", seed)) for seed in (5, 5, 6)
    )
    scratch = tensors(build(shared, "scratch", LAYERS, "kl", 5))
    for name, tensor in student.items():
        assert torch.equal(tensor, again[name])
        # An untrained bias is zero, and a norm's weight one, whatever the seed.
        is_drawn = tensor.dim() > 1
        theirs = name
        for ours, layer in enumerate(LAYERS):
            if f"encoder.layer.{ours}." in name:
                theirs = name.replace(f"encoder.layer.{ours}.", f"encoder.layer.{layer}.")
                break
        if start == "finetuned" or (start == "embeddings" and is_embedding(name)):
            source = teacher[theirs]
        elif start == "pretrained" and name not in shared.head_names:
            source = encoder[theirs]
        else:
            source = scratch[name]
            assert torch.equal(tensor, other[name]) != is_drawn
        assert torch.equal(tensor, source), name


@pytest.mark.parametrize("start", STARTS)
def test_hidden_states_are_read_by_the_teacher_s_head_which_stays(shared, start):
    teacher = tensors(shared.finetuned_parent)
    cell = Cell(start, "stride", 2, "hidden", 1.0, 0)
    before = tensors(build(shared, start, LAYERS, "hidden", 0))
    trained = train(shared, cell, 1e-2, 6)
    after = tensors(trained.model)
    for name in shared.head_names:
        assert torch.equal(before[name], teacher[name])
        assert torch.equal(after[name], teacher[name])
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert any(is_embedding(name) for name in moved)
    assert any("encoder.layer.1" in name for name in moved)


def test_objectives_are_parts_of_the_recipe_s_loss():
    loss = LossSpec(temperature=2.0, ce_weight=0.25, hidden_weight=3.0, divergence="jsd")
    assert spec_of("labels", loss) is None
    assert spec_of("kl_hidden", loss) == loss
    assert spec_of("kl", loss) == replace(loss, hidden_weight=0.0)
    assert spec_of("logit_mse", loss) == replace(loss, hidden_weight=0.0, divergence="logit_mse")
    hidden = spec_of("hidden", loss)
    assert (hidden.kd_weight, hidden.ce_weight, hidden.hidden_weight) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_falls(shared, objective):
    """On the text that is trained on, in training mode off, from first to last step."""
    part = shared.train_part
    rows = list(range(len(part)))
    task = task_of(shared, objective, LAYERS, rows, 1, 0)
    step = task.read(rows)

    def loss(model):
        with torch.inference_mode():
            return task.loss(model.eval(), step).loss.item()

    cell = Cell("embeddings", "stride", 2, objective, 1.0, 0)
    before = loss(build(shared, "embeddings", LAYERS, objective, 0))
    after = loss(train(shared, cell, 3e-3, 30).model)
    assert after < before


def test_a_copy_that_keeps_every_layer_has_no_hidden_error(shared):
    every = tuple(range(shared.num_teacher_layers))
    model = build(shared, "finetuned", every, "hidden", 0)
    kept = [pair[0] for pair in shared.matched_layers]
    assert kept == [2, 4]  # what students of two layers are matched with
    rows = list(range(8))
    step = task_of(shared, "hidden", LAYERS, rows, 1, 0).read(rows)
    with torch.inference_mode():
        out = model(
            input_ids=step.batch.input_ids,
            attention_mask=step.batch.attention_mask,
            output_hidden_states=True,
        )
    mask = step.target.hidden_mask
    for layer, theirs in zip(kept, step.target.hidden, strict=True):
        ours = out.hidden_states[layer].bfloat16()
        assert torch.equal(ours[mask], theirs[mask])


def test_steps_are_as_many_as_asked_for_whatever_the_epochs(shared):
    tokens = shared.train_part.tokens
    rows = [3, 7, 20, 21, 30]
    task = SomeSteps(None, tokens, rows, num_steps=7, batch_size=2, seed=1)
    steps = task.batches(0)
    assert [len(step) for step in steps].count(1) == 2  # an epoch is of 3 steps, the last of a row
    assert len(steps) == 7
    for epoch in (steps[:3], steps[3:6]):
        assert sorted(row for step in epoch for row in step) == rows
    assert steps == task.batches(0)
    assert steps != replace(task, seed=2).batches(0)


def test_smaller_parts_lie_in_larger_ones(shared, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "mkd_fast.study.cells.task_of",
        lambda shared, objective, layers, rows, steps, seed: (
            asked.setdefault(steps, rows) and task_of(shared, objective, layers, rows, 1, seed)
        ),
    )
    for number, fraction in enumerate((0.125, 0.25, 1.0), start=1):
        train(shared, Cell("scratch", "stride", 2, "labels", fraction, 3), 1e-3, number)
    small, middle, whole = (set(asked[number]) for number in (1, 2, 3))
    assert small < middle < whole == set(range(48))
    labels = [shared.train_part.text.labels[row] for row in small]
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("start", "objective", "rate"),
    [
        pytest.param("pretrained", "kl", 10.0, id="new head on old layers"),
        pytest.param("pretrained", "hidden", 1.0, id="the teacher's head"),
        pytest.param("finetuned", "kl", 1.0, id="copied head"),
        pytest.param("embeddings", "kl", 1.0, id="new layers too"),
        pytest.param("scratch", "kl", 1.0, id="all is new"),
    ],
)
def test_only_a_new_head_on_old_layers_learns_faster(shared, monkeypatch, start, objective, rate):
    asked = []
    recipe = replace(shared.recipe, train=replace(shared.recipe.train, head_rate=10.0))
    monkeypatch.setattr(shared, "recipe", recipe)
    monkeypatch.setattr(
        "mkd_fast.study.cells.fit", lambda model, task, config, **_: asked.append(config.head_rate)
    )
    train(shared, Cell(start, "stride", 2, objective, 1.0, 0), 1e-3, 1)
    assert asked == [rate]


def test_watching_a_training_does_not_change_it(shared):
    cell = Cell("scratch", "stride", 2, "kl", 1.0, 0)
    watched = train(shared, cell, 1e-3, 6, curve_steps(6, 3))
    alone = train(shared, cell, 1e-3, 6)
    assert all(
        torch.equal(tensor, tensors(alone.model)[name])
        for name, tensor in tensors(watched.model).items()
    )
    assert [point["step"] for point in watched.curve] == [0, 2, 3, 6]
    assert alone.curve == []
    last = measure(watched.model, shared.curve_part, shared)
    assert (last.loss, last.score) == (watched.curve[-1]["loss"], watched.curve[-1]["dev"])


def test_curves_are_of_development_text_of_every_label_and_language(shared):
    part = shared.curve_part
    assert len(part) == shared.recipe.study.curve_rows == 8
    assert set(part.text.languages) == {"de", "en"}
    assert set(part.text.labels) == {0, 1, 2}
    assert set(part.text.texts) <= set(shared.corpus.dev.texts)
    assert not set(part.text.texts) & {*shared.corpus.train.texts, *shared.corpus.test.texts}


def test_an_untrained_copy_is_scored_as_it_is(shared):
    row = score_copy(shared, LAYERS)
    model = build(shared, "finetuned", LAYERS, "kl", 3)
    assert row["scores"] == measure(model, shared.test_part, shared).by_language()


def test_layers_by_importance_are_ranked_once(shared, monkeypatch):
    found = shared.layers("importance", 2)
    assert len(found) == 2
    assert len(shared.layer_changes) == shared.num_teacher_layers
    best = sorted(range(4), key=lambda layer: -shared.layer_changes[layer])[:2]
    assert found == tuple(sorted(best))
    monkeypatch.setattr("mkd_fast.train.run_teacher.layer_changes", pytest.fail)
    again = Shared(shared.recipe)
    assert again.layer_changes == shared.layer_changes


def test_logits_that_are_not_finite_are_told(shared):
    model = build(shared, "finetuned", LAYERS, "kl", 0)
    with torch.no_grad():
        model.classifier.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="a student's logits must be finite"):
        measure(model, shared.test_part, shared)


def test_a_study_takes_as_many_sentences_of_a_language_as_it_asks_for(shared):
    corpus = Shared(shared.recipe).corpus
    study = replace(shared.recipe.study, max_train=6, max_test=3)
    less = limited(corpus, study)
    for part, most in ((less.train, 6), (less.test, 3)):
        counts = Counter(part.languages)
        assert set(counts.values()) == {most}
        of_cells = Counter(zip(part.languages, part.labels, strict=True))
        assert set(of_cells.values()) == {most // 3}  # of three labels
    assert less.dev == corpus.dev
    assert limited(corpus, study) == less
