"""Recipes of studies: those that we ship load, and each way to be wrong is told."""

import re
from pathlib import Path

import pytest

from mkd_fast.study.config import OBJECTIVES, STARTS, load
from mkd_fast.study.grid import Sizes, cells

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("study_*.toml"))
A_DEV_FILE = "data.dev"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_we_ship_load(path):
    recipe = load(path)
    assert recipe.name == path.stem
    assert recipe.run.folder == f"runs/{path.stem}"
    assert len(recipe.study.seeds) >= 3
    assert set(recipe.study.starts) == set(STARTS)
    assert cells(recipe, Sizes(1000, 100, 100))


def test_the_main_study_has_the_whole_grid():
    (path,) = [path for path in RECIPES if path.stem == "study_intents"]
    study = load(path).study
    assert study.objectives == OBJECTIVES
    assert study.fractions == (1.0, 0.1, 0.01)
    assert study.num_layers == (6, 3)
    assert {study.depth, *study.depths} == {"stride", "first", "last", "first_last", "importance"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study.seeds": "[]"}, "seeds must be different values, at least one, got []"),
        ({"study.rates": "[0.1, 0.1]"}, "rates must be different values, at least one"),
        ({"study.starts": '["random"]'}, "starts must be a known name, got 'random'"),
        ({"study.depths": '["stride"]'}, "depths must be different choices other than depth"),
        ({"study.depths": '["middle"]'}, "depth must be a known name, got 'middle'"),
        ({"study.fractions": "[0.0]"}, "fractions must lie in (0, 1], got 0.0"),
        ({"study.fractions": "[2.0]"}, "fractions must lie in (0, 1], got 2.0"),
        ({"study.rates": "[-1.0]"}, "rates must be positive, got -1.0"),
        ({"study.probe_steps": "0"}, "probe_steps must be positive, got 0"),
        ({"teacher.finetuned": "true"}, "teacher.model must be a pretrained model"),
        ({A_DEV_FILE: '""'}, "data.dev must name the development text, got none"),
        ({"loss.hidden_weight": "0.0"}, "hidden_weight must be positive where study.objectives"),
        ({"train.freeze": '["embeddings"]'}, "train.freeze must be empty"),
        ({"scratch.enabled": "true"}, "sections must be known, got [scratch]"),
    ],
)
def test_what_no_study_can_be_run_with_is_told(recipe, change, words):
    change = {"study.objectives": '["kl", "kl_hidden"]', **change}
    with pytest.raises(ValueError, match=re.escape(words)):
        load(recipe, change)


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
@pytest.mark.parametrize(
    "change",
    [
        {"study.objectives": '["kl", "hidden"]'},
        {"study.objectives": '["logit_mse"]'},
        {"study.depth_objective": '"hidden"'},
    ],
    ids=["hidden", "logit_mse", "depth_objective"],
)
def test_language_models_are_not_taught_by_what_classifiers_are(recipe, change, kind):
    words = f'must be among labels, kl and kl_hidden where task.kind = "{kind}", got'
    change = {"study.objectives": '["kl"]', **change, "task.kind": f'"{kind}"'}
    with pytest.raises(ValueError, match=re.escape(words)):
        load(recipe, {**change, "capture.keep": '"hidden"'})


def test_what_no_run_can_be_made_with_is_told_when_the_recipe_is_read(recipe):
    change = {"task.kind": '"masked_lm"', "study.objectives": '["kl"]'}
    with pytest.raises(ValueError, match=r'keep must suit task.kind = "masked_lm"'):
        load(recipe, change)
