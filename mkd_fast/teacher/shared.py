"""One capture shared by several processes or machines."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any


def batches_of(batches: Iterable[Any], part: int, num_parts: int) -> Iterator[Any]:
    """Every ``num_parts``-th batch from the one numbered ``part`` on."""
    return islice(batches, part, None, num_parts)


def in_stored_order(batches: Iterable[Any], num_parts: int) -> Iterator[Any]:
    """All batches as a cache has them: part after part."""
    for part in range(num_parts):
        yield from batches_of(batches, part, num_parts)
