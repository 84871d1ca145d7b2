"""``hidden_loss``: forward and gradient of the squared error between matched hidden layers.

The rivals are the formula of a training script, and torch.compile of it.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mkd_fast import Int8Hidden, hidden_loss
from mkd_fast.benchmarks import formulas
from mkd_fast.benchmarks.case import ON_GPU, Case, dtype_name
from mkd_fast.benchmarks.inputs import Inputs, by_rows, exact, with_gradients
from mkd_fast.losses.loss import Impl

_INT8_STEP = 3.0 / 127


@dataclass(frozen=True)
class Shape:
    """Matched layers of one width; an int8 teacher has a scale a row."""

    dtype: torch.dtype
    num_layers: int = 8
    num_tokens: int = 4096
    width: int = 768
    is_int8: bool = False

    def tiny(self) -> "Shape":
        """The same parts, a few of each."""
        return replace(self, num_tokens=12, width=24)

    @property
    def name(self) -> str:
        """Unique among the cases."""
        teacher = ", int8 teacher" if self.is_int8 else ""
        layers = f"{self.num_layers} x {self.num_tokens} x {self.width}"
        return f"{dtype_name(self.dtype)} {layers}{teacher}"

    @property
    def num_bytes(self) -> int:
        """Both sides read and the gradient written, once."""
        size = self.dtype.itemsize
        teacher = self.width + 4 if self.is_int8 else self.width * size
        return self.num_layers * self.num_tokens * (2 * size * self.width + teacher)


SHAPES = (Shape(torch.float32), Shape(torch.bfloat16), Shape(torch.bfloat16, is_int8=True))
GPU_SHAPES = tuple(
    Shape(torch.bfloat16, num_tokens=8192, width=4096, is_int8=is_int8) for is_int8 in (False, True)
)


def make_inputs(shape: Shape, device: torch.device, seed: int) -> Inputs:
    """Random states of both sides."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal() -> Tensor:
        size = (shape.num_tokens, shape.width)
        return torch.randn(size, generator=generator, dtype=shape.dtype, device=device)

    layers = range(shape.num_layers)
    student = tuple(normal().requires_grad_() for _ in layers)
    if not shape.is_int8:
        return Inputs(
            {"student_hidden": student, "teacher_hidden": tuple(normal() for _ in layers)}
        )
    values = tuple(
        normal().float().div(_INT8_STEP).round().clamp(-127, 127).to(torch.int8) for _ in layers
    )
    scale = torch.full((shape.num_tokens,), _INT8_STEP, device=device)
    return Inputs(
        {
            "student_hidden": student,
            "teacher_hidden": values,
            "teacher_scale": tuple(scale.clone() for _ in layers),
        }
    )


def loss_of(
    student_hidden: tuple[Tensor, ...],
    teacher_hidden: tuple[Tensor, ...],
    teacher_scale: tuple[Tensor, ...] = (),
    *,
    impl: Impl = "fused",
    num_tokens: int | None = None,
) -> Tensor:
    """Ours, or with ``impl="eager"`` its reference."""
    teacher: tuple[Tensor | Int8Hidden, ...] = teacher_hidden
    if teacher_scale:
        teacher = tuple(map(Int8Hidden, teacher_hidden, teacher_scale))
    return hidden_loss(student_hidden, teacher, impl=impl, num_tokens=num_tokens)


def make_case(shape: Shape, device: torch.device) -> Case:
    """A shape with everyone who computes it."""
    reference = partial(loss_of, impl="eager")
    return Case(
        name=shape.name,
        make_inputs=partial(make_inputs, shape, device),
        exact=by_rows(reference, exact),
        plain=by_rows(reference, with_gradients),
        variants={
            "fused": with_gradients(loss_of),
            "eager": with_gradients(formulas.hidden),
            "torch.compile": with_gradients(formulas.compiled(formulas.hidden)),
        },
        num_bytes=shape.num_bytes,
        budgets=ON_GPU if device.type == "cuda" else (),
    )


def cases(device: torch.device, *, is_tiny: bool) -> list[Case]:
    """All cases of the op."""
    shapes = GPU_SHAPES if device.type == "cuda" else SHAPES
    return [make_case(shape.tiny() if is_tiny else shape, device) for shape in shapes]
