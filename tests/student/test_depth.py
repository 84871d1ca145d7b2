import re
from itertools import pairwise

import pytest

from mkd_fast.student import choose_layers

CHOICES = [
    ("stride", 12, 6, (1, 3, 5, 7, 9, 11)),
    ("stride", 12, 4, (2, 5, 8, 11)),
    ("stride", 12, 5, (1, 3, 6, 8, 11)),  # does not divide evenly
    ("stride", 12, 1, (11,)),
    ("stride", 3, 3, (0, 1, 2)),
    ("first", 12, 3, (0, 1, 2)),
    ("last", 12, 3, (9, 10, 11)),
    ("first_last", 12, 4, (0, 1, 10, 11)),
    ("first_last", 12, 3, (0, 1, 11)),  # the odd one goes to the bottom
    ("first_last", 4, 4, (0, 1, 2, 3)),
    ([0, 2, 4, 7, 9, 11], 12, 6, (0, 2, 4, 7, 9, 11)),
    ((3,), 4, None, (3,)),
    ("stride", 12, None, (1, 3, 5, 7, 9, 11)),  # half
    ("first", 5, None, (0, 1, 2)),  # half, rounded up
]


@pytest.mark.parametrize(("depth", "num_teacher_layers", "num_layers", "layers"), CHOICES)
def test_layers_are_those_documented(depth, num_teacher_layers, num_layers, layers):
    assert choose_layers(depth, num_teacher_layers, num_layers) == layers


@pytest.mark.parametrize("depth", ["stride", "first", "last", "first_last"])
@pytest.mark.parametrize("num_teacher_layers", range(1, 14))
def test_every_choice_rises_within_the_teacher(depth, num_teacher_layers):
    for num_layers in range(1, num_teacher_layers + 1):
        layers = choose_layers(depth, num_teacher_layers, num_layers)
        assert list(layers) == sorted(set(layers))
        assert len(layers) == num_layers
        assert set(layers) <= set(range(num_teacher_layers))


def test_stride_ends_at_the_top_with_gaps_that_differ_by_one_at_most():
    for num_layers in range(1, 25):
        layers = (-1, *choose_layers("stride", 24, num_layers))
        gaps = {high - low for low, high in pairwise(layers)}
        assert layers[-1] == 23
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("depth", "num_layers", "message"),
    [
        ("strides", 2, "depth must be a known name, got 'strides'. Did you mean 'stride'?"),
        ("stride", 5, "num_layers must lie in [1, 4], the teacher's layers, got 5."),
        ("stride", 0, "num_layers must lie in [1, 4], the teacher's layers, got 0."),
        ([0, 4], None, "must name layers from 0 to 3, rising, each once, got [0, 4]."),
        ([-1, 2], None, "must name layers from 0 to 3, rising, each once, got [-1, 2]."),
        ([1, 1], None, "must name layers from 0 to 3, rising, each once, got [1, 1]."),
        ([2, 1], None, "must name layers from 0 to 3, rising, each once, got [2, 1]."),
        ([], None, "must name layers from 0 to 3, rising, each once, got []."),
        ([0, 3], 3, "num_layers must be 2, as many as depth names, got 3. Leave num_layers out"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(depth, num_layers, message):
    with pytest.raises(ValueError, match=f"copy_init: .*{re.escape(message)}"):
        choose_layers(depth, 4, num_layers)
