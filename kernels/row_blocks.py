"""A row of logits or gradients in blocks of columns, 16 bytes an access wherever the row begins.

A block is [BLOCK / GROUP, GROUP], where a group is what one access takes and lies in one thread.

A row of a matrix whose width is not a multiple of GROUP begins off the 16 bytes of a vector load.
With LAYOUT "shifted" the row is read from the multiple of GROUP before it: whole groups are
loaded, the neighbours' columns in them ignored, and only a row's first and last block are stored
column by column. A group that holds a column of ours never leaves the 16-byte unit that column
lies in, so nothing outside the allocation is touched. "whole" needs no shift; "scattered" is for
sides that are shifted differently, and loads column by column.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from mkd_fast.kernels.pointwise import LN2, LOG2E, logits_of

# V vocabulary


@triton.jit
def shift_of(row, num_columns, GROUP: tl.constexpr, LAYOUT: tl.constexpr):
    """How many elements before its beginning a row is read from."""
    shift = 0
    if LAYOUT == "shifted":
        shift = ((row * num_columns) % GROUP).to(tl.int32)
    return shift


@triton.jit
def row_start(row, stride, shift, GROUP: tl.constexpr, LAYOUT: tl.constexpr):
    """Where to read a row from, in elements."""
    if LAYOUT == "scattered":
        return row * stride
    elif LAYOUT == "whole":  # a shift of 0 would be folded, and the hint with it
        return tl.multiple_of(row * stride, GROUP)
    else:
        return tl.multiple_of(row * stride - shift, GROUP)


@triton.jit
def offsets_of(start, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Elements of a block counted from the row's start: [BLOCK / GROUP, GROUP]."""
    group = start + tl.arange(0, BLOCK // GROUP) * GROUP
    return group[:, None] + tl.arange(0, GROUP)[None, :]


@triton.jit
def read_block(
    side, first, start, shift, V,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """A block of one side's logits, float32, -inf outside the V real columns."""
    offset = offsets_of(start, BLOCK, GROUP)
    column = offset - shift
    if LAYOUT == "scattered":
        is_read = column < V
    else:  # the same for a whole group, so that it is one load
        is_read = (start + tl.arange(0, BLOCK // GROUP) * GROUP - shift < V)[:, None]
    stored = tl.load(
        side.logits + first + offset, mask=is_read, other=-float("inf"), eviction_policy=EVICTION
    )
    logits = logits_of(stored, side)
    if LAYOUT == "shifted" or side.logit_scale is not None:
        logits = tl.where(column.to(tl.uint32, bitcast=True) < V, logits, -float("inf"))
    return logits


@triton.jit
def write_block(
    grad, first, start, shift, num_columns, value,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """A block of the gradient; it is not read again here, so others may have its cache lines."""
    value = value.to(grad.dtype.element_ty)
    offset = offsets_of(start, BLOCK, GROUP)
    target = grad + first + offset
    if LAYOUT == "whole":
        is_written = (start + tl.arange(0, BLOCK // GROUP) * GROUP < num_columns)[:, None]
        tl.store(target, value, mask=is_written, eviction_policy="evict_first")
    else:
        is_written = (offset - shift).to(tl.uint32, bitcast=True) < num_columns
        is_inner = (LAYOUT == "shifted") & (start >= shift) & (start + BLOCK - shift <= num_columns)
        if is_inner:
            tl.store(target, value, eviction_policy="evict_first")
        else:
            tl.store(target, value, mask=is_written, eviction_policy="evict_first")


@triton.jit
def cross_entropy(student, tokens, row, top, total, V):
    """A row's label and -log softmax(z)[label], NaN where that names no column.

    ``top`` is the row's maximum, ``total`` the sum of exponentials relative to it.
    """
    label = tl.load(tokens.labels + row)
    is_column = (label >= 0) & (label < V)
    at = student.logits + row * student.stride + label
    chosen = logits_of(tl.load(at, mask=is_column, other=float("nan")), student)
    return label.to(tl.int32), (top - chosen) + LN2 * tl.log2(total)


@triton.jit
def label_gradient(
    z, q, top, scale, label, start, shift,
    OWN_SUM: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The gradient of a block's cross-entropy: softmax(z), which is q where T is 1, less 1 there.

    ``scale`` is one over the sum of the exponentials that OWN_SUM asks for.
    """
    if OWN_SUM:
        q = tl.exp2((z - top) * LOG2E) * scale
    is_label = offsets_of(start, BLOCK, GROUP) == label + shift
    return q - is_label.to(tl.float32)


@triton.jit
def clear_row(
    grad, kd_values, ce_values, row, shift, first_g, num_columns,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """A row that does not count: nothing of it is read."""
    tl.store(kd_values + row, 0.0)
    if ce_values is not None:
        tl.store(ce_values + row, 0.0)
    if grad is not None:
        nothing = tl.zeros([BLOCK // GROUP, GROUP], tl.float32)
        for start in range(0, num_columns + shift, BLOCK):
            write_block(grad, first_g, start, shift, num_columns, nothing, BLOCK, GROUP, LAYOUT)
