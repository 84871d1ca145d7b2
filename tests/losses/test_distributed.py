"""Gradients of a step that is shared by processes or micro-batches are those of the whole step."""

import subprocess
import sys
from pathlib import Path

import distributed_job
import pytest
import torch
from budget import assert_within_budget
from distributed_job import NUM_COUNTED, NUM_PROCESSES, gradients, make_model, step_loss


def whole_step(dtype: torch.dtype) -> list[torch.Tensor]:
    model = make_model(dtype)
    step_loss(model, "whole", NUM_COUNTED).backward()
    return gradients(model)


def assert_gradients_of_the_whole_step(actual: list[torch.Tensor]) -> None:
    pairs = zip(actual, whole_step(torch.float64), whole_step(torch.float32), strict=True)
    for grad, exact, plain in pairs:
        assert_within_budget(grad, exact, plain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left their gradients."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(Path(distributed_job.__file__)), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(NUM_PROCESSES)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return folder


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_processes_take_the_mean_of_the_step(folder, wrapper):
    assert_gradients_of_the_whole_step(torch.load(folder / f"{wrapper}.pt"))


def test_accumulated_micro_batches_take_the_mean_of_the_step():
    model = make_model()
    for part in ("first", "second"):
        step_loss(model, part, NUM_COUNTED).backward()
    assert_gradients_of_the_whole_step(gradients(model))
