"""How far the loss and its gradient from a cache are from the dense ones, in float64.

With G the gradient of the dense forward KL for the student's logits [N, V] and G' the cache's:

    cosine           <G, G'> / (|G| |G'|)
    error            |G' - G| / |G|
    error of the sum |sum_n (G' - G)_n| / |sum_n G_n|, as the gradient of the head's bias has it
    error of R draws |mean_r G'_r - G| / |G|: what is left of it is bias

A sample does not know the teacher's entropy: for the comparison of values it is taken off.
"""

from collections.abc import Iterator, Mapping
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
    exact_sum: Any = field(default=0.0)  # [V]
    error_sum: Any = field(default=0.0)

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
    """The error of the mean gradient of 1, 4, 16, ... draws for the same tokens."""
    first = [
        study.held_out.languages.index(name) for name in dict.fromkeys(study.held_out.languages)
    ]
    size = study.size
    chosen = [pair for row, pair in enumerate(_logits(study, student)) if row in first]
    student_NV, teacher_NV = (
        torch.cat([pair[side][: size.repeated_tokens] for pair in chosen]) for side in (0, 1)
    )
    _, exact_NV = exact_gradient(student_NV, teacher_NV, 1.0)
    for keeps, times in ((SPARSE, 1), (SAMPLED, size.num_repetitions)):
        cache = repeated(teacher_NV, keeps, times, study.folder / "repeated")
        targets = [target for target in TARGETS if target.keep in keeps]
        for target in targets:
            if target.temperature != 1.0:
                continue
            total_NV = torch.zeros_like(student_NV)
            for draw in range(times):
                teacher = cache.batch([draw], keep=target.keep).teacher
                flat = target.of(select(teacher, torch.ones(1, len(total_NV), dtype=torch.bool)))
                total_NV += gradient(student_NV, flat, 1.0)[1]
                if (draw + 1).bit_count() == 1 and (draw + 1).bit_length() % 2:
                    error = (total_NV.double() / (draw + 1) - exact_NV).norm() / exact_NV.norm()
                    measure = f"gradient's error, mean of {draw + 1} draws"
                    yield Number(study.name, target.kind, label, 1.0, measure, error.item())


def of_matched_layers(study: Study, student: Any, label: str) -> Iterator[Number]:
    """The hidden-MSE term and its gradient, against the teacher's float32 states."""
    depth = student.config.num_hidden_layers
    layers = dict(zip(study.matched_layers, (depth // 2, depth), strict=True))
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


def stored_bytes(study: Study, budgets: Mapping[str, float]) -> Iterator[Number]:
    """Bytes a token by part, everything counted, and distinct ids a token by language."""
    cache = study.cache(HELD_OUT)
    summary = cache.summary()
    parts = summary.bytes_per_token
    narrow = study.cache(NARROW).summary().bytes_per_token
    index = parts["index"]
    for kind in (*SPARSE, *SAMPLED):
        own = {name: count for name, count in parts.items() if name.startswith(f"{kind}.")}
        yield from _bytes(study, kind, {**own, "index": index}, budgets.get(kind))
    yield from _bytes(study, "hidden", {"hidden.last": parts["hidden.last"], "index": index})
    narrow_parts = {"hidden.last": narrow["hidden.last"], "index": narrow["index"]}
    yield from _bytes(study, "hidden, bfloat16", narrow_parts)
    yield Number(study.name, "hidden", "", 0.0, "head, bytes in all", summary.head_bytes)
    for layer in study.matched_layers:
        for dtype, of in (("int8", parts), ("bfloat16", narrow)):
            own = {n: of[n] for n in (f"hidden.{layer}", f"hidden.{layer}.scale") if n in of}
            yield from _bytes(study, f"layer {layer}, {dtype}", {**own, "index": of["index"]})
    for kind in SAMPLED:
        for language in dict.fromkeys(study.held_out.languages):
            rows = [n for n, name in enumerate(study.held_out.languages) if name == language]
            measure = f"distinct ids a token, {language}"
            yield Number(study.name, kind, "", 1.0, measure, _distinct(cache, kind, rows))


def _bytes(
    study: Study, kind: str, parts: Mapping[str, float], at_most: float | None = None
) -> Iterator[Number]:
    total = sum(parts.values())
    yield Number(study.name, kind, "", 0.0, "bytes a token", total, at_most)
    for name, count in parts.items():
        yield Number(study.name, kind, "", 0.0, f"bytes a token, {name}", count)


def _distinct(cache: Any, kind: str, rows: list[int]) -> float:
    teacher = cache.batch(rows, keep=kind, hidden_layers=()).teacher
    sampled = teacher if hasattr(teacher, "weights") else teacher.unpacked()
    return float((sampled.ids >= 0).sum(-1).float().mean())
