"""From the values of tokens or programs to the four results: a fixed order of sums, no atomics."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from mkd_fast.kernels.tokens import weight_of_token

# N tokens, P positions of hidden states a token


@triton.jit
def _weighted(kd, ce, hidden, weights):
    """The loss; a term of weight 0 is left out, whatever it is."""
    loss = tl.where(weights[0] != 0.0, weights[0] * kd, 0.0)
    loss += tl.where(weights[1] != 0.0, weights[1] * ce, 0.0)
    loss += tl.where(weights[2] != 0.0, weights[2] * hidden, 0.0)
    return loss


@triton.jit
def _sum(values, num, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    if values is not None:
        for start in range(0, num, BLOCK):
            index = start + tl.arange(0, BLOCK)
            total += tl.load(values + index, mask=index < num, other=0.0)
    return tl.sum(total)


@triton.jit
def reduce_values(
    kd_values, ce_values, errors, num_values, num_errors, tokens, weights, loss, kd, ce, hidden,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of what the programs of the main launch found, times a token's weight. One program."""
    weight = weight_of_token(tokens)
    kd_total = _sum(kd_values, num_values, BLOCK) * weight
    ce_total = _sum(ce_values, num_values, BLOCK) * weight
    hidden_total = _sum(errors, num_errors, BLOCK) * weight
    tl.store(kd, kd_total)
    tl.store(ce, ce_total)
    tl.store(hidden, hidden_total)
    tl.store(loss, _weighted(kd_total, ce_total, hidden_total, weights))


@triton.jit
def combine_values(
    kd_values, ce_values, errors, num_tokens, num_positions, weights, loss, hidden,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One value a token: H from the errors [N, P] of its positions, and the loss."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_token = token < num_tokens
    kd = tl.load(kd_values + token, mask=is_token, other=0.0)
    ce = tl.load(ce_values + token, mask=is_token, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    if errors is not None:
        for position in range(0, num_positions):
            total += tl.load(errors + token * num_positions + position, mask=is_token, other=0.0)
    tl.store(hidden + token, total, mask=is_token)
    tl.store(loss + token, _weighted(kd, ce, total, weights), mask=is_token)
