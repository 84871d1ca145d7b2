"""Errors of a narrower student."""

from collections.abc import Sequence

from mkd_fast.checks.wording import one_of as one_of
from mkd_fast.checks.wording import value_error


def config_without(kind: str, names: Sequence[str]) -> ValueError:
    """A config that does not say how wide the model is."""
    return value_error(
        "copy_init",
        "the config of a teacher that is made narrower must say hidden_size, num_attention_heads "
        "and intermediate_size",
        f"{kind} without {' or '.join(names)}",
        "Keep the width, and fewer layers or tokens.",
    )


def number_out_of_range(argument: str, value: int, largest: int) -> ValueError:
    """None of something, or more than the teacher has."""
    return value_error(
        "copy_init",
        f"{argument} must lie in [1, {largest}], as the teacher has {largest}",
        f"{value}",
        "A copy can only be narrower.",
    )


def hidden_is_not_heads(hidden_size: int, head_dim: int) -> ValueError:
    """A hidden size that cuts a head."""
    below = hidden_size // head_dim * head_dim
    fitting = " or ".join(str(size) for size in (below, below + head_dim) if size)
    return value_error(
        "copy_init",
        f"hidden_size must be a multiple of {head_dim}, the length of a head, for this family has "
        "no head_dim of its own",
        f"{hidden_size}",
        f"Pass {fitting}.",
    )


def heads_do_not_fill_hidden(num_heads: int, hidden_size: int, head_dim: int) -> ValueError:
    """Heads and hidden size that say different things."""
    return value_error(
        "copy_init",
        f"num_heads must be hidden_size / {head_dim} = {hidden_size // head_dim}, for this family "
        "has no head_dim of its own",
        f"{num_heads}",
        "Pass one of the two.",
    )


def sizes_refused(kind: str, error: Exception) -> ValueError:
    """Numbers that the family's own config does not allow."""
    return value_error(
        "copy_init",
        "hidden_size and num_heads must be a model that its family can have",
        f"{kind}: {str(error).splitlines()[-1].strip()}",
        "Pass other numbers.",
    )


def groups_are_cut(num_heads: int, heads_per_group: int) -> ValueError:
    """Query heads that are not whole groups."""
    return value_error(
        "copy_init",
        f"num_heads must be a multiple of {heads_per_group}, the query heads that share a "
        "key/value head",
        f"{num_heads}",
        "Pass num_key_value_heads= to keep fewer query heads of each group.",
    )


def groups_do_not_fit(num_heads: int, num_key_value_heads: int, heads_per_group: int) -> ValueError:
    """Query heads that cannot be spread evenly over the groups."""
    return value_error(
        "copy_init",
        f"num_heads must be num_key_value_heads = {num_key_value_heads} times 1 to "
        f"{heads_per_group}, the same number of each group",
        f"{num_heads}",
        "Pass other numbers.",
    )


def calibration_missing(width: str) -> ValueError:
    """A choice by data without data."""
    return value_error(
        "copy_init",
        f'calibration must be batches of text for width="{width}"',
        "None",
        'Pass dicts of input_ids and attention_mask, or width="uniform".',
    )


def laid_out_otherwise(kind: str, what: str) -> ValueError:
    """A family whose units cannot be told apart or be dropped."""
    return value_error(
        "copy_init",
        "a teacher that is made narrower must do the same with its units in another order",
        f"{kind}, {what}",
        "Keep the width, and fewer layers or tokens.",
    )


def cannot_turn(kind: str, why: str) -> ValueError:
    """A family whose residual stream has directions of its own."""
    return value_error(
        "copy_init",
        'width="pca" must leave the outputs as they are when the residual stream is turned',
        f"{kind}, {why}",
        'Take width="activation".',
    )
