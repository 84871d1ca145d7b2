"""``dense_kd``: forward and gradient of ``kd_loss`` on dense logits, beside what others would run.

Every case is forward KL at T = 2 plus half the cross-entropy, on tokens that all count; one has
hidden layers besides. The rivals:

    eager          the formula as practitioners write it, from torch.nn.functional
    torch.compile  of that formula, shapes static
    reference      our own eager path, which also knows masks, -inf and empty batches
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mkd_fast import kd_loss
from mkd_fast.benchmarks.harness import STREAM, Budget, Case, Run
from mkd_fast.losses.loss import Impl

TEMPERATURE = 2.0
CE_WEIGHT = 0.5

_LARGE_VOCABULARY = (Budget("torch.compile", 4.0), Budget("eager", 12.0), Budget(STREAM, 0.5))
_FEW_COLUMNS = (Budget("torch.compile", 3.0),)
_ON_GPU = (Budget("torch.compile", 1.0), Budget("eager", 1.0), Budget(STREAM, 0.85))


@dataclass(frozen=True)
class Shape:
    """Logits, and the hidden states beside them where there are layers."""

    dtype: torch.dtype
    num_rows: int
    num_columns: int
    num_gpu_rows: int
    cpu_budgets: tuple[Budget, ...] = ()
    num_layers: int = 0
    num_positions: int = 0  # a row
    width: int = 0

    def on(self, device: torch.device, *, is_tiny: bool) -> "Shape":
        """The shape to run on a device; a tiny one has the same parts, a few of each."""
        if not is_tiny:
            return replace(self, num_rows=self.num_gpu_rows) if device.type == "cuda" else self
        few = max(60, self.num_columns // 101)
        return replace(self, num_rows=4, num_columns=few, num_positions=3, width=24, cpu_budgets=())

    @property
    def name(self) -> str:
        """Unique among the cases."""
        logits = f"{str(self.dtype).removeprefix('torch.')} {self.num_rows} x {self.num_columns}"
        num_positions = self.num_rows * self.num_positions
        hidden = f" + {self.num_layers} x {num_positions} x {self.width}"
        return logits + hidden * bool(self.num_layers)


# Rows: the slowest variant stays near a second on two cores, the float64 truth within 80 GB.
SHAPES = (
    Shape(torch.float32, 512, 32_000, 8192, _LARGE_VOCABULARY),
    Shape(torch.bfloat16, 512, 32_000, 8192, _LARGE_VOCABULARY),
    Shape(torch.float32, 128, 128_256, 4096, _LARGE_VOCABULARY),
    Shape(torch.bfloat16, 128, 128_256, 4096, _LARGE_VOCABULARY),
    Shape(torch.bfloat16, 64, 250_002, 2048),
    Shape(torch.float32, 32_768, 60, 1 << 20, _FEW_COLUMNS),
    Shape(torch.float32, 32, 60, 256, num_layers=8, num_positions=128, width=768),
)


class Inputs(NamedTuple):
    """What one call works on."""

    student: Tensor  # [N, V]
    teacher: Tensor  # [N, V]
    labels: Tensor  # [N]
    student_hidden: tuple[Tensor, ...]  # [N, P, D] each
    teacher_hidden: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        logits = self.student.nbytes + self.teacher.nbytes + self.labels.nbytes
        return logits + sum(h.nbytes for h in (*self.student_hidden, *self.teacher_hidden))

    def in_float64(self) -> "Inputs":
        """The same numbers, as the truth is computed from."""
        return Inputs(
            self.student.detach().double().requires_grad_(),
            self.teacher.double(),
            self.labels,
            tuple(h.detach().double().requires_grad_() for h in self.student_hidden),
            tuple(h.double() for h in self.teacher_hidden),
        )


def make_inputs(shape: Shape, device: torch.device, seed: int) -> Inputs:
    """Random inputs; the teacher is surer of itself than the student."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=shape.dtype, device=device)

    logits = (shape.num_rows, shape.num_columns)
    hidden = (shape.num_rows, shape.num_positions, shape.width)
    return Inputs(
        student=normal(*logits).requires_grad_(),
        teacher=normal(*logits).mul_(3.0),
        labels=torch.randint(
            shape.num_columns, (shape.num_rows,), generator=generator, device=device
        ),
        student_hidden=tuple(normal(*hidden).requires_grad_() for _ in range(shape.num_layers)),
        teacher_hidden=tuple(normal(*hidden) for _ in range(shape.num_layers)),
    )


def formula(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    student_hidden: tuple[Tensor, ...],
    teacher_hidden: tuple[Tensor, ...],
) -> Tensor:
    """The loss as a training script has it."""
    student, teacher = student.float(), teacher.float()
    log_q = functional.log_softmax(student / TEMPERATURE, -1)
    log_p = functional.log_softmax(teacher / TEMPERATURE, -1)
    kd = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    loss = TEMPERATURE**2 * kd + CE_WEIGHT * functional.cross_entropy(student, labels)
    for ours, theirs in zip(student_hidden, teacher_hidden, strict=True):
        loss = loss + functional.mse_loss(ours.float(), theirs.float()) / len(student_hidden)
    return loss


@functools.cache
def _compiled_formula() -> Callable[..., Tensor]:
    return torch.compile(formula, dynamic=False)


def _ours(impl: Impl, inputs: Inputs) -> Tensor:
    return kd_loss(
        inputs.student,
        inputs.teacher,
        inputs.labels,
        student_hidden=inputs.student_hidden or None,
        teacher_hidden=inputs.teacher_hidden or None,
        impl=impl,
        temperature=TEMPERATURE,
        ce_weight=CE_WEIGHT,
        hidden_weight=1.0 if inputs.student_hidden else 0.0,
    ).loss


def _with_gradients(loss_of: Callable[[Inputs], Tensor]) -> Run:
    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        loss = loss_of(inputs)
        gradients = torch.autograd.grad(loss, (inputs.student, *inputs.student_hidden))
        return (loss.detach(), *gradients)

    return run


def num_bytes_moved(shape: Shape, device: torch.device) -> int:
    """On a GPU what the kernel requests; on a CPU every logit of both sides and gradient once."""
    size = shape.dtype.itemsize
    num_hidden = shape.num_layers * shape.num_rows * shape.num_positions * shape.width
    if device.type == "cuda":
        from mkd_fast.kernels.dense_kd import traffic

        logits = traffic(
            shape.num_rows, shape.num_columns, student_bytes=size, teacher_bytes=size
        ).num_bytes
    else:
        logits = 3 * size * shape.num_rows * shape.num_columns
    return logits + 3 * size * num_hidden


def make_case(shape: Shape, device: torch.device) -> Case:
    """A shape with everyone who computes it."""
    return Case(
        name=shape.name,
        make_inputs=lambda seed: make_inputs(shape, device, seed),
        exact=lambda inputs: _with_gradients(lambda i: _ours("eager", i))(inputs.in_float64()),
        plain=_with_gradients(lambda inputs: _ours("eager", inputs)),
        variants={
            "fused": _with_gradients(lambda inputs: _ours("fused", inputs)),
            "eager": _with_gradients(lambda inputs: formula(*inputs)),
            "torch.compile": _with_gradients(lambda inputs: _compiled_formula()(*inputs)),
            "reference": _with_gradients(lambda inputs: _ours("eager", inputs)),
        },
        num_bytes=num_bytes_moved(shape, device),
        budgets=_ON_GPU if device.type == "cuda" else shape.cpu_budgets,
    )


def cases(device: torch.device, *, is_tiny: bool) -> list[Case]:
    """All cases of the op."""
    return [make_case(shape.on(device, is_tiny=is_tiny), device) for shape in SHAPES]
