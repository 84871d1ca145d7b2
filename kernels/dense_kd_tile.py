"""Small label sets: a [ROWS, BLOCK] tile a program, loaded once, everything in registers.

Statistics, value and gradient come from the one copy on chip, so a bf16 logit costs 6 bytes
whatever the divergence. With ROWS = 1 it also serves rows of a few thousand columns.
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
    logits_of,
    squared_error,
)
from mkd_fast.kernels.tokens import counted, weight_of_token

# N tokens, V vocabulary


@triton.jit
def _softmax(logits, to_bits):
    """A row's maximum, the exponents relative to it, their sum of powers, and the softmax."""
    top = tl.max(logits, 1)[:, None]
    bits = (logits - top) * to_bits
    powers = tl.exp2(bits)
    total = tl.sum(powers, 1)[:, None]
    return top, bits, total, powers * (1.0 / total)


@triton.jit
def _cross_entropy(logits, top, q, total, is_label, OWN_SUM: tl.constexpr):
    """-log softmax(z)[label], NaN where no column is the label's, and the softmax."""
    if OWN_SUM:  # T is not 1: the tempered exponentials are of no use here
        exponentials = tl.exp2((logits - top) * LOG2E)
        total = tl.sum(exponentials, 1)[:, None]
        q = exponentials * (1.0 / total)
    chosen = tl.sum(tl.where(is_label, logits - top, 0.0), 1)
    log_total = tl.sum(tl.log2(total), 1) * LN2
    return tl.where(tl.max(is_label.to(tl.int32), 1) != 0, log_total - chosen, float("nan")), q


@triton.jit
def _store_value(values, value, row, is_row, program, PER_TOKEN: tl.constexpr):
    """One value a token, or one sum a program."""
    if PER_TOKEN:
        tl.store(values + row, value, mask=is_row)
    else:
        tl.store(values + program, tl.sum(value))


@triton.jit
def _tile(
    student, teacher, tokens, terms, grad, kd_values, ce_values, program,
    V: tl.constexpr, num_columns: tl.constexpr, ALIGNMENT: tl.constexpr,
    DIVERGENCE: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    PER_TOKEN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < tokens.num
    counts = counted(tokens, row, is_row)
    column = tl.arange(0, BLOCK)[None, :]
    is_read = counts[:, None] & (column < V)
    first_s = tl.multiple_of(row * student.stride, ALIGNMENT)[:, None]
    first_t = tl.multiple_of(row * teacher.stride, ALIGNMENT)[:, None]
    ours = tl.load(student.logits + first_s + column, mask=is_read, other=-float("inf"))
    theirs = tl.load(teacher.logits + first_t + column, mask=is_read, other=-float("inf"))
    logits = tl.where(column < V, logits_of(ours, student), -float("inf"))
    targets = tl.where(column < V, logits_of(theirs, teacher), -float("inf"))
    top, bits_s, total, q = _softmax(logits, student.to_bits)
    if DIVERGENCE == "logit_mse":
        value, direct = squared_error(logits, targets, column < V)
    else:
        top_t, bits_t, total_t, p = _softmax(targets, teacher.to_bits)
        log2_s = log2_of(total, DIVERGENCE)
        log2_t = log2_of(total_t, DIVERGENCE)
        excess_t = bits_t
        common = log2_t[0] - log2_s[0]
        if is_relative(DIVERGENCE):
            base_t = tl.max(tl.where(logits == top, targets, LOWEST), 1)[:, None]
            base_t = tl.where(base_t == LOWEST, top_t, base_t)
            excess_t = (targets - base_t) * teacher.to_bits
            common += (top_t - base_t) * teacher.to_bits
        log2_p = log2_share(targets, top_t, bits_t, log2_t, teacher, DIVERGENCE)
        log2_q = log2_share(logits, top, bits_s, log2_s, student, DIVERGENCE)
        value, g, direct = contribution(
            p, q, log2_p, log2_q, bits_s - excess_t, common, terms, DIVERGENCE
        )
    kd = tl.where(counts, tl.sum(value, 1) * terms.value_to_kd, 0.0)
    soft = q
    if tokens.labels is not None:
        label = tl.load(tokens.labels + row, mask=counts, other=0)
        is_label = (column == label[:, None]) & (column < V)
        ce, soft = _cross_entropy(logits, top, q, total, is_label, OWN_SUM)
        _store_value(ce_values, tl.where(counts, ce, 0.0), row, is_row, program, PER_TOKEN)
    _store_value(kd_values, kd, row, is_row, program, PER_TOKEN)
    if grad is not None:
        result = tl.zeros([ROWS, BLOCK], tl.float32)
        if KD_GRAD:
            if DIVERGENCE != "logit_mse":
                centre = tl.sum(direct + q * g, 1)[:, None]
                if DIVERGENCE != "forward_kl":
                    centre /= tl.sum(q, 1)[:, None]
                direct += q * (g - centre)
            result += terms.kd_slope * direct
        if CE_GRAD:
            result += terms.ce_slope * (soft - is_label.to(tl.float32))
        result = capped_gradient(result, logits, student)
        result = tl.where(is_read, result * weight_of_token(tokens), 0.0)
        first_g = tl.multiple_of(row * num_columns, ALIGNMENT)[:, None]
        is_written = is_row[:, None] & (column < num_columns)
        tl.store(grad + first_g + column, result.to(grad.dtype.element_ty), mask=is_written)


@triton.jit
def dense_kd_tile(
    student, teacher, tokens, terms, hidden, grad, kd_values, ce_values, num_programs,
    V: tl.constexpr, num_columns: tl.constexpr, ALIGNMENT: tl.constexpr,
    DIVERGENCE: tl.constexpr, KD_GRAD: tl.constexpr, CE_GRAD: tl.constexpr, OWN_SUM: tl.constexpr,
    PER_TOKEN: tl.constexpr, WIDTHS: tl.constexpr, ALIGNMENTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
    HIDDEN_ROWS: tl.constexpr, HIDDEN_BLOCK: tl.constexpr,
):  # fmt: skip
    """The first num_programs programs take ROWS rows of logits each, the rest hidden states."""
    program = tl.program_id(0)
    if program < num_programs:
        _tile(
            student, teacher, tokens, terms, grad, kd_values, ce_values, program,
            V, num_columns, ALIGNMENT, DIVERGENCE, KD_GRAD, CE_GRAD, OWN_SUM, PER_TOKEN,
            ROWS, BLOCK,
        )  # fmt: skip
    elif len(WIDTHS) > 0:
        hidden_error(
            hidden, tokens, program - num_programs, WIDTHS, ALIGNMENTS, PER_TOKEN,
            HIDDEN_ROWS, HIDDEN_BLOCK,
        )  # fmt: skip
