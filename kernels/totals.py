"""From the values of rows or programs to the four results: a fixed order of sums, no atomics."""
# mypy: disallow_untyped_defs=False, disallow_untyped_decorators=False

import triton
import triton.language as tl


@triton.jit
def _sum(values, num, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(values + index, mask=index < num, other=0.0)
    return tl.sum(total)


@triton.jit
def _store_weighted(loss, kd, ce, hidden, weights):
    """The weighted sum; a term of weight 0 is left out, whatever it is."""
    total = 0.0
    if weights[0] != 0.0:
        total += weights[0] * kd
    if weights[1] != 0.0:
        total += weights[1] * ce
    if weights[2] != 0.0:
        total += weights[2] * hidden
    tl.store(loss, total)


@triton.jit
def reduce_values(
    kd_values, ce_values, hidden_values, num_values, num_hidden, weights, denominator, num_tokens,
    loss, kd, ce, hidden, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over tokens, divided by ``denominator`` (or num_tokens), and their weighted sum."""
    if denominator is not None:
        divisor = tl.load(denominator)
    else:
        divisor = num_tokens
    kd_total = _sum(kd_values, num_values, BLOCK) / divisor
    ce_total = 0.0
    if ce_values is not None:
        ce_total = _sum(ce_values, num_values, BLOCK) / divisor
    hidden_total = 0.0
    if hidden_values is not None:
        hidden_total = _sum(hidden_values, num_hidden, BLOCK) / divisor
    tl.store(kd, kd_total)
    tl.store(ce, ce_total)
    tl.store(hidden, hidden_total)
    _store_weighted(loss, kd_total, ce_total, hidden_total, weights)
