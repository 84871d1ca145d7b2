"""``dense_kd``: forward and gradient of ``kd_loss`` on dense logits, beside what others would run.

Cases are forward KL at T = 2 plus half the cross-entropy, on tokens that all count; one has hidden
layers besides, and on a GPU some are the Jensen-Shannon divergence, which rivals offer. On a CPU
the rivals are the formula of a training script, and torch.compile of it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mkd_fast import kd_loss
from mkd_fast.benchmarks import formulas, published
from mkd_fast.benchmarks.case import ON_GPU, STREAM, Budget, Case, dtype_name
from mkd_fast.benchmarks.formulas import CE_WEIGHT, TEMPERATURE
from mkd_fast.benchmarks.inputs import Inputs, by_rows, exact, with_gradients
from mkd_fast.benchmarks.roofline import rows_that_fit
from mkd_fast.losses.loss import Impl

_LARGE_VOCABULARY = (Budget("torch.compile", 4.0), Budget("eager", 12.0), Budget(STREAM, 0.5))
_FEW_COLUMNS = (Budget("torch.compile", 3.0),)


@dataclass(frozen=True)
class Shape:
    """Logits, and the hidden states beside them where there are layers."""

    dtype: torch.dtype
    num_rows: int
    num_columns: int
    cpu_budgets: tuple[Budget, ...] = ()
    divergence: Literal["forward_kl", "jsd"] = "forward_kl"
    num_layers: int = 0
    num_positions: int = 0  # a row
    width: int = 0

    def tiny(self) -> "Shape":
        """The same parts, a few of each."""
        few = max(60, self.num_columns // 101)
        return replace(self, num_rows=4, num_columns=few, num_positions=3, width=24, cpu_budgets=())

    @property
    def name(self) -> str:
        """Unique among the cases."""
        kind = "jsd, " if self.divergence == "jsd" else ""
        num_positions = self.num_rows * self.num_positions
        hidden = f" + {self.num_layers} x {num_positions} x {self.width}"
        logits = f"{kind}{dtype_name(self.dtype)} {self.num_rows} x {self.num_columns}"
        return logits + hidden * bool(self.num_layers)

    @property
    def formula_name(self) -> str:
        """Of the rivals in formulas.py and published.py."""
        return "jsd" if self.divergence == "jsd" else "dense_kd"


# Rows: the slowest variant stays near a second on two cores.
SHAPES = (
    Shape(torch.float32, 512, 32_000, _LARGE_VOCABULARY),
    Shape(torch.bfloat16, 512, 32_000, _LARGE_VOCABULARY),
    Shape(torch.float32, 128, 128_256, _LARGE_VOCABULARY),
    Shape(torch.bfloat16, 128, 128_256, _LARGE_VOCABULARY),
    Shape(torch.bfloat16, 64, 250_002),
    Shape(torch.float32, 32_768, 60, _FEW_COLUMNS),
    Shape(torch.float32, 32, 60, num_layers=8, num_positions=128, width=768),
)


def gpu_shapes(device: torch.device) -> list[Shape]:
    """Shapes for a GPU, as many rows as fit, what matters most first."""
    bf16, fp32 = torch.bfloat16, torch.float32
    large = [
        Shape(dtype, rows_that_fit(device, num_columns), num_columns)
        for dtype, num_columns in (
            (bf16, 128_256), (bf16, 32_000), (bf16, 151_936), (bf16, 250_002),
            (fp32, 128_256), (fp32, 32_000),
        )
    ]  # fmt: skip
    jsd = replace(large[0], divergence="jsd")
    return [large[0], Shape(bf16, 32_768, 60), large[1], jsd, *large[2:]]


def make_inputs(shape: Shape, device: torch.device, seed: int) -> Inputs:
    """Random inputs; the teacher is surer of itself than the student."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=shape.dtype, device=device)

    size = (shape.num_rows, shape.num_columns)
    inputs = Inputs({"student": normal(*size).requires_grad_(), "teacher": normal(*size).mul_(3.0)})
    if shape.divergence == "forward_kl":
        inputs.arguments["labels"] = torch.randint(
            shape.num_columns, (shape.num_rows,), generator=generator, device=device
        )
    if shape.num_layers:
        states = (shape.num_rows, shape.num_positions, shape.width)
        layers = range(shape.num_layers)
        inputs.arguments["student_hidden"] = tuple(normal(*states).requires_grad_() for _ in layers)
        inputs.arguments["teacher_hidden"] = tuple(normal(*states) for _ in layers)
    return inputs


def loss_of(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    student_hidden: tuple[Tensor, ...] = (),
    teacher_hidden: tuple[Tensor, ...] = (),
    *,
    divergence: Literal["forward_kl", "jsd"] = "forward_kl",
    impl: Impl = "fused",
    num_tokens: int | None = None,
) -> Tensor:
    """Ours, or with ``impl="eager"`` its reference."""
    return kd_loss(
        student,
        teacher,
        labels,
        student_hidden=student_hidden or None,
        teacher_hidden=teacher_hidden or None,
        impl=impl,
        num_tokens=num_tokens,
        divergence=divergence,
        temperature=TEMPERATURE if divergence == "forward_kl" else 1.0,
        ce_weight=0.0 if labels is None else CE_WEIGHT,
        hidden_weight=1.0 if student_hidden else 0.0,
    ).loss


def num_bytes_moved(shape: Shape, device: torch.device) -> int:
    """On a GPU what the kernel requests; on a CPU every logit of both sides and gradient once."""
    size = shape.dtype.itemsize
    num_hidden = shape.num_layers * shape.num_rows * shape.num_positions * shape.width
    if device.type == "cuda":
        from mkd_fast.kernels.dense_kd import traffic

        logits = traffic(
            shape.num_rows,
            shape.num_columns,
            student_bytes=size,
            teacher_bytes=size,
            divergence=shape.divergence,
        ).num_bytes
    else:
        logits = 3 * size * shape.num_rows * shape.num_columns
    return logits + 3 * size * num_hidden


def make_case(shape: Shape, device: torch.device) -> Case:
    """A shape with everyone who computes it."""
    ours = partial(loss_of, divergence=shape.divergence)
    formula = getattr(formulas, shape.formula_name)
    return Case(
        name=shape.name,
        make_inputs=partial(make_inputs, shape, device),
        exact=by_rows(partial(ours, impl="eager"), exact),
        plain=by_rows(partial(ours, impl="eager"), with_gradients),
        rough=with_gradients(partial(formula, dtype=shape.dtype)),
        variants={
            "fused": with_gradients(ours),
            "eager": with_gradients(formula),
            "torch.compile": with_gradients(formulas.compiled(formula)),
            **(published.rivals(shape.formula_name) if device.type == "cuda" else {}),
        },
        num_bytes=num_bytes_moved(shape, device),
        budgets=ON_GPU if device.type == "cuda" else shape.cpu_budgets,
    )


def cases(device: torch.device, *, is_tiny: bool) -> list[Case]:
    """All cases of the op."""
    shapes = gpu_shapes(device) if device.type == "cuda" else SHAPES
    return [make_case(shape.tiny() if is_tiny else shape, device) for shape in shapes]
