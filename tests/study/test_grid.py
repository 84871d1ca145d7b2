"""Which cells there are, how many steps each has, and how long it all takes."""

from collections import Counter
from dataclasses import replace

import pytest

from mkd_fast.losses import LossSpec
from mkd_fast.study.config import StudyConfig, StudyRecipe
from mkd_fast.study.grid import (
    Cell,
    Sizes,
    cells,
    cost,
    curve_steps,
    num_rows,
    num_steps,
    probe_cost,
    probes,
)
from mkd_fast.study.pace import OutOfTimeError, Pace, parse_duration, shown_duration
from mkd_fast.train.config import DataConfig
from mkd_fast.train.optim_config import OptimConfig

SIZES = Sizes(num_train=2900, num_dev=600, num_test=3000)


def recipe(**study):
    return StudyRecipe(
        data=DataConfig(source="home_intents"),
        loss=LossSpec(hidden_weight=1.0),
        train=OptimConfig(epochs=3),
        study=StudyConfig(**study),
    )


def test_the_grid_is_the_product_and_the_other_depths_where_they_matter():
    grid = cells(recipe(), SIZES)
    assert len(grid) == len(set(grid)) == 4 * 5 * 3 * 3 * 2 + 4 * 3 * 3 * 2
    others = [cell for cell in grid if cell.depth != "stride"]
    assert {(cell.start, cell.objective) for cell in others} == {("finetuned", "kl")}
    assert Counter(cell.depth for cell in others) == dict.fromkeys(
        ("first", "last", "first_last", "importance"), 18
    )


def test_seeds_are_outermost_and_within_one_the_cheap_come_first():
    given = recipe(seeds=(7, 3))
    grid = cells(given, SIZES)
    assert [cell.seed for cell in grid] == [7] * (len(grid) // 2) + [3] * (len(grid) // 2)
    costs = [cost(cell, given, SIZES) for cell in grid if cell.seed == 3]
    assert costs == sorted(costs)


def test_each_start_and_objective_is_probed_at_every_rate_once():
    given = recipe(rates=(1e-4, 1e-3), seeds=(0,), objectives=("labels",), depth_objective="kl")
    tried = list(probes(cells(given, SIZES), given))
    # Under "kl" there is but one start, the other depths'.
    assert len(tried) == len(set(tried)) == (4 + 1) * 2
    assert {p.start for p in tried if p.objective == "kl"} == {"finetuned"}


@pytest.mark.parametrize(
    ("fraction", "rows", "steps"),
    [(1.0, 2900, 3 * 91), (0.1, 290, 80), (0.01, 29, 80), (1e-6, 1, 80)],
)
def test_small_parts_are_trained_on_for_at_least_min_steps(fraction, rows, steps):
    assert num_rows(fraction, 2900) == rows
    assert num_steps(fraction, recipe(min_steps=80), 2900) == steps


@pytest.mark.parametrize(
    ("total", "points", "steps"),
    [(273, 4, (0, 35, 69, 137, 273)), (5, 8, (0, 1, 2, 3, 5)), (1, 3, (0, 1))],
)
def test_curves_are_seen_at_steps_that_double(total, points, steps):
    assert curve_steps(total, points) == steps


def test_time_is_predicted_from_the_recipe_until_there_are_rows():
    given = recipe(layer_step_seconds=0.5)
    cell = Cell("finetuned", "stride", 6, "kl", 1.0, 0)
    pace = Pace(given, SIZES, 0.0, None)
    work = cost(cell, given, SIZES)
    assert pace.seconds(work) == 0.5 * work
    done = {**cell.plain(), "wall_seconds": 0.25 * work}
    pace.learn([done, {**done, "error": "it diverged", "wall_seconds": 0.0}], [])
    assert pace.seconds(work) == 0.25 * work
    a_probe = {"steps": 80, "wall_seconds": probe_cost(given, SIZES)}
    other = {"steps": 81, "wall_seconds": 0.0}  # of another grid
    pace.learn([], [a_probe, a_probe, other])
    assert pace.seconds(work) == work


def test_work_that_would_end_after_the_budget_is_not_begun(monkeypatch):
    monkeypatch.setattr("mkd_fast.study.pace.time.monotonic", lambda: 100.0)
    pace = Pace(recipe(layer_step_seconds=1.0), SIZES, 40.0, 80.0)
    pace.require(20.0)
    with pytest.raises(OutOfTimeError):
        pace.require(20.1)
    Pace(recipe(), SIZES, 40.0, None).require(1e9)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("60min", 3600.0), ("1.5h", 5400.0), (" 2 h ", 7200.0)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "min", "1d", "-5min", "1h30"])
def test_what_is_no_duration_is_told(text):
    with pytest.raises(ValueError, match="--budget must be a time with its unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(7.4, "7 s"), (60.0, "0 h 01 min"), (7500.0, "2 h 05 min")]
)
def test_durations_are_shown(seconds, shown):
    assert shown_duration(seconds) == shown


def test_a_cell_costs_what_its_layers_steps_and_sentences_do():
    given = recipe()
    cell = Cell("scratch", "stride", 6, "kl", 1.0, 0)
    assert cost(replace(cell, num_layers=3), given, SIZES) == pytest.approx(
        cost(cell, given, SIZES) / 2
    )
    assert cost(cell, given, replace(SIZES, num_test=6000)) > cost(cell, given, SIZES) > 6 * 273
