import re
from dataclasses import replace

import pytest
import torch
from tiny_problem import Model
from torch import nn

from mkd_fast.train.optim_config import OptimConfig
from mkd_fast.train.optimizer import freeze, make_optimizer

CONFIG = OptimConfig(learning_rate=0.5, weight_decay=0.25)


def frozen(model):
    return [name for name, p in model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("beginning", ["embeddings", "embeddings.weight", "emb"])
def test_parameters_of_such_names_get_no_gradient(beginning):
    model = Model()
    freeze(model, (beginning,))
    assert frozen(model) == ["embeddings.weight"]


def test_a_name_inside_the_model_freezes_too():
    """``embeddings.word_embeddings`` does for ``bert.`` and ``roberta.`` alike."""
    model = Model()
    freeze(model, ("weight",))
    assert frozen(model) == ["embeddings.weight", "head.weight"]


@pytest.mark.parametrize(
    ("beginning", "hint"), [("embedings.weight", "embeddings.weight"), ("eight", "head.weight")]
)
def test_a_misspelt_freeze_is_refused(beginning, hint):
    message = f"freeze must name parameters of the model, got '{beginning}'. Did you mean '{hint}'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        freeze(Model(), (beginning,))


def test_matrices_decay_and_vectors_do_not_and_frozen_ones_take_no_part():
    model = Model()
    freeze(model, ("embeddings",))
    matrices, vectors = make_optimizer(model, CONFIG).param_groups
    assert matrices["params"] == [model.head.weight]
    assert vectors["params"] == [model.head.bias]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert matrices["lr"] == vectors["lr"] == 0.5


@pytest.mark.parametrize("has_pooler", [False, True])
def test_a_head_may_learn_faster_than_what_it_is_on(has_pooler):
    model = Model()
    if has_pooler:
        model.embeddings.pooler = nn.Linear(4, 4)
    groups = make_optimizer(model, replace(CONFIG, head_rate=10.0)).param_groups
    found = {p: group for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert found[p].get("times") == (None if name == "embeddings.weight" else 10.0), name
        assert found[p]["weight_decay"] == (0.25 if p.dim() > 1 else 0.0), name


def test_a_model_without_a_head_cannot_have_one_learn_faster():
    message = "fit: a model must have a head beside its base_model for head_rate = 10, got Linear."
    with pytest.raises(TypeError, match=re.escape(message)):
        make_optimizer(nn.Linear(2, 2), replace(CONFIG, head_rate=10.0))


KINDS = ["adamw", "adamw_foreach"]


@pytest.mark.parametrize("kind", KINDS)
def test_moves_nothing_where_something_was_not_finite(kind):
    model, still = Model(), Model()
    optimizer = make_optimizer(model, replace(CONFIG, optimizer=kind))
    for found_inf in (0.0, 1.0, 1.0):
        optimizer.found_inf = torch.tensor(found_inf)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 if found_inf == 0.0 else torch.nan)
        optimizer.step()
    other = make_optimizer(still, replace(CONFIG, optimizer=kind))
    for parameter in still.parameters():
        parameter.grad = torch.ones_like(parameter)
    other.step()
    for (name, moved), (_, once) in zip(
        model.named_parameters(), still.named_parameters(), strict=True
    ):
        assert torch.equal(moved, once), name
    states = optimizer.state_dict()["state"], other.state_dict()["state"]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_both_move_alike():
    moved = []
    for kind in KINDS:
        model = Model()
        optimizer = make_optimizer(model, replace(CONFIG, optimizer=kind))
        for step in range(1, 4):
            for parameter in model.parameters():
                parameter.grad = parameter.detach() * step
            optimizer.step()
        moved.append(model.weights())
    torch.testing.assert_close(*moved)
    assert not torch.equal(moved[0]["head.weight"], Model().head.weight)
