r"""``mkd_fast::sparse_kd``: distillation loss on K kept entries a token, in one launch.

The teacher is K ids with logits and the log-partition log Z of all of them, so that
p_k = exp(z_k / T_t - log Z), or K sampled ids with weights. Nothing of size [N, V] exists but the
student's logits and their gradient. Loss, CE and H are those of dense_kd.py; D differs:

    bucket        D over K + 1 events: the kept ids, and "anything else" of p_o = 1 - sum p_k and
                  q_o = 1 - sum q_k
    renormalize   the same with p_k / sum p_k and p_o = 0
    drop          the same with p_o = 0 and p_k as they are
    uniform       D over all V ids, of which each that is not kept has (1 - sum p_k) / (V - K)
    sampled       D = -sum_k w_k log q_k

An event's gradient reaches the logits of its ids as in pointwise.py: a kept one is

    dD/dx_k = direct_k + q_k (g_k - centre),

and one outside has its share q_v / q_o of the last event, which is one multiple of q_v for all:

    dD/dx_v = q_v (g_o + direct_o / q_o - centre)        forward_kl, bucket: q_v (1 - p_o / q_o)

With p_o = 0 all divergences but alpha_beta are linear in the q outside, so that "anything else"
stands for zeros written out as well. With alpha_beta, but for a bucket, and with a uniform tail
every id outside is an event of its own, whose gradient is that of a kept one; to know the centre
takes a sweep over them.

Saved for backward: the gradients themselves, in the dtypes of their inputs, nothing else.
Deterministic: sums go in a fixed order, and there are no atomics.
Not supported: float64; an id twice in a row. An id that names no column makes its token's loss NaN.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mkd_fast.kernels.arguments import (
    Inputs,
    Options,
    row_layout,
    with_contiguous_columns,
)
from mkd_fast.kernels.launch import Launch, LaunchConfig, sparse_kd_config, warp_size_of
from mkd_fast.kernels.plan import Frame, Results, Traffic, run
from mkd_fast.kernels.sparse_kd_rows import sparse_kd_rows

# N tokens, V vocabulary, K kept ids


def traffic(
    num_rows: int,
    vocab_size: int,
    num_kept: int,
    *,
    student_bytes: int,
    entry_bytes: int,
    tail: str = "bucket",
    divergence: str = "forward_kl",
    has_gradient: bool = True,
    has_tempered_labels: bool = False,
) -> Traffic:
    """What ``sparse_kd`` requests and computes for ``[num_rows, vocab_size]`` logits.

    Args:
        num_rows: N.
        vocab_size: V.
        num_kept: K.
        student_bytes: of one logit of the student.
        entry_bytes: of one id and its value: 6 for int32 and bf16, 3 for packed entries.
        tail: as in SparseTeacher; what lies outside takes a sweep of its own if it is uniform.
        divergence: as in LossSpec; alpha_beta takes that sweep whatever the tail.
        has_gradient: whether the gradient is written.
        has_tempered_labels: whether there are labels and T is not 1, which costs one more
            exponential whenever a logit is read.
    """
    num_sweeps = 2 if divergence == "alpha_beta" or tail == "uniform" else 1
    num_reads = num_sweeps + has_gradient
    num_logits = num_rows * vocab_size
    # A kept logit is gathered for each of its sums, and its gradient stored once more.
    num_kept_bytes = (num_reads + 1) * (entry_bytes + student_bytes) + student_bytes * has_gradient
    return Traffic(
        num_bytes=num_logits * student_bytes * (num_reads + has_gradient)
        + num_rows * num_kept * num_kept_bytes,
        # shift, scale, add, max; then q
        num_operations=num_logits * (5 * num_sweeps + 3 * has_gradient),
        num_exponentials=num_logits * num_reads * (2 if has_tempered_labels else 1),
    )


class Entries(NamedTuple):
    """What a sparse teacher kept, as the kernel takes it."""

    ids: Tensor  # int [N, K], -1 where empty; or packed entries, uint8 [N, K, 3]
    id_stride: int  # elements from row to row
    num: int  # K
    targets: Tensor | None  # logits or weights [N, K]; None: packed
    target_stride: int
    logit_scale: float | None  # None: 1
    softcap: float | None  # None: off
    log_z: Tensor | None  # float [N]
    temperature: float  # the teacher's
    id_bits: int
    num_draws: int


def sparse_kd(
    student: Tensor,
    ids: Tensor,
    values: Tensor | None,
    log_z: Tensor | None,
    *inputs: Any,
    tail: str,
    id_bits: int,
    num_draws: int,
    **options: Any,
) -> Results:
    """The op of this name: its schema and the meaning of its arguments stand in losses/ops.py."""
    launches, results = plan(
        Inputs.of(student, *inputs),
        Teacher(ids, values, log_z, tail, id_bits, num_draws),
        Options(**options),
        warp_size_of(student.device),
    )
    run(launches, student)
    return results


@dataclass(frozen=True, eq=False)
class Teacher:
    """The op's arguments that describe a sparse teacher."""

    ids: Tensor
    values: Tensor | None
    log_z: Tensor | None
    tail: str
    id_bits: int = 0
    num_draws: int = 0

    def entries(self, options: Options) -> Entries:
        """As the kernel wants them: copied where a row's entries do not lie side by side."""
        ids = self.ids if self.ids[:1].is_contiguous() else self.ids.contiguous()
        values = None if self.values is None else with_contiguous_columns(self.values)
        scale = options.teacher_logit_scale
        return Entries(
            ids=ids,
            id_stride=ids.stride(0),
            num=ids.shape[1],
            targets=values,
            target_stride=0 if values is None else values.stride(0),
            logit_scale=None if scale == 1.0 else scale,
            softcap=options.teacher_softcap or None,
            log_z=None if self.log_z is None else self.log_z.contiguous(),
            temperature=options.teacher_temperature,
            id_bits=self.id_bits,
            num_draws=self.num_draws,
        )


def plan(
    inputs: Inputs,
    teacher: Teacher,
    options: Options,
    warp_size: int,
    config: LaunchConfig | None = None,
) -> tuple[list[Launch], Results]:
    """The launches that compute the op, none of them run yet, and what they will write.

    ``config`` is tried instead of the launch table's: benchmarks/tune.py.
    """
    student = inputs.student
    config = config or sparse_kd_config(
        student.shape[1],
        logit_bytes=student.element_size(),
        hidden_bytes=inputs.hidden_bytes,
        warp_size=warp_size,
    )
    frame = Frame.of(inputs, options, config)
    group, layout = row_layout((student,), options.vocab_size)
    arguments = frame.arguments() | {
        "entries": teacher.entries(options),
        "TAIL": teacher.tail,
        "SUM_OUTSIDE": _sum_outside(teacher.tail, options.resolved_divergence),
        "EACH": _is_each_an_event(teacher.tail, options.divergence),
        "K_BLOCK": config.num_warps * warp_size,
        "GROUP": group,
        "LAYOUT": layout,
    }
    return frame.around(sparse_kd_rows, arguments)


def _sum_outside(tail: str, divergence: str) -> str:
    """When the kernel sums the columns that are not kept one by one: see sparse_kd_rows.py.

    The student's mass outside is of no use where the teacher has none and D = sum p log(p / q).
    Powers of it lose too much in a difference.
    """
    if tail != "bucket" and divergence == "forward_kl":
        return "never"
    return "always" if divergence.startswith("alpha_beta") else "where they are few"


def _is_each_an_event(tail: str, divergence: str) -> bool:
    """Whether every column outside is one, instead of all of them together."""
    return tail == "uniform" or (divergence == "alpha_beta" and tail != "bucket")
