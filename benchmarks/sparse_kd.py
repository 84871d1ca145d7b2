"""``sparse_kd``: forward and gradient of ``kd_loss`` with a top-k teacher, tail in a bucket.

Forward KL at T = 2 plus half the cross-entropy. The rivals are the formula of a training script,
and torch.compile of it; ``dense_kd`` is timed beside them on the logits that were cut to K, to
show what the cut saves.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mkd_fast import SparseTeacher, kd_loss
from mkd_fast.benchmarks import dense_kd, formulas
from mkd_fast.benchmarks.case import ON_GPU, Budget, Case, dtype_name
from mkd_fast.benchmarks.formulas import CE_WEIGHT, TEMPERATURE
from mkd_fast.benchmarks.inputs import Inputs, Run, by_rows, exact, with_gradients
from mkd_fast.benchmarks.roofline import rows_that_fit
from mkd_fast.losses.loss import Impl

_SPARSE = ("ids", "logits", "log_z")
_ID_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """The student's logits, and how many of the teacher's were kept."""

    dtype: torch.dtype
    num_rows: int
    num_columns: int
    num_kept: int
    cpu_budgets: tuple[Budget, ...] = ()

    def tiny(self) -> "Shape":
        """The same parts, a few of each."""
        num_kept = self.num_kept // 8
        few = self.num_columns // 101
        return replace(self, num_rows=4, num_columns=few, num_kept=num_kept, cpu_budgets=())

    @property
    def name(self) -> str:
        """Unique among the cases."""
        return f"{dtype_name(self.dtype)} {self.num_rows} x {self.num_columns}, K {self.num_kept}"


SHAPES = tuple(
    Shape(dtype, num_rows, num_columns, num_kept, (Budget("eager", 8.0),) if num_kept == 64 else ())
    for num_kept in (64, 16)
    for num_rows, num_columns in ((512, 32_000), (128, 128_256))
    for dtype in (torch.float32, torch.bfloat16)
)


def gpu_shapes(device: torch.device) -> list[Shape]:
    """Shapes for a GPU, as many rows as fit, what matters most first."""
    return [
        Shape(dtype, rows_that_fit(device, num_columns), num_columns, num_kept)
        for dtype, num_columns, num_kept in (
            (torch.bfloat16, 128_256, 64), (torch.bfloat16, 32_000, 64),
            (torch.bfloat16, 128_256, 16), (torch.float32, 128_256, 64),
        )
    ]  # fmt: skip


def make_inputs(shape: Shape, device: torch.device, seed: int) -> Inputs:
    """The inputs of dense_kd, and the K largest of the teacher's logits with their partition."""
    inputs = dense_kd.make_inputs(
        dense_kd.Shape(shape.dtype, shape.num_rows, shape.num_columns), device, seed
    )
    teacher = inputs.arguments["teacher"]
    assert isinstance(teacher, Tensor)
    logits, ids = teacher.topk(shape.num_kept)
    log_z = torch.stack([row.float().div(TEMPERATURE).logsumexp(0) for row in teacher])
    return Inputs({**inputs.arguments, "ids": ids.int(), "logits": logits, "log_z": log_z})


def loss_of(
    student: Tensor,
    ids: Tensor,
    logits: Tensor,
    log_z: Tensor,
    labels: Tensor,
    *,
    impl: Impl = "fused",
    num_tokens: int | None = None,
) -> Tensor:
    """Ours, or with ``impl="eager"`` its reference."""
    return kd_loss(
        student,
        SparseTeacher(ids, logits, log_z),
        labels,
        impl=impl,
        num_tokens=num_tokens,
        temperature=TEMPERATURE,
        ce_weight=CE_WEIGHT,
    ).loss


def num_bytes_moved(shape: Shape, device: torch.device) -> int:
    """On a GPU what the kernel requests; on a CPU the logits and their gradient once, and K ids."""
    size = shape.dtype.itemsize
    if device.type == "cuda":
        from mkd_fast.kernels.sparse_kd import traffic

        return traffic(
            shape.num_rows,
            shape.num_columns,
            shape.num_kept,
            student_bytes=size,
            entry_bytes=_ID_BYTES + size,
        ).num_bytes
    kept = shape.num_rows * (shape.num_kept * (_ID_BYTES + size) + 4)
    return 2 * size * shape.num_rows * shape.num_columns + kept


def make_case(shape: Shape, device: torch.device) -> Case:
    """A shape with everyone who computes it."""

    def without_dense(run: Run) -> Run:
        return lambda inputs: run(inputs.without("teacher"))

    reference = partial(loss_of, impl="eager")
    formula = formulas.sparse_kd
    return Case(
        name=shape.name,
        make_inputs=partial(make_inputs, shape, device),
        exact=without_dense(by_rows(reference, exact)),
        plain=without_dense(by_rows(reference, with_gradients)),
        variants={
            "fused": without_dense(with_gradients(loss_of)),
            "eager": without_dense(with_gradients(formula)),
            "torch.compile": without_dense(with_gradients(formulas.compiled(formula))),
        },
        yardsticks={
            "dense_kd": lambda inputs: with_gradients(dense_kd.loss_of)(inputs.without(*_SPARSE))
        },
        num_bytes=num_bytes_moved(shape, device),
        budgets=ON_GPU if device.type == "cuda" else shape.cpu_budgets,
    )


def cases(device: torch.device, *, is_tiny: bool) -> list[Case]:
    """All cases of the op."""
    shapes = gpu_shapes(device) if device.type == "cuda" else SHAPES
    return [make_case(shape.tiny() if is_tiny else shape, device) for shape in shapes]
