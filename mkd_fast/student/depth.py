"""Which of the teacher's layers become the student's.

Layers are numbered from 0. For 6 of 12:

    stride      1 3 5 7 9 11    evenly spaced, ending at the top
    first       0 1 2 3 4 5
    last        6 7 8 9 10 11
    first_last  0 1 2 9 10 11   the odd one, if any, goes to the bottom
    importance                  those that change a calibration text's hidden states most

`stride` gives student layer i the top layer of the i-th of `num_layers` equal groups, the uniform
map of TinyBERT (arXiv 1909.10351). It keeps the last layer because the task head was fine-tuned on
that layer's output, and because student layer i then ends where group i of the teacher ends: the
pairs that a hidden-state loss matches. Another map is a list: 0 2 4 7 9 11, for one.
Which choice is best differs by model (arXiv 2505.16956), so it is an option.
"""

from collections.abc import Sequence
from itertools import pairwise

from mkd_fast.checks import student as checks

DEPTHS = ("stride", "first", "last", "first_last", "importance")


def choose_layers(
    depth: str | Sequence[int],
    num_teacher_layers: int,
    num_layers: int | None = None,
    *,
    scores: Sequence[float] | None = None,
    first_stays: bool = False,
) -> tuple[int, ...]:
    """The teacher's layers that a student keeps, in order.

    Args:
        depth: "stride", "first", "last", "first_last", "importance", or the layer numbers
            themselves, rising.
        num_teacher_layers: how many layers the teacher has, at least 1.
        num_layers: how many to keep, in [1, num_teacher_layers]. None is half of them, rounded up,
            or as many as the list names.
        scores: for "importance", a number for each layer of the teacher: the highest are kept, of
            equal ones the lower layer.
        first_stays: a depth by name keeps layer 0 and chooses among the others.

    Returns:
        Layer numbers from 0, rising, one for each layer of the student.

    Raises:
        ValueError: unknown depth, num_layers out of range or at odds with the list, or a list that
            is empty, does not rise or names a layer the teacher lacks.
    """
    if not isinstance(depth, str):
        return _check_list(tuple(depth), num_teacher_layers, num_layers)
    checks.one_of("copy_init", "depth", depth, DEPTHS)
    kept = (num_teacher_layers + 1) // 2 if num_layers is None else num_layers
    if not 1 <= kept <= num_teacher_layers:
        raise checks.num_layers_out_of_range(kept, num_teacher_layers)
    if not first_stays:
        return _choose(depth, num_teacher_layers, kept, scores)
    others = _choose(depth, num_teacher_layers - 1, kept - 1, scores and scores[1:])
    return (0, *(layer + 1 for layer in others))


def _choose(
    depth: str, num_all: int, num_kept: int, scores: Sequence[float] | None
) -> tuple[int, ...]:
    """The choice by name; keeping none is a choice too."""
    every = range(num_all)
    if depth == "stride":
        return tuple((i + 1) * num_all // num_kept - 1 for i in range(num_kept))
    if depth == "importance":
        if scores is None:
            raise checks.calibration_missing()
        ranked = sorted(every, key=lambda layer: -scores[layer])
        return tuple(sorted(ranked[:num_kept]))
    bottom = {"first": num_kept, "last": 0, "first_last": (num_kept + 1) // 2}[depth]
    return (*every[:bottom], *every[num_all - num_kept + bottom :])


def _check_list(
    layers: tuple[int, ...], num_teacher_layers: int, num_layers: int | None
) -> tuple[int, ...]:
    in_range = all(0 <= layer < num_teacher_layers for layer in layers)
    rising = all(low < high for low, high in pairwise(layers))
    if not (layers and in_range and rising):
        raise checks.bad_layer_numbers(layers, num_teacher_layers)
    if num_layers not in (None, len(layers)):
        raise checks.layer_count_mismatch(layers, num_layers)
    return layers
