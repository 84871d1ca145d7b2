r"""``mkd_fast::dense_kd``: distillation loss on dense logits, value and gradient in one launch.

A token's loss is ``kd_weight * s * D(p, q) + ce_weight * CE(z_s, y) + hidden_weight * H`` with
p = softmax(z_t / T_t), q = softmax(z_s / T_s) and s the T^2 factor. With x = a z_s / T_s (a the
logit scale) the gradient of a stored logit is

    dloss/dz = kd_weight s (a / T_s) dD/dx + ce_weight a (softmax(a z_s) - 1[v = y])

    forward_kl   D = sum p log(p / q)    dD/dx = q - p
    reverse_kl   D = sum q log(q / p)    dD/dx = q (log(q / p) - D)
    jeffreys     their sum, and that of their gradients
    jsd          m = b p + (1 - b) q     dD/dx = (1 - b) q (log(q / m) - KL(q, m))

divided by the number of tokens with reduction "mean". Derivations: pointwise.py; hidden.py for H.

Two kernels share the work. ``dense_kd_tile`` holds whole rows in registers (small label sets, many
rows a program): each logit is read once. ``dense_kd_rows`` sweeps a row two or three times.
``traffic`` says what that costs. H runs in further programs of the same launch, so its memory
traffic fills the gaps of the logits'. A count of the tokens goes before (only where "mean" needs
one) and a sum of the programs' values comes after; nothing waits for the host.

Saved for backward: the gradients themselves, in the dtypes of their inputs, nothing else.
Deterministic: sums go in a fixed order, and there are no atomics.
Not supported: softcap, float64, the divergences not listed above; 2^31 columns or rows and more.
Columns that are not contiguous are copied first; a label that names no column makes its token's
loss NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkd_fast.kernels.arguments import (
    Inputs,
    Options,
    empty_like_contiguous,
    row_alignment,
    row_layout,
    with_contiguous_columns,
)
from mkd_fast.kernels.dense_kd_rows import dense_kd_rows
from mkd_fast.kernels.dense_kd_tile import dense_kd_tile
from mkd_fast.kernels.launch import Launch, LaunchConfig, dense_kd_config, warp_size_of
from mkd_fast.kernels.tokens import count_tokens
from mkd_fast.kernels.totals import combine_values, reduce_values

# N tokens, V vocabulary, P positions of hidden states a token, D width

_BLOCK = 1024  # values of a program that counts or sums them

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]


class Traffic(NamedTuple):
    """What a launch costs: bytes requested from memory, arithmetic operations, exponentials."""

    num_bytes: int
    num_operations: int
    num_exponentials: int


def traffic(
    num_rows: int,
    vocab_size: int,
    *,
    student_bytes: int,
    teacher_bytes: int,
    divergence: str = "forward_kl",
    has_gradient: bool = True,
    has_tempered_labels: bool = False,
) -> Traffic:
    """What ``dense_kd`` requests and computes for ``[num_rows, vocab_size]`` logits.

    Args:
        num_rows: N.
        vocab_size: V.
        student_bytes: of one logit of the student.
        teacher_bytes: of one logit of the teacher.
        divergence: as in LossSpec.
        has_gradient: whether the gradient is written.
        has_tempered_labels: whether there are labels and T is not 1, which costs one more
            exponential whenever a logit is read.
    """
    config = dense_kd_config(
        vocab_size,
        logit_bytes=(student_bytes, teacher_bytes),
        is_aligned=vocab_size % 8 == 0,
    )
    num_reads = 1
    if config.kernel == "rows":
        num_reads = 3 if divergence == "jsd" and has_gradient else 2
    num_logits = num_rows * vocab_size
    written_bytes = student_bytes if has_gradient else 0
    return Traffic(
        num_bytes=num_logits * (num_reads * (student_bytes + teacher_bytes) + written_bytes),
        num_operations=num_logits * (8 * num_reads + 12),  # shift, scale, add, max; then p, q, D
        num_exponentials=num_logits * num_reads * (3 if has_tempered_labels else 2),
    )


def dense_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    num_tokens: Tensor | None,
    student_hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    teacher_scale: Sequence[Tensor],
    hidden_mask: Tensor | None,
    **options: Any,
) -> Results:
    """The op of this name: its schema and the meaning of its arguments stand in losses/ops.py."""
    inputs = Inputs(
        with_contiguous_columns(student),
        with_contiguous_columns(teacher),
        None if labels is None else labels.contiguous(),
        None if mask is None else mask.contiguous(),
        num_tokens,
        [with_contiguous_columns(layer) for layer in student_hidden],
        [with_contiguous_columns(layer) for layer in teacher_hidden],
        [scale.contiguous() for scale in teacher_scale],
        None if hidden_mask is None else hidden_mask.contiguous(),
    )
    launches, results = plan(inputs, Options(**options), warp_size_of(student.device))
    with torch.cuda.device_of(student):
        for launch in launches:
            launch.run()
    return results


def plan(inputs: Inputs, options: Options, warp_size: int) -> tuple[list[Launch], Results]:
    """The launches that compute the op, none of them run yet, and what they will write."""
    student = inputs.student
    config = _config(inputs, warp_size)
    buffers = _Buffers.for_launch(inputs, options, config)
    launches = []
    denominator = inputs.num_tokens if options.reduction == "mean" else None
    has_uncounted = inputs.labels is not None or inputs.mask is not None
    if options.reduction == "mean" and denominator is None and has_uncounted:
        denominator = student.new_empty((), dtype=torch.float32)
        launches.append(_count_launch(inputs, options, denominator))
    launches.append(_main_launch(inputs, options, config, buffers, denominator))
    finish = _combine_launch if options.reduction == "none" else _reduce_launch
    last_launch, values = finish(inputs, options, buffers, denominator)
    grad_student = student.new_empty(0) if buffers.grad_student is None else buffers.grad_student
    return [*launches, last_launch], (*values, grad_student, buffers.grad_hidden)


def _config(inputs: Inputs, warp_size: int) -> LaunchConfig:
    num_columns = inputs.student.shape[1]
    sides = (inputs.student, inputs.teacher)
    layers = (*inputs.student_hidden, *inputs.teacher_hidden)
    return dense_kd_config(
        num_columns,
        logit_bytes=(inputs.student.element_size(), inputs.teacher.element_size()),
        hidden_bytes=max((layer.element_size() for layer in layers), default=4),
        warp_size=warp_size,
        is_aligned=row_alignment(*(side.stride(0) for side in sides), num_columns) == 8,
    )


@dataclass(frozen=True, eq=False)
class _Buffers:
    """What the main launch writes: a value a token or a program, and the gradients."""

    num_programs: int  # that take logits
    num_hidden_programs: int  # and after them those that take hidden states
    kd: Tensor
    ce: Tensor | None
    errors: Tensor | None
    grad_student: Tensor | None
    grad_hidden: list[Tensor]

    @classmethod
    def for_launch(cls, inputs: Inputs, options: Options, config: LaunchConfig) -> "_Buffers":
        """Uninitialised buffers of the sizes that this launch needs."""
        student = inputs.student
        num_rows = len(student)
        num_positions = num_rows * inputs.num_positions
        num_programs = -(-num_rows // config.rows)
        num_hidden_programs = -(-num_positions // config.hidden_rows)
        is_per_token = options.reduction == "none"
        num_values = num_rows if is_per_token else num_programs
        num_errors = num_positions if is_per_token else num_hidden_programs
        return cls(
            num_programs,
            num_hidden_programs,
            kd=student.new_empty(num_values, dtype=torch.float32),
            ce=None
            if inputs.labels is None
            else student.new_empty(num_values, dtype=torch.float32),
            errors=student.new_empty(num_errors, dtype=torch.float32)
            if inputs.student_hidden
            else None,
            grad_student=empty_like_contiguous(student) if options.needs_grad_student else None,
            grad_hidden=[
                empty_like_contiguous(layer)
                for layer in inputs.student_hidden
                if options.needs_grad_hidden
            ],
        )


def _count_launch(inputs: Inputs, options: Options, denominator: Tensor) -> Launch:
    arguments = {
        "tokens": inputs.tokens(options, None),
        "denominator": denominator,
        "BLOCK": _BLOCK,
    }
    return Launch(count_tokens, 1, arguments, num_warps=4)


def _main_launch(
    inputs: Inputs,
    options: Options,
    config: LaunchConfig,
    buffers: _Buffers,
    denominator: Tensor | None,
) -> Launch:
    student, teacher = inputs.sides(options)
    num_columns = inputs.student.shape[1]
    has_labels = inputs.labels is not None
    arguments: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "tokens": inputs.tokens(options, denominator),
        "terms": options.terms(),
        "hidden": inputs.hidden(options, buffers.grad_hidden, buffers.errors),
        "grad": buffers.grad_student,
        "kd_values": buffers.kd,
        "ce_values": buffers.ce,
        "V": options.vocab_size,
        "num_columns": num_columns,
        "DIVERGENCE": options.resolved_divergence,
        "KD_GRAD": options.kd_weight != 0.0,
        "CE_GRAD": has_labels and options.ce_weight != 0.0,
        "OWN_SUM": has_labels and options.temperature != 1.0,
        "PER_TOKEN": options.reduction == "none",
        "WIDTHS": tuple(layer.shape[2] for layer in inputs.student_hidden),
        "ALIGNMENTS": tuple(
            row_alignment(*ours.stride()[:2], *theirs.stride()[:2], ours.shape[2])
            for ours, theirs in zip(inputs.student_hidden, inputs.teacher_hidden, strict=True)
        ),
        "BLOCK": config.block,
        "HIDDEN_ROWS": config.hidden_rows,
        "HIDDEN_BLOCK": config.hidden_block,
    }
    if config.kernel == "tile":
        kernel = dense_kd_tile
        arguments["num_programs"] = buffers.num_programs
        arguments["ALIGNMENT"] = row_alignment(student.stride, teacher.stride, num_columns)
        arguments["ROWS"] = config.rows
    else:
        kernel = dense_kd_rows
        arguments["GROUP"], arguments["LAYOUT"] = row_layout(inputs, options.vocab_size)
    grid = buffers.num_programs + buffers.num_hidden_programs
    return Launch(kernel, grid, arguments, config.num_warps, is_register_bound=True)


def _reduce_launch(
    inputs: Inputs, options: Options, buffers: _Buffers, denominator: Tensor | None
) -> tuple[Launch, tuple[Tensor, Tensor, Tensor, Tensor]]:
    loss, kd, ce, hidden = (buffers.kd.new_empty(()) for _ in range(4))
    arguments = {
        "kd_values": buffers.kd,
        "ce_values": buffers.ce,
        "errors": buffers.errors,
        "num_values": buffers.num_programs,
        "num_errors": buffers.num_hidden_programs,
        "tokens": inputs.tokens(options, denominator),
        "weights": (options.kd_weight, options.ce_weight, options.hidden_weight),
        "loss": loss,
        "kd": kd,
        "ce": ce,
        "hidden": hidden,
        "BLOCK": _BLOCK,
    }
    return Launch(reduce_values, 1, arguments, num_warps=8), (loss, kd, ce, hidden)


def _combine_launch(
    inputs: Inputs, options: Options, buffers: _Buffers, denominator: Tensor | None
) -> tuple[Launch, tuple[Tensor, Tensor, Tensor, Tensor]]:
    assert denominator is None, "one value a token is divided by nothing"
    loss, hidden = torch.empty_like(buffers.kd), torch.empty_like(buffers.kd)
    ce = torch.zeros_like(buffers.kd) if buffers.ce is None else buffers.ce
    arguments = {
        "kd_values": buffers.kd,
        "ce_values": ce,
        "errors": buffers.errors,
        "num_tokens": len(loss),
        "num_positions": inputs.num_positions,
        "weights": (options.kd_weight, options.ce_weight, options.hidden_weight),
        "loss": loss,
        "hidden": hidden,
        "BLOCK": _BLOCK,
    }
    grid = -(-len(loss) // _BLOCK)
    return Launch(combine_values, grid, arguments, num_warps=4), (loss, buffers.kd, ce, hidden)
