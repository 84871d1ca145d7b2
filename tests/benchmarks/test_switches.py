"""Every switch trains, and is a setting."""

from dataclasses import fields

import pytest
import torch

from mkd_fast.benchmarks import switches
from mkd_fast.train.optim_config import OptimConfig


def test_a_few_steps_of_each():
    found = list(switches.measure(torch.device("cpu"), is_tiny=True, num_rounds=1))
    speeds = {each.case: each.p50 for each in found if each.measure == "tokens a CPU second"}
    memory = {each.case: each.p50 for each in found if each.measure == "MB held at most"}
    assert list(speeds) == [name for name in switches.SWITCHES if "compile" not in name]
    assert all(speed > 0 for speed in speeds.values())
    assert memory["as it is"] > 0


@pytest.mark.parametrize("name", switches.SWITCHES)
def test_a_switch_is_no_default(name):
    defaults = {each.name: each.default for each in fields(OptimConfig)}
    assert all(defaults[key] != value for key, value in switches.SWITCHES[name].items())
