"""Large vocabularies: one program a row, which is swept in blocks of columns.

The first sweep finds each side's maximum and sum of exponentials, the last one computes both
distributions again and writes the gradient. In between, a divergence whose ``centre`` (see
pointwise.py) does not follow from the first sweep takes one more. Each sweep runs against the
direction of the one before, so that it begins with what the L2 cache still holds.

Running maxima are kept for each group of GROUP columns rather than for the row: a group lies
within a thread, so that no sweep waits at a barrier. They are merged when the sweep is over.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from mkd_fast.kernels.hidden import hidden_error
from mkd_fast.kernels.pointwise import (
    LN2,
    LOG2E,
    LOWEST,
    capped_gradient,
    contribution,
    is_relative,
    log2_of,
    log2_share,
    squared_error,
)
from mkd_fast.kernels.row_blocks import (
    clear_row,
    cross_entropy,
    label_gradient,
    offsets_of,
    read_block,
    row_start,
    shift_of,
    write_block,
)
from mkd_fast.kernels.tokens import counted, weight_of_token

# N tokens, V vocabulary


@triton.jit
def _rebased_gap(gap, total_s, rise_s, rise_t, decay_s):
    """The sum of e_s (bits_s - bits_t) after what they count from has risen, by so many bits."""
    return decay_s * (gap + tl.where(total_s == 0.0, 0.0, total_s * (rise_t - rise_s)))


@triton.jit
def _statistics(
    student, teacher, first_s, first_t, shift, V,
    TEACHER: tl.constexpr, OWN_SUM: tl.constexpr, GAP: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """Maxima and sums of exponentials of a row; the student's untempered sum; the gap and its base.

    The gap is the centre of reverse KL, in bits: sum_v q_v (bits_s - bits_t), where the student's
    count from its maximum and the teacher's from its logit in that column, the base. Without a gap
    the base is the teacher's maximum. Without TEACHER that side is not read.
    """
    top_s = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    top_t = top_s
    total_s = tl.zeros([BLOCK // GROUP], tl.float32)
    total_t = total_s
    own = total_s
    gap = total_s
    base = total_s  # no exponential counts from it yet
    for start in range(0, V + shift, BLOCK):
        z_s = read_block(student, first_s, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_last")
        new_s = tl.maximum(top_s, tl.max(z_s, 1))
        decay_s = tl.exp2((top_s - new_s) * student.to_bits)
        bits_s = (z_s - new_s[:, None]) * student.to_bits
        e_s = tl.exp2(bits_s)
        if TEACHER:
            z_t = read_block(teacher, first_t, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_last")
            new_t = tl.maximum(top_t, tl.max(z_t, 1))
            bits_t = (z_t - new_t[:, None]) * teacher.to_bits
            decay_t = tl.exp2((top_t - new_t) * teacher.to_bits)
            total_t = total_t * decay_t + tl.sum(tl.exp2(bits_t), 1)
        if GAP:
            at_top = tl.max(tl.where(z_s == new_s[:, None], z_t, -float("inf")), 1)
            new_base = tl.where(at_top > -float("inf"), at_top, base)
            gap = _rebased_gap(
                gap, total_s, (new_s - top_s) * student.to_bits,
                (new_base - base) * teacher.to_bits, decay_s,
            )  # fmt: skip
            excess = bits_s - (z_t - new_base[:, None]) * teacher.to_bits
            gap += tl.sum(tl.where(e_s == 0.0, 0.0, e_s * excess), 1)
            base = new_base
        total_s = total_s * decay_s + tl.sum(e_s, 1)
        if OWN_SUM:
            e_own = tl.exp2((z_s - new_s[:, None]) * LOG2E)
            own = own * tl.exp2((top_s - new_s) * LOG2E) + tl.sum(e_own, 1)
        top_s = new_s
        if TEACHER:
            top_t = new_t
    row_s = tl.max(top_s)
    row_t = tl.max(top_t)
    decay_s = tl.exp2((top_s - row_s) * student.to_bits)
    sum_s = tl.sum(total_s * decay_s)
    sum_t = tl.sum(total_t * tl.exp2((top_t - row_t) * teacher.to_bits))
    sum_own = sum_s
    if OWN_SUM:
        sum_own = tl.sum(own * tl.exp2((top_s - row_s) * LOG2E))
    row_gap = 0.0
    row_base = row_t
    if GAP:
        row_base = tl.max(tl.where(top_s == row_s, base, LOWEST))
        gap = _rebased_gap(
            gap, total_s, (row_s - top_s) * student.to_bits, (row_base - base) * teacher.to_bits,
            decay_s,
        )  # fmt: skip
        row_gap = tl.sum(gap) / sum_s
    return row_s, row_t, sum_s, sum_t, sum_own, row_gap, row_base


@triton.jit
def _sweep(
    student, teacher, terms, grad, statistics, centre, weight, label, first_s, first_t, first_g,
    shift, V, num_columns,
    DIVERGENCE: tl.constexpr, GRAD: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr,
    OWN_SUM: tl.constexpr, REVERSED: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """D of a row and its centre; the gradient is written where GRAD is set."""
    top_s, top_t, sum_s, sum_t, sum_own, _, base_t = statistics
    scale_s = 1.0 / sum_s
    scale_t = 1.0 / sum_t
    scale_own = 1.0 / sum_own
    log2_s = log2_of(sum_s, DIVERGENCE)
    log2_t = log2_of(sum_t, DIVERGENCE)
    common = log2_t[0] - log2_s[0]
    if is_relative(DIVERGENCE):
        common += (top_t - base_t) * teacher.to_bits
    values = tl.zeros([BLOCK // GROUP], tl.float32)
    centres = values
    shares = values
    width = V
    if GRAD:
        width = num_columns
    num_blocks = tl.cdiv(width + shift, BLOCK)
    for index in range(0, num_blocks):
        start = index * BLOCK
        if REVERSED:
            start = (num_blocks - 1 - index) * BLOCK
        z_s = read_block(student, first_s, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_first")
        z_t = read_block(teacher, first_t, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_first")
        bits_s = (z_s - top_s) * student.to_bits
        q = tl.exp2(bits_s) * scale_s
        if DIVERGENCE == "logit_mse":
            column = offsets_of(start, BLOCK, GROUP) - shift
            value, kd_gradient = squared_error(z_s, z_t, column.to(tl.uint32, bitcast=True) < V)
        else:
            bits_t = (z_t - top_t) * teacher.to_bits
            p = tl.exp2(bits_t) * scale_t
            excess_t = bits_t
            if is_relative(DIVERGENCE):
                excess_t = (z_t - base_t) * teacher.to_bits
            log2_p = log2_share(z_t, top_t, bits_t, log2_t, teacher, DIVERGENCE)
            log2_q = log2_share(z_s, top_s, bits_s, log2_s, student, DIVERGENCE)
            value, g, direct = contribution(
                p, q, log2_p, log2_q, bits_s - excess_t, common, terms, DIVERGENCE
            )
            centres += tl.sum(direct + q * g, 1)
            shares += tl.sum(q, 1)
            kd_gradient = direct + q * (g - centre)
        values += tl.sum(value, 1)
        if GRAD:
            result = tl.zeros([BLOCK // GROUP, GROUP], tl.float32)
            if KD_GRAD:
                result += (terms.kd_slope * weight) * kd_gradient
            if CE_GRAD:
                result += (terms.ce_slope * weight) * label_gradient(
                    z_s, q, top_s, scale_own, label, start, shift, OWN_SUM, BLOCK, GROUP
                )
            result = capped_gradient(result, z_s, student)
            write_block(grad, first_g, start, shift, num_columns, result, BLOCK, GROUP, LAYOUT)
    return tl.sum(values), tl.sum(centres) / tl.sum(shares)


@triton.jit
def _row(
    student, teacher, tokens, terms, grad, kd_values, ce_values, row, shift, first_g,
    V, num_columns,
    DIVERGENCE: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    CENTRE_SWEEP: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """A row that counts."""
    first_s = row_start(row, student.stride, shift, GROUP, LAYOUT)
    first_t = row_start(row, teacher.stride, shift, GROUP, LAYOUT)
    TEACHER: tl.constexpr = DIVERGENCE != "logit_mse"
    GRAD: tl.constexpr = grad is not None
    GAP: tl.constexpr = GRAD and KD_GRAD and is_relative(DIVERGENCE)
    if TEACHER or tokens.labels is not None:
        statistics = _statistics(
            student, teacher, first_s, first_t, shift, V, TEACHER, OWN_SUM, GAP,
            BLOCK, GROUP, LAYOUT,
        )  # fmt: skip
    else:
        statistics = 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0  # nobody asks
    label = 0
    if tokens.labels is not None:
        label, ce = cross_entropy(student, tokens, row, statistics[0], statistics[4], V)
        tl.store(ce_values + row, ce)
    weight = weight_of_token(tokens)
    centre = statistics[5] * LN2
    if DIVERGENCE == "forward_kl" or DIVERGENCE == "jeffreys":
        centre -= 1.0  # the sum of p
    if CENTRE_SWEEP:
        _, centre = _sweep(
            student, teacher, terms, grad, statistics, centre, weight, label,
            first_s, first_t, first_g, shift, V, num_columns,
            DIVERGENCE, False, False, False, OWN_SUM, True, BLOCK, GROUP, LAYOUT,
        )  # fmt: skip
    kd, _ = _sweep(
        student, teacher, terms, grad, statistics, centre, weight, label,
        first_s, first_t, first_g, shift, V, num_columns,
        DIVERGENCE, GRAD, KD_GRAD, CE_GRAD, OWN_SUM, not CENTRE_SWEEP, BLOCK, GROUP, LAYOUT,
    )  # fmt: skip
    tl.store(kd_values + row, kd * terms.value_to_kd)


@triton.jit
def dense_kd_rows(
    student, teacher, tokens, terms, hidden, grad, kd_values, ce_values, V, num_columns,
    DIVERGENCE: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    CENTRE_SWEEP: tl.constexpr, PER_TOKEN: tl.constexpr,
    WIDTHS: tl.constexpr, ALIGNMENTS: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
    HIDDEN_ROWS: tl.constexpr, HIDDEN_BLOCK: tl.constexpr,
):  # fmt: skip
    """The first tokens.num programs take a row of logits each, the rest hidden states."""
    program = tl.program_id(0)
    if program < tokens.num:
        row = program.to(tl.int64)
        shift = shift_of(row, num_columns, GROUP, LAYOUT)
        first_g = row_start(row, num_columns, shift, GROUP, LAYOUT)
        if counted(tokens, row, True):
            _row(
                student, teacher, tokens, terms, grad, kd_values, ce_values, row, shift, first_g,
                V, num_columns, DIVERGENCE, KD_GRAD, CE_GRAD, OWN_SUM, CENTRE_SWEEP,
                BLOCK, GROUP, LAYOUT,
            )  # fmt: skip
        else:
            clear_row(
                grad, kd_values, ce_values, row, shift, first_g, num_columns, BLOCK, GROUP, LAYOUT,
            )  # fmt: skip
    elif len(WIDTHS) > 0:
        hidden_error(
            hidden, tokens, program - tokens.num, WIDTHS, ALIGNMENTS, PER_TOKEN,
            HIDDEN_ROWS, HIDDEN_BLOCK,
        )  # fmt: skip
