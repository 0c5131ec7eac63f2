"""Digests of rows and of ranges of rows. Pure.

A row's hash is two lanes of 64 bits. A range's digest is the count of its rows and, for each lane, the sum
modulo 2^64, so that the order of the rows does not matter and ranges add up: see docs/digest.md, "Why a sum".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

LANE_BITS = 64
_MASK = (1 << LANE_BITS) - 1


class RowHash(NamedTuple):
    """`b` is 0 where the side's hash has one lane (the fast path)."""

    a: int
    b: int

    @classmethod
    def of(cls, a: int, b: int) -> RowHash:
        """Of lanes as a server gives them: signed 64-bit integers."""
        return cls(a & _MASK, b & _MASK)


@dataclass(frozen=True, slots=True)
class RangeDigest:
    count: int = 0
    a: int = 0
    b: int = 0

    @classmethod
    def of_sums(cls, count: int, a: int | Decimal | None, b: int | Decimal | None) -> RangeDigest:
        """Of sums as a server gives them: exact, of signed lanes; NULL for a range without rows."""
        return cls(count, int(a or 0) & _MASK, int(b or 0) & _MASK)

    @classmethod
    def of_hashes(cls, hashes: Iterable[tuple[int, int]]) -> RangeDigest:
        count = a = b = 0
        for lane_a, lane_b in hashes:
            count += 1
            a += lane_a
            b += lane_b
        return cls(count, a & _MASK, b & _MASK)

    def __add__(self, other: RangeDigest) -> RangeDigest:
        """Of two ranges that have no row in common."""
        return RangeDigest(self.count + other.count, (self.a + other.a) & _MASK, (self.b + other.b) & _MASK)

    def __sub__(self, part: RangeDigest) -> RangeDigest:
        """Of what is left when `part`, a range within this one, is taken out."""
        return RangeDigest(self.count - part.count, (self.a - part.a) & _MASK, (self.b - part.b) & _MASK)


EMPTY = RangeDigest()


def total(digests: Iterable[RangeDigest]) -> RangeDigest:
    return sum(digests, EMPTY)
