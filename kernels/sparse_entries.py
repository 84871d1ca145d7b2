"""What a sparse teacher kept of a row: its K entries, read where they lie.

Where they have to be told from the columns outside, a block asks for those in it one by one, each
the smallest above the one before: a reduction over K entries for each block and each id.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from mkd_fast.kernels.pointwise import LN2, logits_of
from mkd_fast.kernels.row_blocks import offsets_of

# V vocabulary, K kept ids

_NO_ID = tl.constexpr(2**31 - 1)  # larger than any


@triton.jit
def _id_and_count(entries, row, slot, is_slot):
    """A slot's id, -1 if it is empty, and of a packed entry how often it was drawn."""
    if entries.targets is None:
        first = entries.ids + row * entries.id_stride + slot * 3
        low = tl.load(first, mask=is_slot, other=0).to(tl.int32)
        middle = tl.load(first + 1, mask=is_slot, other=0).to(tl.int32)
        high = tl.load(first + 2, mask=is_slot, other=0).to(tl.int32)
        packed = low | (middle << 8) | (high << 16)
        count = packed >> entries.id_bits
        id = tl.where(count == 0, -1, packed & ((1 << entries.id_bits) - 1))
    else:
        id = tl.load(entries.ids + row * entries.id_stride + slot, mask=is_slot, other=-1)
        count = tl.zeros_like(id)
    return id.to(tl.int64), count


@triton.jit
def targets_of(entries, row, slot, TAIL: tl.constexpr):
    """Ids in some slots, with log p and p (or 0 and the weights), float64; p is 0 where empty.

    The K entries are few, and one minus their sum is wanted: in float64 it is exact enough.
    """
    id, count = _id_and_count(entries, row, slot, slot < entries.num)
    is_kept = id >= 0
    if TAIL == "packed":
        p = count.to(tl.float64) / entries.num_draws
        log_p = tl.zeros_like(p)
    else:
        at = entries.targets + row * entries.target_stride + slot
        stored = tl.load(at, mask=is_kept, other=0.0)
        if TAIL == "sampled":
            p = stored.to(tl.float64)
            log_p = tl.zeros_like(p)
        else:
            z = logits_of(stored, entries).to(tl.float64)
            log_z = tl.load(entries.log_z + row).to(tl.float64)
            log_p = tl.where(is_kept, z / entries.temperature - log_z, -float("inf"))
            p = tl.exp(log_p)
    return id, log_p, p


@triton.jit
def student_logits(student, row, id, V):
    """The student's logits at some ids: -inf for none, NaN for one that names no column."""
    is_column = (id >= 0) & (id < V)
    stored = tl.load(student.logits + row * student.stride + id, mask=is_column, other=0.0)
    outside = tl.where(id < 0, -float("inf"), float("nan"))
    return tl.where(is_column, logits_of(stored, student), outside)


@triton.jit
def sums_of_kept(student, entries, top, row, V, TAIL: tl.constexpr, K_BLOCK: tl.constexpr):
    """The number of kept ids, the sum of their p, and that of the student's exponentials."""
    num = tl.zeros([K_BLOCK], tl.int32)
    mass = tl.zeros([K_BLOCK], tl.float64)
    powers = tl.zeros([K_BLOCK], tl.float64)
    for start in range(0, entries.num, K_BLOCK):
        id, _, p = targets_of(entries, row, start + tl.arange(0, K_BLOCK), TAIL)
        z = student_logits(student, row, id, V)
        num += (id >= 0).to(tl.int32)
        mass += p
        powers += tl.exp((z - top).to(tl.float64) * student.to_bits * LN2)
    return tl.sum(num), tl.sum(mass), tl.sum(powers)


@triton.jit
def _kept_between(entries, row, low, high, K_BLOCK: tl.constexpr):
    """How many kept ids lie between two others, and the smallest of them."""
    num = tl.zeros([K_BLOCK], tl.int32)
    least = tl.full([K_BLOCK], _NO_ID, tl.int32)
    for start in range(0, entries.num, K_BLOCK):
        slot = start + tl.arange(0, K_BLOCK)
        id, _ = _id_and_count(entries, row, slot, slot < entries.num)
        is_between = (id > low) & (id < high)
        num += is_between.to(tl.int32)
        least = tl.minimum(least, tl.where(is_between, id.to(tl.int32), _NO_ID))
    return tl.sum(num), tl.min(least)


@triton.jit
def only_outside(
    z, instead, entries, row, start, shift, V,
    K_BLOCK: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A block of logits with ``instead`` where a column is kept, or is none."""
    first = start - shift
    column = offsets_of(start, BLOCK, GROUP) - shift
    z = tl.where(column.to(tl.uint32, bitcast=True) < V, z, instead)
    num, id = _kept_between(entries, row, first - 1, first + BLOCK, K_BLOCK)
    for _ in range(0, num):
        z = tl.where(column == id, instead, z)
        _, id = _kept_between(entries, row, id, first + BLOCK, K_BLOCK)
    return z
