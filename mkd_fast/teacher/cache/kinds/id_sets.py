"""Sets of ids in few bytes: Elias-Fano codes.

They take about half a bit an id more than the best code for sets of which all of one size are
equally likely. A set of K of V ids by rising number, id_0 < ... < id_{K-1}, with
l = floor(log2(V / K)) low bits each, is a row of bits, filled up to whole bytes with zeros; a
byte's lowest bit is its first.

    high  K + ((V - 1) >> l) bits, of which bit (id_j >> l) + j is set for each j
    low   l bits for each id, the lowest first

The size of a row follows from V and K, so rows lie end to end and nothing says where they begin.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
MOST_IDS = 255  # in a set


class IdSets:
    """Rows of ids as bytes, and back.

    Args:
        num_columns: V, at most 2^24: low bits are read four bytes at a time.
    """

    def __init__(self, num_columns: int) -> None:
        self.num_columns = num_columns

    # by K, which is also the place in these tables

    @cached_property
    def _low_bits(self) -> Ints:
        sizes = range(min(MOST_IDS, self.num_columns) + 1)
        return np.array([(self.num_columns // max(k, 1)).bit_length() - 1 for k in sizes])

    @cached_property
    def _high_bits(self) -> Ints:
        sizes = np.arange(len(self._low_bits))
        return np.where(sizes > 0, sizes + (self.num_columns - 1 >> self._low_bits), 0)

    @cached_property
    def _num_bytes(self) -> Ints:
        return self._high_bits + np.arange(len(self._low_bits)) * self._low_bits + 7 >> 3

    def num_bytes(self, num_ids: Ints) -> Ints:
        """Bytes of rows that have so many ids."""
        return self._num_bytes[num_ids]

    def encode(self, ids: Ints, num_ids: Ints) -> NDArray[np.uint8]:
        """Bytes of all rows.

        Args:
            ids: rising within a row, rows end to end.
            num_ids: of each row.
        """
        of_row = np.repeat(np.arange(len(num_ids)), num_ids)
        low_bits = self._low_bits[num_ids][of_row]
        place = _place_in_row(num_ids)
        num_bytes = self.num_bytes(num_ids)
        begins = 8 * _begins(num_bytes)[of_row]
        bits = np.zeros(8 * int(num_bytes.sum()), np.uint8)
        bits[begins + (ids >> low_bits) + place] = 1
        begins += self._high_bits[num_ids][of_row] + place * low_bits
        for bit in range(int(low_bits.max(initial=0))):
            has = bit < low_bits
            bits[begins[has] + bit] = ids[has] >> bit & 1
        return np.packbits(bits, bitorder="little")

    def decode(self, rows: NDArray[np.uint8], num_ids: Ints) -> Ints | None:
        """Ids of all rows end to end; None where the bytes are not what ``encode`` makes.

        Args:
            rows: bytes of all rows; untrusted.
            num_ids: of each row; untrusted.
        """
        if num_ids.max(initial=0) >= len(self._num_bytes):
            return None
        num_ids = num_ids[num_ids > 0]
        num_bytes, num_bits = self.num_bytes(num_ids), self._high_bits[num_ids]
        if num_bytes.sum() != len(rows):
            return None
        begins = _begins(num_bytes)
        # the high parts alone, each in whole bytes, whose rest belongs to low parts
        high_bytes = num_bits + 7 >> 3
        high_begins = _begins(high_bytes)
        high = rows[np.repeat(begins - high_begins, high_bytes) + np.arange(high_bytes.sum())]
        high[high_begins + high_bytes - 1] &= (0xFF >> 8 * high_bytes - num_bits).astype(np.uint8)
        ones = np.flatnonzero(np.unpackbits(high, bitorder="little"))
        of_row = np.repeat(np.arange(len(num_ids)), num_ids)
        if len(ones) != len(of_row):
            return None
        place = _place_in_row(num_ids)
        ones -= 8 * high_begins[of_row]
        if ((ones < 0) | (ones >= num_bits[of_row])).any():
            return None
        low_bits = self._low_bits[num_ids][of_row]
        at = 8 * begins[of_row] + num_bits[of_row] + place * low_bits
        padded = np.concatenate((rows, np.zeros(4, np.uint8)))
        fours = np.ndarray(len(rows) + 1, "<u4", padded, strides=(1,))
        low = fours[at >> 3] >> (at & 7) & (1 << low_bits) - 1
        ids: Ints = ones - place << low_bits | low
        is_rising = (ids[1:] > ids[:-1]) | (place[1:] == 0)
        return ids if is_rising.all() and ids.max(initial=0) < self.num_columns else None


def _begins(sizes: Ints) -> Ints:
    return np.cumsum(sizes) - sizes


def _place_in_row(num_ids: Ints) -> Ints:
    return np.arange(num_ids.sum()) - np.repeat(_begins(num_ids), num_ids)
