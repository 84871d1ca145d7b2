"""Mean squared error between matched hidden layers, with its gradient: a part of other launches.

H of a token is the mean over matched layers l, counted positions and width of (h_s - h_t)^2, so
dH/dh_s = 2 (h_s - h_t) / (num_layers * counted * D_l). Either side is read once and the gradient
written once; a program takes ROWS positions of every layer.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from mkd_fast.kernels.tokens import counted, weight_of_token

# N tokens, P positions a token, D width


@triton.jit
def _layer_error(
    layer, row, token, position, counts, slope,
    WIDTH: tl.constexpr, ALIGNMENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean squared error over the width of one layer, and its gradient: [ROWS]."""
    stride_s, step_s, stride_t, step_t = layer.strides
    first_s = tl.multiple_of(token * stride_s + position * step_s, ALIGNMENT)[:, None]
    first_t = tl.multiple_of(token * stride_t + position * step_t, ALIGNMENT)[:, None]
    first_g = tl.multiple_of(row * WIDTH, ALIGNMENT)[:, None]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = (start + tl.arange(0, BLOCK))[None, :]
        is_read = counts[:, None] & (column < WIDTH)
        ours = tl.load(layer.student + first_s + column, mask=is_read, other=0.0)
        theirs = tl.load(layer.teacher + first_t + column, mask=is_read, other=0.0)
        error = ours.to(tl.float32) - theirs.to(tl.float32)
        total += error * error
        if layer.grad is not None:
            grad = tl.where(counts[:, None], error * (slope / WIDTH)[:, None], 0.0)
            is_written = (row >= 0)[:, None] & (column < WIDTH)
            tl.store(
                layer.grad + first_g + column, grad.to(layer.grad.dtype.element_ty), is_written
            )
    return tl.sum(total, 1) / WIDTH


@triton.jit
def _share_of_position(hidden, token, is_token, ROWS: tl.constexpr):
    """One over the number of positions that count in a position's token: [ROWS]."""
    if hidden.mask is None:
        share = tl.full([ROWS], 1.0, tl.float32) / hidden.num_positions
    else:
        total = tl.zeros([ROWS, 32], tl.int32)
        for start in range(0, hidden.num_positions, 32):
            position = (start + tl.arange(0, 32))[None, :]
            is_read = is_token[:, None] & (position < hidden.num_positions)
            at = token[:, None] * hidden.num_positions + position
            total += (tl.load(hidden.mask + at, mask=is_read, other=0) != 0).to(tl.int32)
        share = 1.0 / tl.maximum(tl.sum(total, 1), 1).to(tl.float32)
    return share


@triton.jit
def hidden_error(
    hidden, tokens, program, WIDTHS: tl.constexpr, ALIGNMENTS: tl.constexpr,
    PER_TOKEN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Value and gradient of H at positions program * ROWS .. of all layers."""
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    num_rows = tokens.num * hidden.num_positions
    is_row = row < num_rows
    token = row // hidden.num_positions
    counts = counted(tokens, token, is_row)
    if hidden.mask is not None:
        counts = counts & (tl.load(hidden.mask + row, mask=is_row, other=0) != 0)
    share = _share_of_position(hidden, token, is_row, ROWS)
    slope = hidden.slope * weight_of_token(tokens) * share
    written = tl.where(is_row, row, -1)
    error = tl.zeros([ROWS], tl.float32)
    for layer in tl.static_range(len(WIDTHS)):
        error += _layer_error(
            hidden.layers[layer], written, token, row - token * hidden.num_positions, counts, slope,
            WIDTHS[layer], ALIGNMENTS[layer], ROWS, BLOCK,
        )  # fmt: skip
    error = tl.where(counts, error * share / len(WIDTHS), 0.0)
    if PER_TOKEN:
        tl.store(hidden.errors + row, error, mask=is_row)
    else:
        tl.store(hidden.errors + program, tl.sum(error))
