"""Which tokens count: questions that every kernel asks."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def counted(tokens, token, is_token):
    """Whether tokens count: they exist, and are neither ignored nor masked."""
    counts = is_token
    if tokens.labels is not None:
        label = tl.load(tokens.labels + token, mask=is_token, other=0)
        counts = counts & (label != tokens.ignore_index)
    if tokens.mask is not None:
        counts = counts & (tl.load(tokens.mask + token, mask=is_token, other=0) != 0)
    return counts


@triton.jit
def weight_of_token(tokens):
    """What one token's loss is multiplied by in the reduced loss."""
    weight = tokens.weight
    if tokens.denominator is not None:
        weight = weight / tl.load(tokens.denominator)
    return weight


@triton.jit
def count_tokens(tokens, denominator, BLOCK: tl.constexpr):
    """The denominator of "mean": the tokens that count, but at least 1. One program."""
    total = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tokens.num, BLOCK):
        token = start + tl.arange(0, BLOCK)
        total += counted(tokens, token, token < tokens.num).to(tl.int32)
    tl.store(denominator, tl.maximum(tl.sum(total), 1).to(tl.float32))
