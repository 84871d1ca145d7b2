r"""``mkd_fast::dense_kd``: distillation loss on dense logits, value and gradient in one launch.

A token's loss is ``kd_weight * s * D(p, q) + ce_weight * CE(z_s, y) + hidden_weight * H`` with
p = softmax(z_t / T_t), q = softmax(z_s / T_s) and s the T^2 factor. With x = a z_s / T_s (a the
logit scale) the gradient of a stored logit is

    dloss/dz = kd_weight s (a / T_s) dD/dx + ce_weight a (softmax(a z_s) - 1[v = y])

    forward_kl   D = sum p log(p / q)    dD/dx = q - p
    reverse_kl   D = sum q log(q / p)    dD/dx = q (log(q / p) - D)
    jeffreys     their sum, and that of their gradients
    jsd          m = b p + (1 - b) q     dD/dx = (1 - b) q (log(q / m) - KL(q, m))
    logit_mse    sum (z_s - z_t)^2 / V   dD/dz = 2 (z_s - z_t) / V, without T

and so on for the other divergences, times 1 - tanh^2 under a softcap, divided by the number of
tokens with reduction "mean". Derivations: pointwise.py; hidden.py for H.

Two kernels share the work. ``dense_kd_tile`` holds whole rows in registers (small label sets, many
rows a program): each logit is read once. ``dense_kd_rows`` sweeps a row two or three times.
``traffic`` says what that costs. H runs in further programs of the same launch, so its memory
traffic fills the gaps of the logits'. A count of the tokens goes before (only where "mean" needs
one) and a sum of the programs' values comes after; nothing waits for the host.

Saved for backward: the gradients themselves, in the dtypes of their inputs, nothing else.
Deterministic: sums go in a fixed order, and there are no atomics.
Not supported: float64; 2^31 columns or rows and more.
Columns that are not contiguous are copied first; a label that names no column makes its token's
loss NaN.
"""

from typing import Any

from torch import Tensor

from mkd_fast.kernels.arguments import (
    Inputs,
    Options,
    is_centre_known,
    row_alignment,
    row_layout,
    teacher_side,
    with_contiguous_columns,
)
from mkd_fast.kernels.dense_kd_rows import dense_kd_rows
from mkd_fast.kernels.dense_kd_tile import dense_kd_tile
from mkd_fast.kernels.launch import Launch, LaunchConfig, dense_kd_config, warp_size_of
from mkd_fast.kernels.plan import Frame, Results, Traffic, run

# N tokens, V vocabulary


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
        divergence: as in LossSpec; logit_mse without labels, with them the student's logits are
            read once more.
        has_gradient: whether the gradient is written.
        has_tempered_labels: whether there are labels and T is not 1, which costs one more
            exponential whenever a logit is read.
    """
    config = dense_kd_config(
        vocab_size,
        logit_bytes=(student_bytes, teacher_bytes),
        is_aligned=vocab_size % 8 == 0,
        is_costly=divergence == "alpha_beta",
    )
    num_reads = 1
    if config.kernel == "rows":
        needs_sweep = has_gradient and not is_centre_known(divergence)
        num_reads = 3 if needs_sweep else 1 if divergence == "logit_mse" else 2
    num_logits = num_rows * vocab_size
    written_bytes = student_bytes if has_gradient else 0
    return Traffic(
        num_bytes=num_logits * (num_reads * (student_bytes + teacher_bytes) + written_bytes),
        num_operations=num_logits * (8 * num_reads + 12),  # shift, scale, add, max; then p, q, D
        num_exponentials=num_logits * num_reads * (3 if has_tempered_labels else 2),
    )


def dense_kd(student: Tensor, teacher: Tensor, *inputs: Any, **options: Any) -> Results:
    """The op of this name: its schema and the meaning of its arguments stand in losses/ops.py."""
    launches, results = plan(
        Inputs.of(student, *inputs),
        with_contiguous_columns(teacher),
        Options(**options),
        warp_size_of(student.device),
    )
    run(launches, student)
    return results


def plan(
    inputs: Inputs,
    teacher: Tensor,
    options: Options,
    warp_size: int,
    config: LaunchConfig | None = None,
) -> tuple[list[Launch], Results]:
    """The launches that compute the op, none of them run yet, and what they will write.

    ``config`` is tried instead of the launch table's: benchmarks/tune.py.
    """
    config = config or _config(inputs, teacher, options, warp_size)
    frame = Frame.of(inputs, options, config)
    arguments = frame.arguments() | {"teacher": teacher_side(teacher, options)}
    if config.kernel == "tile":
        num_columns = inputs.student.shape[1]
        arguments |= {
            "num_programs": frame.num_programs,
            "ALIGNMENT": row_alignment(inputs.student.stride(0), teacher.stride(0), num_columns),
            "ROWS": config.rows,
        }
        return frame.around(dense_kd_tile, arguments)
    group, layout = row_layout((inputs.student, teacher), options.vocab_size)
    arguments |= {"CENTRE_SWEEP": options.needs_centre_sweep, "GROUP": group, "LAYOUT": layout}
    return frame.around(dense_kd_rows, arguments)


def _config(inputs: Inputs, teacher: Tensor, options: Options, warp_size: int) -> LaunchConfig:
    num_columns = inputs.student.shape[1]
    sides = (inputs.student, teacher)
    return dense_kd_config(
        num_columns,
        logit_bytes=(inputs.student.element_size(), teacher.element_size()),
        hidden_bytes=inputs.hidden_bytes,
        warp_size=warp_size,
        is_aligned=row_alignment(*(side.stride(0) for side in sides), num_columns) == 8,
        is_costly=bool(options.softcap or options.teacher_softcap)
        or options.divergence == "alpha_beta",
    )
