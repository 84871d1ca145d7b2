"""The examples run as they stand, and what their trainers optimise is the loss they promise."""

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor
from torch.nn import functional

import mkd_fast as mkd

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def softened_with_labels(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    log_p, log_q = ((z / temperature).log_softmax(-1) for z in (teacher, student))
    cross_entropy = functional.cross_entropy(student.flatten(0, -2), labels.flatten())
    return temperature**2 * kl(log_p, log_q).mean() + 0.1 * cross_entropy


# What each example promises, in plain torch: of its first batch, where every token counts.
PROMISED = {
    "plain_loop": lambda student, teacher, labels: softened_with_labels(
        student, teacher, labels, temperature=2.0
    ),
    "transformers_trainer": lambda student, teacher, labels: softened_with_labels(
        student, teacher, labels, temperature=1.0
    ),
    # TRL's beta is 1 unless it is set: the reverse KL
    "trl_distillation": lambda student, teacher, mask: kl(
        student.log_softmax(-1), teacher.log_softmax(-1)
    )[mask].mean(),
}


def run(example: Path, folder: Path) -> list[tuple[list[Tensor], mkd.LossOutput]]:
    """Run it; what each call of kd_loss was given (logits keep their gradients) and returned."""
    calls = []
    kd_loss = mkd.kd_loss

    def spy(student: Tensor, teacher: Tensor, *labels: Tensor, **kwargs: Any) -> mkd.LossOutput:
        student.retain_grad()
        out = kd_loss(student, teacher, *labels, **kwargs)
        which = [*labels, *(kwargs[name] for name in ("labels", "mask") if name in kwargs)]
        calls.append(([student, teacher, *which], out))
        return out

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(mkd, "kd_loss", spy)
        patch.chdir(folder)
        runpy.run_path(str(example))
    return calls


# The libraries warn of themselves: of their own renamed options, and of a machine without a GPU.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_its_trainer_optimises_the_promised_loss(example, tmp_path):
    calls = run(example, tmp_path)
    losses = [out.loss.item() for _, out in calls]
    assert sum(losses[-5:]) < sum(losses[:5])

    (student, teacher, which), out = calls[0]
    values, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        leaf = student.detach().to(dtype).requires_grad_()
        values.append(PROMISED[example.stem](leaf, teacher.to(dtype), which))
        gradients += torch.autograd.grad(values[-1], leaf)
    assert_within_budget(out.loss.detach(), *values, "loss")
    assert_within_budget(student.grad, *gradients, "gradient that the trainer asked for")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(example):
    docstring = ast.parse(example.read_text()).body[0]
    assert len(example.read_text().splitlines()) - docstring.end_lineno < 30
