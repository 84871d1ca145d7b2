"""Distance between matched hidden layers, with its gradient: a part of other launches.

H of a token is the mean over matched layers and counted positions of a distance d(h_s, h_t):

    mse      d = mean over width of (h_s - h_t)^2       dd/dh_s = 2 (h_s - h_t) / D
    cosine   d = 1 - (h_s . h_t) / (|h_s| |h_t|)        dd/dh_s = (c h_s - h_t) / (|h_s| |h_t|)
             with lengths of at least 1e-8 and c = (h_s . h_t) / |h_s|^2, or 0 where |h_s| is held

A program takes ROWS positions of every layer. mse reads either side once and writes the gradient
once; cosine reads again for the gradient what it has just read, from the caches. Teachers in eight
bits are decoded where they are loaded.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from mkd_fast.kernels.tokens import counted, weight_of_token

# N tokens, P positions a token, D width


@triton.jit
def _load_pair(layer, first_s, first_t, scale, column, is_read):
    """A block of either side, float32."""
    ours = tl.load(layer.student + first_s + column, mask=is_read, other=0.0).to(tl.float32)
    theirs = tl.load(layer.teacher + first_t + column, mask=is_read, other=0).to(tl.float32)
    if layer.scale is not None:
        theirs *= scale
    return ours, theirs


@triton.jit
def _store_grad(layer, first_g, row, counts, column, grad, WIDTH: tl.constexpr):
    """A block of the gradient, 0 at positions that do not count."""
    grad = tl.where(counts[:, None], grad, 0.0).to(layer.grad.dtype.element_ty)
    tl.store(layer.grad + first_g + column, grad, (row >= 0)[:, None] & (column < WIDTH))


@triton.jit
def _layer_error(
    layer, smallest_square, row, token, position, counts, slope,
    WIDTH: tl.constexpr, ALIGNMENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The distance in one layer, and its gradient times slope: [ROWS]."""
    stride_s, step_s, stride_t, step_t = layer.strides
    first_s = tl.multiple_of(token * stride_s + position * step_s, ALIGNMENT)[:, None]
    first_t = tl.multiple_of(token * stride_t + position * step_t, ALIGNMENT)[:, None]
    first_g = tl.multiple_of(row * WIDTH, ALIGNMENT)[:, None]
    scale = None
    if layer.scale is not None:
        scale = tl.load(layer.scale + row, mask=counts, other=0.0)[:, None]
    total = tl.zeros([ROWS, BLOCK], tl.float32)  # of squared errors, or of products
    if smallest_square is None:
        for start in range(0, WIDTH, BLOCK):
            column = (start + tl.arange(0, BLOCK))[None, :]
            is_read = counts[:, None] & (column < WIDTH)
            ours, theirs = _load_pair(layer, first_s, first_t, scale, column, is_read)
            error = ours - theirs
            total += error * error
            if layer.grad is not None:
                grad = error * (2.0 * slope / WIDTH)[:, None]
                _store_grad(layer, first_g, row, counts, column, grad, WIDTH)
        distance = tl.sum(total, 1) / WIDTH
    else:
        squares_s, squares_t = tl.zeros_like(total), tl.zeros_like(total)
        for start in range(0, WIDTH, BLOCK):
            column = (start + tl.arange(0, BLOCK))[None, :]
            is_read = counts[:, None] & (column < WIDTH)
            ours, theirs = _load_pair(layer, first_s, first_t, scale, column, is_read)
            total += ours * theirs
            squares_s += ours * ours
            squares_t += theirs * theirs
        dot, square_s, square_t = tl.sum(total, 1), tl.sum(squares_s, 1), tl.sum(squares_t, 1)
        is_held = square_s < smallest_square
        length_s = tl.sqrt_rn(tl.where(is_held, smallest_square, square_s))
        length_t = tl.sqrt_rn(tl.where(square_t < smallest_square, smallest_square, square_t))
        inverse = 1.0 / length_s / length_t
        distance = 1.0 - dot * inverse
        if layer.grad is not None:
            # One factor for both sides, so that its error is none of parallel sides' difference.
            factor = (slope * inverse)[:, None]
            ratio = tl.where(is_held, 0.0, dot / square_s)[:, None]
            for start in range(0, WIDTH, BLOCK):
                column = (start + tl.arange(0, BLOCK))[None, :]
                is_read = counts[:, None] & (column < WIDTH)
                ours, theirs = _load_pair(layer, first_s, first_t, scale, column, is_read)
                grad = factor * (ours * ratio - theirs)
                _store_grad(layer, first_g, row, counts, column, grad, WIDTH)
    return distance


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
            hidden.layers[layer], hidden.smallest_square, written, token,
            row - token * hidden.num_positions, counts, slope,
            WIDTHS[layer], ALIGNMENTS[layer], ROWS, BLOCK,
        )  # fmt: skip
    error = tl.where(counts, error * share / len(WIDTHS), 0.0)
    if PER_TOKEN:
        tl.store(hidden.errors + row, error, mask=is_row)
    else:
        tl.store(hidden.errors + program, tl.sum(error))
