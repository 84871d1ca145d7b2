"""Sparse teachers: one program a row of the student, swept twice; the K entries come in between.

The first sweep finds the student's maximum and sum of exponentials. The entries, with "anything
else" as one event more, then give the value and what the gradient needs: outside the kept ids it
is one multiple of q_v. The second sweep, from the row's end to its beginning, writes that multiple
everywhere; after a barrier the kept columns' own gradients are stored over it.

The student's mass outside is one minus its mass on the kept ids. Where so little is left that the
difference is rounding, or the teacher's tail divides by it, the outside columns are summed by
themselves, which takes a sweep more; rows like that are rare.

With EACH every column outside is an event of its own, all of the same p. One more sweep over them
adds what they contribute, and the last one computes each gradient anew.
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
    log2_of,
    log2_share,
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
from mkd_fast.kernels.sparse_entries import (
    only_outside,
    student_logits,
    sums_of_kept,
    targets_of,
)
from mkd_fast.kernels.tokens import counted, weight_of_token

# N tokens, V vocabulary, K kept ids

_SMALLEST_DIFFERENCE = tl.constexpr(2.0**-20)  # of 1 and a sum near it: 16 roundings


@triton.jit
def _statistics(
    student, first, shift, V,
    OWN_SUM: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """A row's maximum, its sum of tempered exponentials, and that of untempered ones."""
    top = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    total = tl.zeros([BLOCK // GROUP], tl.float32)
    own = total
    for start in range(0, V + shift, BLOCK):
        z = read_block(student, first, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_last")
        new = tl.maximum(top, tl.max(z, 1))
        excess = z - new[:, None]
        total = total * tl.exp2((top - new) * student.to_bits)
        total += tl.sum(tl.exp2(excess * student.to_bits), 1)
        if OWN_SUM:
            own = own * tl.exp2((top - new) * LOG2E) + tl.sum(tl.exp2(excess * LOG2E), 1)
        top = new
    row_top = tl.max(top)
    row_total = tl.sum(total * tl.exp2((top - row_top) * student.to_bits))
    row_own = row_total
    if OWN_SUM:
        row_own = tl.sum(own * tl.exp2((top - row_top) * LOG2E))
    return row_top, row_total, row_own


@triton.jit
def _sum_outside(
    student, entries, row, first, shift, V,
    K_BLOCK: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of tempered exponentials of the columns that are not kept."""
    top = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    total = tl.zeros([BLOCK // GROUP], tl.float32)
    for start in range(0, V + shift, BLOCK):
        z = read_block(student, first, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_last")
        z = only_outside(z, -float("inf"), entries, row, start, shift, V, K_BLOCK, BLOCK, GROUP)
        new = tl.maximum(top, tl.max(z, 1))
        total = total * tl.exp2((top - new) * student.to_bits)
        total += tl.sum(tl.exp2((z - new[:, None]) * student.to_bits), 1)
        top = new
    row_top = tl.max(top)
    return row_top, tl.sum(total * tl.exp2((top - row_top) * student.to_bits))


@triton.jit
def _outside(
    student, entries, statistics, row, first, shift, V,
    TAIL: tl.constexpr, SUM_OUTSIDE: tl.constexpr, EACH: tl.constexpr, K_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """What _events needs to know of the row, and p of each column outside.

    The sum of the student's exponentials, exact enough for all q to sum to 1. Of the event
    "anything else" its p, and the maximum and sum of exponentials outside: nothing with EACH. The
    log of what the kept p are divided by.
    """
    top, total, _ = statistics
    num, mass, powers = sums_of_kept(student, entries, top, row, V, TAIL, K_BLOCK)
    mass = tl.minimum(mass, 1.0)
    p = 0.0
    p_each = tl.zeros_like(mass)
    log_divisor = 0.0
    if TAIL == "bucket":
        p = tl.where(num == V, 0.0, 1.0 - mass).to(tl.float32)
    elif TAIL == "uniform":
        p_each = tl.where(num == V, 0.0, (1.0 - mass) / (V - num))
    elif TAIL == "renormalize":
        log_divisor = tl.log(mass)
    total = total.to(tl.float64)
    top_outside = top
    total_outside = total
    if SUM_OUTSIDE != "never":
        total_outside = total - powers
        is_exact = total_outside > total * tl.maximum(0.25 * p, _SMALLEST_DIFFERENCE)
        if SUM_OUTSIDE == "always" or not is_exact:
            top_outside, summed = _sum_outside(
                student, entries, row, first, shift, V, K_BLOCK, BLOCK, GROUP, LAYOUT
            )
            total_outside = summed.to(tl.float64)
            total = powers + total_outside * tl.exp2((top_outside - top) * student.to_bits)
    if EACH:
        top_outside = top
        total_outside = tl.zeros_like(total)
    return (total, p, top_outside, total_outside, log_divisor), p_each


@triton.jit
def _events(
    student, entries, terms, statistics, outside, row, slot, V,
    DIVERGENCE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """What the events of some slots add to D, with their ids and q; slot K is "anything else"."""
    top = statistics[0]
    total, p_outside, top_outside, total_outside, log_divisor = outside
    id, log_p, p = targets_of(entries, row, slot, TAIL)
    if TAIL == "renormalize":
        log_p -= log_divisor
        p = tl.exp(log_p)
    z = student_logits(student, row, id, V)
    is_rest = slot == entries.num
    p = tl.where(is_rest, p_outside, p)
    log_p = tl.where(is_rest, tl.log(p), log_p)
    excess = tl.where(is_rest, top_outside - top, z - top).to(tl.float64)
    share = tl.where(is_rest, total_outside, 1.0) / total
    log_q = excess * student.to_bits * LN2 + tl.log(share)
    if TAIL == "sampled" or TAIL == "packed":  # minus the sum of weights times log q
        log_p = tl.zeros_like(p)
    q = tl.exp(log_q)
    value, g, direct = contribution(
        p, q, (log_p * LOG2E, 0.0), (log_q * LOG2E, 0.0), (log_q - log_p) * LOG2E, 0.0,
        terms, DIVERGENCE,
    )  # fmt: skip
    is_event = (id >= 0) | is_rest
    value = tl.where(is_event, value, 0.0)
    g = tl.where(is_event, g, 0.0)
    direct = tl.where(is_event, direct, 0.0)
    return id, z, q, value, g, direct


@triton.jit
def _sums_of_events(
    student, entries, terms, statistics, outside, row, V,
    DIVERGENCE: tl.constexpr, TAIL: tl.constexpr, K_BLOCK: tl.constexpr,
):  # fmt: skip
    """D in bits, the centre, the sum of q, what 2^bits is multiplied by in the gradient outside."""
    values = tl.zeros([K_BLOCK], tl.float64)
    centres = tl.zeros([K_BLOCK], tl.float64)
    shares = tl.zeros([K_BLOCK], tl.float64)
    g_outside = tl.zeros([K_BLOCK], tl.float64)
    direct_outside = tl.zeros([K_BLOCK], tl.float64)
    for start in range(0, entries.num + 1, K_BLOCK):
        slot = start + tl.arange(0, K_BLOCK)
        id, _, q, value, g, direct = _events(
            student, entries, terms, statistics, outside, row, slot, V, DIVERGENCE, TAIL
        )
        values += value
        centres += direct + q * g
        shares += tl.where((id >= 0) | (slot == entries.num), q, 0.0)
        g_outside += tl.where(slot == entries.num, g, 0.0)
        direct_outside += tl.where(slot == entries.num, direct, 0.0)
    centre = tl.sum(centres)
    total, _, top_outside, total_outside, _ = outside
    scale = tl.exp2((top_outside - statistics[0]) * student.to_bits) / total
    direct = tl.sum(direct_outside)
    slope = tl.where(direct == 0.0, 0.0, direct / total_outside)
    slope += (tl.sum(g_outside) - centre) * scale
    return tl.sum(values), centre, tl.sum(shares), slope.to(tl.float32)


@triton.jit
def _terms_of_columns(z, student, terms, top, columns, DIVERGENCE: tl.constexpr):
    """Columns of a block that are an event each: what they add to D, their q, g and ``direct``."""
    p, log2_p, log2_total, log2_scaled, scale = columns
    bits = (z - top) * student.to_bits
    q = tl.exp2(bits) * scale
    # conditions of two shapes are not interpreted
    log2_p = tl.broadcast_to(log2_p[0], bits.shape), log2_p[1]
    log2_q = log2_share(z, top, bits, log2_total, student, DIVERGENCE)
    value, g, direct = contribution(
        p, q, log2_p, log2_q, bits - log2_scaled, 0.0, terms, DIVERGENCE
    )
    return value, q, g, direct


@triton.jit
def _sums_of_columns(
    student, entries, terms, top, columns, row, first, shift, V,
    DIVERGENCE: tl.constexpr, K_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """What the columns outside add to D, in bits, to the centre and to the sum of q."""
    values = tl.zeros([BLOCK // GROUP], tl.float32)
    centres = values
    shares = values
    for start in range(0, V + shift, BLOCK):
        z = read_block(student, first, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_last")
        z = only_outside(z, float("inf"), entries, row, start, shift, V, K_BLOCK, BLOCK, GROUP)
        is_outside = z != float("inf")  # as a logit it would have made the row's sums NaN
        value, q, g, direct = _terms_of_columns(z, student, terms, top, columns, DIVERGENCE)
        values += tl.sum(tl.where(is_outside, value, 0.0), 1)
        centres += tl.sum(tl.where(is_outside, direct + q * g, 0.0), 1)
        shares += tl.sum(tl.where(is_outside, q, 0.0), 1)
    return tl.sum(values), tl.sum(centres), tl.sum(shares)


@triton.jit
def _write_outside(
    student, terms, grad, statistics, top_outside, slope, columns, centre, weight, label,
    first, first_g, shift, V, num_columns,
    DIVERGENCE: tl.constexpr, EACH: tl.constexpr,
    KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """The gradient as if no column were kept. Exponentials of those that are may overflow."""
    top, total, own = statistics
    if not KD_GRAD:  # nor will those that are kept be written again
        top_outside = top
    scale = tl.exp2((top_outside - top) * student.to_bits) / total
    scale_own = 1.0 / own
    num_blocks = tl.cdiv(num_columns + shift, BLOCK)
    for index in range(0, num_blocks):
        start = (num_blocks - 1 - index) * BLOCK
        z = read_block(student, first, start, shift, V, BLOCK, GROUP, LAYOUT, "evict_first")
        powers = tl.exp2((z - top_outside) * student.to_bits)
        result = tl.zeros([BLOCK // GROUP, GROUP], tl.float32)
        if KD_GRAD and EACH:
            _, q, g, direct = _terms_of_columns(z, student, terms, top, columns, DIVERGENCE)
            is_column = (offsets_of(start, BLOCK, GROUP) - shift).to(tl.uint32, bitcast=True) < V
            kd_gradient = tl.where(is_column, direct + q * (g - centre), 0.0)
            result += (terms.kd_slope * weight) * kd_gradient
        elif KD_GRAD:
            result += (terms.kd_slope * weight * slope) * powers
        if CE_GRAD:
            result += (terms.ce_slope * weight) * label_gradient(
                z, powers * scale, top, scale_own, label, start, shift, OWN_SUM, BLOCK, GROUP
            )
        result = capped_gradient(result, z, student)
        write_block(grad, first_g, start, shift, num_columns, result, BLOCK, GROUP, LAYOUT)


@triton.jit
def _write_kept(
    student, entries, terms, grad, statistics, outside, centre, weight, label, row, V, num_columns,
    DIVERGENCE: tl.constexpr, TAIL: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    K_BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of the kept columns."""
    for start in range(0, entries.num, K_BLOCK):
        slot = start + tl.arange(0, K_BLOCK)
        id, z, q, _, g, direct = _events(
            student, entries, terms, statistics, outside, row, slot, V, DIVERGENCE, TAIL
        )
        result = (terms.kd_slope * weight) * (direct + q * (g - centre))
        if CE_GRAD:
            soft = q
            if OWN_SUM:
                soft = tl.exp2((z - statistics[0]) * LOG2E) / statistics[2]
            result += (terms.ce_slope * weight) * (soft - (id == label).to(tl.float32))
        result = capped_gradient(result.to(tl.float32), z, student)
        is_column = (slot < entries.num) & (id >= 0) & (id < V)
        target = grad + row * num_columns + id
        tl.store(target, result.to(grad.dtype.element_ty), mask=is_column)


@triton.jit
def _row(
    student, entries, tokens, terms, grad, kd_values, ce_values, row, shift, first_g,
    V, num_columns,
    DIVERGENCE: tl.constexpr, TAIL: tl.constexpr, SUM_OUTSIDE: tl.constexpr, EACH: tl.constexpr,
    K_BLOCK: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """A row that counts."""
    first = row_start(row, student.stride, shift, GROUP, LAYOUT)
    statistics = _statistics(student, first, shift, V, OWN_SUM, BLOCK, GROUP, LAYOUT)
    label = 0
    if tokens.labels is not None:
        label, ce = cross_entropy(student, tokens, row, statistics[0], statistics[2], V)
        tl.store(ce_values + row, ce)
    outside, p_each = _outside(
        student, entries, statistics, row, first, shift, V,
        TAIL, SUM_OUTSIDE, EACH, K_BLOCK, BLOCK, GROUP, LAYOUT,
    )  # fmt: skip
    kd, centre, shares, slope = _sums_of_events(
        student, entries, terms, statistics, outside, row, V, DIVERGENCE, TAIL, K_BLOCK
    )
    columns = None
    if EACH:
        p, scale = p_each.to(tl.float32), (1.0 / outside[0]).to(tl.float32)
        log2_p, log2_total = log2_of(p_each, DIVERGENCE), log2_of(outside[0], DIVERGENCE)
        # p in units of the student's exponentials: its error is that of every column's ratio
        log2_scaled = tl.log2(p_each * outside[0]).to(tl.float32)
        columns = p, log2_p, log2_total, log2_scaled, scale
        kd_each, centre_each, shares_each = _sums_of_columns(
            student, entries, terms, statistics[0], columns, row, first, shift, V,
            DIVERGENCE, K_BLOCK, BLOCK, GROUP, LAYOUT,
        )  # fmt: skip
        kd += kd_each
        centre += centre_each
        if DIVERGENCE != "forward_kl":  # see pointwise.py
            centre /= shares + shares_each
    tl.store(kd_values + row, kd * terms.value_to_kd)
    if grad is not None:
        weight = weight_of_token(tokens)
        _write_outside(
            student, terms, grad, statistics, outside[2], slope, columns, centre.to(tl.float32),
            weight, label, first, first_g, shift, V, num_columns,
            DIVERGENCE, EACH, KD_GRAD, CE_GRAD, OWN_SUM, BLOCK, GROUP, LAYOUT,
        )  # fmt: skip
        if KD_GRAD:
            tl.debug_barrier()  # what other threads wrote to the kept columns comes before
            _write_kept(
                student, entries, terms, grad, statistics, outside, centre, weight, label, row,
                V, num_columns, DIVERGENCE, TAIL, CE_GRAD, OWN_SUM, K_BLOCK,
            )  # fmt: skip


@triton.jit
def sparse_kd_rows(
    student, entries, tokens, terms, hidden, grad, kd_values, ce_values, V, num_columns,
    DIVERGENCE: tl.constexpr, TAIL: tl.constexpr, SUM_OUTSIDE: tl.constexpr, EACH: tl.constexpr,
    K_BLOCK: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    PER_TOKEN: tl.constexpr, WIDTHS: tl.constexpr, ALIGNMENTS: tl.constexpr,
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
                student, entries, tokens, terms, grad, kd_values, ce_values, row, shift, first_g,
                V, num_columns, DIVERGENCE, TAIL, SUM_OUTSIDE, EACH, K_BLOCK,
                KD_GRAD, CE_GRAD, OWN_SUM, BLOCK, GROUP, LAYOUT,
            )  # fmt: skip
        else:
            clear_row(
                grad, kd_values, ce_values, row, shift, first_g, num_columns, BLOCK, GROUP, LAYOUT
            )
    elif len(WIDTHS) > 0:
        hidden_error(
            hidden, tokens, program - tokens.num, WIDTHS, ALIGNMENTS, PER_TOKEN,
            HIDDEN_ROWS, HIDDEN_BLOCK,
        )  # fmt: skip
