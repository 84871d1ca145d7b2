"""Which units of a teacher a narrower student keeps.

`uniform` takes units evenly, 0 2 4 of 6 (weight selection, arXiv 2311.18823). `activation` takes
those that do most on calibration text (weight subcloning, arXiv 2312.09299): a unit of the residual
stream by its mean absolute value, each token's mean square being 1 as behind a norm; a head by the
length of what it adds to the stream; a feed-forward unit by its mean absolute value. Of grouped
heads, the groups that add most are kept, and the heads that add most in each. Units keep their
order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mkd_fast.student.activity import Activity
from mkd_fast.student.sizes import Sizes


@dataclass(frozen=True, eq=False)
class Units:
    """The numbers of the units that are kept, rising.

    Attributes:
        residual: the same everywhere.
        heads: query heads, by layer of the teacher.
        feed_forward: by layer of the teacher.
    """

    residual: Tensor
    heads: tuple[Tensor, ...]
    feed_forward: tuple[Tensor, ...]


def choose_units(
    teacher: Sizes, student: Sizes, num_layers: int, activity: Activity | None
) -> Units:
    """Evenly spaced units, or the most active ones where activity is known."""
    if activity is None:
        heads = _heads(teacher, student, None)
        units = _evenly(teacher.intermediate_size, student.intermediate_size)
        return Units(
            _evenly(teacher.hidden_size, student.hidden_size),
            (heads,) * num_layers,
            (units,) * num_layers,
        )
    return Units(
        _largest(activity.residual, student.hidden_size),
        tuple(_heads(teacher, student, scores) for scores in activity.heads),
        tuple(_largest(scores, student.intermediate_size) for scores in activity.feed_forward),
    )


def _heads(teacher: Sizes, student: Sizes, scores: Tensor | None) -> Tensor:
    """Whole groups, then as many heads of each of them."""
    num_groups, size = teacher.num_key_value_heads, teacher.heads_per_group
    kept, kept_of_each = student.num_key_value_heads, student.heads_per_group
    if scores is None:
        return (_evenly(num_groups, kept)[:, None] * size + _evenly(size, kept_of_each)).flatten()
    by_group = scores.view(num_groups, size)
    groups = _largest(by_group.sum(1), kept).tolist()
    return torch.cat([g * size + _largest(by_group[g], kept_of_each) for g in groups])


def _evenly(num_units: int, num_kept: int) -> Tensor:
    return torch.arange(num_kept) * num_units // num_kept


def _largest(scores: Tensor, num_kept: int) -> Tensor:
    return scores.topk(num_kept).indices.sort().values
