"""How far the loss and its gradient from a cache are from the dense ones, in float64.

With G the gradient of the dense forward KL for the student's logits [N, V] and G' the cache's:

    cosine           <G, G'> / (|G| |G'|)
    error            |G' - G| / |G|
    error of the sum |sum_n (G' - G)_n| / |sum_n G_n|, as the gradient of the head's bias has it
    error of R draws |mean_r G'_r - G| / |G|: what is left of it is bias

A sample does not know the teacher's entropy: for the comparison of values it is taken off.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mkd_fast import kd_loss
from mkd_fast.benchmarks.fidelity.numbers import Number
from mkd_fast.benchmarks.fidelity.study import (
    HELD_OUT,
    IGNORED,
    NARROW,
    SAMPLED,
    SPARSE,
    TEMPERATURES,
    Study,
    repeated,
    select,
)
from mkd_fast.losses import SparseTeacher, TeacherHead, hidden_loss
from mkd_fast.losses.targets import Tail, Teacher
from mkd_fast.teacher import TeacherCache

# N tokens that count, V vocabulary

COMPARED_TAILS: tuple[Tail, ...] = ("bucket", "renormalize", "drop")


@dataclass(frozen=True)
class Target:
    """A kind in a cache, and how it is used."""

    keep: str
    cache: str = HELD_OUT
    tail: Tail | None = None
    temperature: float = 1.0

    @property
    def kind(self) -> str:
        """For the table."""
        if self.cache == NARROW:
            return f"{self.keep}, bfloat16"
        return self.keep if self.tail is None else f"{self.keep}, {self.tail}"

    def of(self, teacher: Teacher) -> Teacher:
        """What a cache hands over, used this way."""
        if isinstance(teacher, SparseTeacher) and self.tail is not None:
            return replace(teacher, tail=self.tail)
        if isinstance(teacher, TeacherHead):  # what was kept in bfloat16, on a float32 head
            return replace(teacher, hidden=teacher.hidden.float())
        return teacher


TARGETS = (
    Target("hidden"),
    Target("hidden", NARROW),
    *(
        Target(keep, tail=tail, temperature=temperature)
        for temperature in TEMPERATURES
        for keep in SPARSE
        for tail in COMPARED_TAILS
    ),
    *(Target(keep) for keep in SAMPLED),
)


@dataclass
class Comparison:
    """Sums over tokens of a gradient and its error."""

    exact_loss: float = 0.0
    loss: float = 0.0
    exact_square: float = 0.0
    error_square: float = 0.0
    product: float = 0.0  # of exact gradient and error
    exact_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # over tokens
    error_sum: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, exact: tuple[float, Tensor], loss: float, grad: Tensor) -> None:
        """Some tokens: summed loss and gradient, both exact and from the cache."""
        exact_loss, exact_grad = exact
        error = grad.double() - exact_grad
        self.exact_loss += exact_loss
        self.loss += loss
        self.exact_square += exact_grad.square().sum().item()
        self.error_square += error.square().sum().item()
        self.product += torch.dot(exact_grad.flatten(), error.flatten()).item()
        self.exact_sum = self.exact_sum + exact_grad.flatten(0, -2).sum(0)
        self.error_sum = self.error_sum + error.flatten(0, -2).sum(0)

    def measures(self) -> dict[str, float]:
        """By name, as the module says."""
        square = self.exact_square + 2 * self.product + self.error_square
        return {
            "relative error of the loss": self.loss / self.exact_loss - 1,
            "gradient's cosine": (self.exact_square + self.product)
            / (self.exact_square * square) ** 0.5,
            "gradient's error": (self.error_square / self.exact_square) ** 0.5,
            "error of the sum": (self.error_sum.norm() / self.exact_sum.norm()).item(),
        }


def gradient(student_NV: Tensor, teacher: Any, temperature: float) -> tuple[float, Tensor]:
    """The forward KL summed over tokens, and its gradient for the student's logits."""
    logits_NV = student_NV.detach().requires_grad_()
    loss = kd_loss(logits_NV, teacher, temperature=temperature, reduction="sum").loss
    (grad_NV,) = torch.autograd.grad(loss, logits_NV)
    return loss.item(), grad_NV


def exact_gradient(
    student_NV: Tensor, teacher_NV: Tensor, temperature: float
) -> tuple[float, Tensor]:
    """The same from all of the teacher's logits, in float64."""
    return gradient(student_NV.double(), teacher_NV.double(), temperature)


def entropy(teacher_NV: Tensor) -> float:
    """Of the teacher at T = 1, summed over tokens."""
    log_p_NV = teacher_NV.double().log_softmax(-1)
    return -(log_p_NV.exp() * log_p_NV).sum().item()


def of_logits(study: Study, student: Any, label: str) -> Iterator[Number]:
    """Every target's errors on the held-out samples."""
    caches = {name: study.cache(name) for name in (HELD_OUT, NARROW)}
    comparisons = {target: Comparison() for target in TARGETS}
    num_tokens, exact_loss = 0, dict.fromkeys(TEMPERATURES, 0.0)
    for row, (student_NV, teacher_NV, is_counted) in enumerate(_logits(study, student)):
        exact = {t: exact_gradient(student_NV, teacher_NV, t) for t in TEMPERATURES}
        num_tokens += len(teacher_NV)
        for temperature in TEMPERATURES:
            exact_loss[temperature] += exact[temperature][0]
        for target, comparison in comparisons.items():
            teacher = caches[target.cache].batch(
                [row], keep=target.keep, temperature=target.temperature, hidden_layers=()
            )
            chosen = target.of(select(teacher.teacher, is_counted))
            loss, grad_NV = gradient(student_NV, chosen, target.temperature)
            if target.keep in SAMPLED:
                loss -= entropy(teacher_NV)
            comparison.add(exact[target.temperature], loss, grad_NV)
    for temperature, total in exact_loss.items():
        kl = total / num_tokens
        yield Number(study.name, "dense", label, temperature, "forward KL x T^2, nats", kl)
    for target, comparison in comparisons.items():
        for measure, value in comparison.measures().items():
            yield Number(study.name, target.kind, label, target.temperature, measure, value)


def of_repeated_draws(study: Study, student: Any, label: str) -> Iterator[Number]:
    """The error of the mean gradient of 1, 4, 16, ... draws for the same tokens at T = 1."""
    size, languages = study.size, study.held_out.languages
    first = {languages.index(language) for language in languages}
    chosen = [pair for row, pair in enumerate(_logits(study, student)) if row in first]
    student_NV, teacher_NV = (
        torch.cat([pair[side][: size.repeated_tokens] for pair in chosen]) for side in (0, 1)
    )
    _, exact_NV = exact_gradient(student_NV, teacher_NV, 1.0)
    for keeps, times in ((SPARSE, 1), (SAMPLED, size.num_repetitions)):
        cache = repeated(teacher_NV, keeps, times, study.folder / "repeated")
        for target in TARGETS:
            if target.keep in keeps and target.temperature == 1.0:
                for draws, mean_NV in _mean_gradients(cache, target, student_NV):
                    error = ((mean_NV.double() - exact_NV).norm() / exact_NV.norm()).item()
                    measure = f"gradient's error, mean of {draws} draws"
                    yield Number(study.name, target.kind, label, 1.0, measure, error)


def _mean_gradients(
    cache: TeacherCache, target: Target, student_NV: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """The mean over the first 1, 4, 16, ... samples of a cache, all of the same tokens."""
    total_NV, is_counted = torch.zeros_like(student_NV), torch.ones(1, len(student_NV)).bool()
    wanted = {4**power for power in range(len(cache).bit_length())}
    for draw in range(len(cache)):
        teacher = cache.batch([draw], keep=target.keep).teacher
        total_NV += gradient(student_NV, target.of(select(teacher, is_counted)), 1.0)[1]
        if draw + 1 in wanted:
            yield draw + 1, total_NV / (draw + 1)


def of_matched_layers(study: Study, student: Any, label: str) -> Iterator[Number]:
    """The hidden-MSE term and its gradient, against the teacher's float32 states."""
    layers = dict(zip(study.matched_layers, study.layers_of(student), strict=True))
    caches = {"int8": study.cache(HELD_OUT), "bfloat16": study.cache(NARROW)}
    comparisons = {(layer, dtype): Comparison() for layer in layers for dtype in caches}
    for row, ids in enumerate(study.held_out.input_ids.split(1)):
        ours, theirs = _states(student, ids), _states(study.teacher, ids)
        for (layer, dtype), comparison in comparisons.items():
            state = ours[layers[layer]]
            batch = caches[dtype].batch([row], keep="hidden", hidden_layers=[layer])
            exact = _mse(state.double(), theirs[layer].double())
            comparison.add(exact, *_mse(state, batch.hidden[0]))
    for (layer, dtype), comparison in comparisons.items():
        for measure, value in comparison.measures().items():
            kind = f"layer {layer}, {dtype}"
            yield Number(study.name, kind, label, 0.0, measure, value)


def _mse(student: Tensor, teacher: Any) -> tuple[float, Tensor]:
    student = student.detach().requires_grad_()
    loss = hidden_loss(student, teacher, reduction="sum")
    (grad,) = torch.autograd.grad(loss, student)
    return loss.item(), grad


@torch.no_grad()
def _states(model: Any, ids: Tensor) -> tuple[Tensor, ...]:
    states: tuple[Tensor, ...] = model(input_ids=ids, output_hidden_states=True).hidden_states
    return states


@torch.no_grad()
def _logits(study: Study, student: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Student's and teacher's logits [N, V] of each held-out sample, and which tokens count."""
    text = study.held_out
    for ids, labels in zip(text.input_ids.split(1), text.labels.split(1), strict=True):
        is_counted = labels != IGNORED
        mask = torch.ones_like(ids)
        student_NV = student(input_ids=ids, attention_mask=mask).logits[is_counted].float()
        teacher_NV = study.teacher(input_ids=ids, attention_mask=mask).logits[is_counted]
        yield student_NV, teacher_NV, is_counted
