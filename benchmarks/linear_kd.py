"""``linear_kd_loss``: forward and both gradients from last hidden states and heads.

Dense cases rebuild the teacher's logits from its own head, sparse ones have its top 64. Forward KL
at T = 2 plus half the cross-entropy. The rivals hold the logits of both sides, ``[N, V]``, whole;
``matrix products`` does nothing but the products that no way around them exists for, and is the
limit. Peak memory is what this op is for: see ``extra_mb``.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mkd_fast import SparseTeacher, TeacherHead, linear_kd_loss
from mkd_fast.benchmarks import formulas, published
from mkd_fast.benchmarks.case import Budget, Case, dtype_name
from mkd_fast.benchmarks.formulas import CE_WEIGHT, TEMPERATURE
from mkd_fast.benchmarks.inputs import Inputs, Outputs, exact, with_gradients
from mkd_fast.losses.loss import Impl

_PRODUCTS = "matrix products"
_BUDGETS = (Budget(_PRODUCTS, 1 / 1.15),)
_NUM_KEPT = 64
_JUDGED_TOKENS = 128  # the truth in float64 takes minutes on all of them
_CHUNK_TOKENS = 512  # of the bare products

# N tokens, V vocabulary, D width


@dataclass(frozen=True)
class Shape:
    """Last hidden states and heads; both sides are equally wide."""

    dtype: torch.dtype
    num_tokens: int
    width: int
    num_columns: int
    teacher: Literal["head", "sparse"] = "head"
    divergence: Literal["forward_kl", "jsd"] = "forward_kl"

    def tiny(self) -> "Shape":
        """The same parts, a few of each."""
        return replace(self, num_tokens=9, width=16, num_columns=max(100, self.num_columns // 1009))

    @property
    def name(self) -> str:
        """Unique among the cases."""
        kind = "jsd, " if self.divergence == "jsd" else ""
        teacher = "teacher's head" if self.teacher == "head" else f"K {_NUM_KEPT}"
        shape = f"{self.num_tokens} x {self.width} -> {self.num_columns}"
        return f"{kind}{dtype_name(self.dtype)} {shape}, {teacher}"

    @property
    def num_bytes(self) -> int:
        """Hidden states and heads read, and the student's gradients written, once."""
        one_side = self.dtype.itemsize * self.width * (self.num_tokens + self.num_columns)
        if self.teacher == "head":
            return 3 * one_side
        return 2 * one_side + self.num_tokens * (_NUM_KEPT * (4 + self.dtype.itemsize) + 4)

    @property
    def formula_name(self) -> str:
        """Of the rivals in formulas.py and published.py."""
        if self.teacher == "sparse":
            return "linear_sparse_kd"
        return "linear_jsd" if self.divergence == "jsd" else "linear_kd"


SHAPES = tuple(
    Shape(dtype, 2048, width, num_columns, teacher)
    for dtype, width, num_columns in (
        (torch.bfloat16, 768, 250_002),
        (torch.float32, 2048, 32_000),
    )
    for teacher in ("head", "sparse")
)


GPU_SHAPES = (
    Shape(torch.bfloat16, 8192, 4096, 128_256),
    Shape(torch.bfloat16, 8192, 4096, 128_256, divergence="jsd"),
    Shape(torch.bfloat16, 8192, 4096, 128_256, "sparse"),
)


def make_inputs(
    shape: Shape, device: torch.device, seed: int, num_tokens: int | None = None
) -> Inputs:
    """Random inputs whose logits are normal, the teacher's three times as large."""
    generator = torch.Generator(device).manual_seed(seed)
    num_tokens = num_tokens or shape.num_tokens

    def normal(*size: int, std: float = 1.0) -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=shape.dtype, device=device)
        return drawn.mul_(std)

    std = shape.width**-0.5
    arguments: dict[str, Tensor | tuple[Tensor, ...]] = {
        "hidden": normal(num_tokens, shape.width).requires_grad_(),
        "weight": normal(shape.num_columns, shape.width, std=std).requires_grad_(),
    }
    if shape.divergence == "forward_kl":
        arguments["labels"] = torch.randint(
            shape.num_columns, (num_tokens,), generator=generator, device=device
        )
    if shape.teacher == "head":
        arguments["teacher_hidden"] = normal(num_tokens, shape.width)
        arguments["teacher_weight"] = normal(shape.num_columns, shape.width, std=3 * std)
        return Inputs(arguments)
    first = torch.randint(shape.num_columns, (num_tokens, 1), generator=generator, device=device)
    spread = torch.arange(_NUM_KEPT, device=device) * (shape.num_columns // _NUM_KEPT)
    ids = (first + spread) % shape.num_columns  # distinct
    logits = normal(num_tokens, _NUM_KEPT, std=3.0)
    kept_z = logits.float().div(TEMPERATURE).logsumexp(-1)
    log_z = kept_z + 0.1  # a tenth of the teacher's mass lies outside
    return Inputs(arguments | {"ids": ids.int(), "logits": logits, "log_z": log_z})


def loss_of(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    ids: Tensor | None = None,
    logits: Tensor | None = None,
    log_z: Tensor | None = None,
    *,
    divergence: Literal["forward_kl", "jsd"] = "forward_kl",
    impl: Impl = "fused",
) -> Tensor:
    """Ours, or with ``impl="eager"`` its reference."""
    teacher: TeacherHead | SparseTeacher
    if teacher_hidden is not None and teacher_weight is not None:
        teacher = TeacherHead(teacher_hidden, teacher_weight)
    else:
        assert ids is not None
        assert logits is not None
        assert log_z is not None
        teacher = SparseTeacher(ids, logits, log_z)
    return linear_kd_loss(
        hidden,
        weight,
        teacher,
        labels,
        impl=impl,
        divergence=divergence,
        temperature=TEMPERATURE if divergence == "forward_kl" else 1.0,
        ce_weight=0.0 if labels is None else CE_WEIGHT,
    ).loss


def products(inputs: Inputs) -> Outputs:
    """The matrix products that any way of computing the loss has to make, some tokens at a time."""
    with torch.no_grad():
        hidden, weight = inputs.arguments["hidden"], inputs.arguments["weight"]
        assert isinstance(hidden, Tensor)
        assert isinstance(weight, Tensor)
        teacher = (inputs.arguments.get(f"teacher_{side}") for side in ("hidden", "weight"))
        teacher_hidden, teacher_weight = teacher
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for first in range(0, len(hidden), _CHUNK_TOKENS):
            rows = slice(first, first + _CHUNK_TOKENS)
            logits = hidden[rows] @ weight.T
            if isinstance(teacher_hidden, Tensor) and isinstance(teacher_weight, Tensor):
                torch.mm(teacher_hidden[rows], teacher_weight.T)
            torch.mm(logits, weight, out=grad_hidden[rows])
            grad_weight.addmm_(logits.T, hidden[rows])
        return grad_hidden, grad_weight


def make_case(shape: Shape, device: torch.device) -> Case:
    """A shape with everyone who computes it."""
    ours = partial(loss_of, divergence=shape.divergence)
    formula = getattr(formulas, shape.formula_name)
    return Case(
        name=shape.name,
        make_inputs=partial(make_inputs, shape, device),
        judged_inputs=partial(
            make_inputs, shape, device, 0, num_tokens=min(_JUDGED_TOKENS, shape.num_tokens)
        ),
        exact=exact(partial(ours, impl="eager")),
        plain=with_gradients(formula),
        rough=with_gradients(partial(formula, dtype=shape.dtype))
        if shape.teacher == "head"
        else None,
        variants={
            "fused": with_gradients(ours),
            "eager": with_gradients(formula),
            "torch.compile": with_gradients(formulas.compiled(formula)),
            **(published.rivals(shape.formula_name) if device.type == "cuda" else {}),
        },
        yardsticks={_PRODUCTS: products},
        limit=_PRODUCTS,
        num_bytes=shape.num_bytes,
        budgets=_BUDGETS,
    )


def cases(device: torch.device, *, is_tiny: bool) -> list[Case]:
    """All cases of the op."""
    shapes = GPU_SHAPES if device.type == "cuda" else SHAPES
    return [make_case(shape.tiny() if is_tiny else shape, device) for shape in shapes]
