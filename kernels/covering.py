"""Few combinations of options among which every pair of values occurs together somewhere."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
_Choice = tuple[str, int]  # an option, and which of its values


def covering_rows(options: Mapping[str, Sequence[Any]]) -> Iterator[Row]:
    """Rows of one value an option, such that any two values of two options share a row.

    Greedy: a row begins with a pair that none has yet, and takes of each other option the value
    that brings most new ones. Of n options of v values that makes little more than v^2 rows, where
    all combinations were v^n. The same rows in the same order each time.
    """
    missing = {
        pair: None
        for one, other in itertools.combinations(options, 2)
        for pair in itertools.product(_choices(one, options), _choices(other, options))
    }
    while missing:
        chosen = dict(next(iter(missing)))
        others = [name for name in options if name not in chosen]  # in an order of their own
        for name in sorted(others, key=lambda name: -len(options[name])):

            def num_new(choice: _Choice, chosen: dict[str, int] = chosen) -> int:
                return sum(pair in missing for pair in _pairs_with(choice, chosen, options))

            chosen |= dict([max(_choices(name, options), key=num_new)])
        for one in chosen.items():
            for pair in _pairs_with(one, chosen, options):
                missing.pop(pair, None)
        yield {name: values[chosen[name]] for name, values in options.items()}


def _choices(name: str, options: Mapping[str, Sequence[Any]]) -> list[_Choice]:
    return [(name, index) for index in range(len(options[name]))]


def _pairs_with(
    choice: _Choice, chosen: Mapping[str, int], options: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[_Choice, _Choice]]:
    """The pairs of a choice with those made of other options, in the options' order."""
    order = list(options)
    for other in chosen.items():
        if other[0] != choice[0]:
            first_is_other = order.index(other[0]) < order.index(choice[0])
            yield (other, choice) if first_is_other else (choice, other)
