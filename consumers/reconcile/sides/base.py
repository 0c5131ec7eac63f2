"""What the comparison asks of a store: digests of parts of a table, hashes of their rows, rows by key.

A part is a range of keys, where both sides order keys alike, or else a bucket: the rows whose key's hash
has a remainder. Bounds and keys are canonical texts (docs/digest.md). A range's low end belongs to it, its
high end does not; None is open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from consumers.reconcile.canonical import row_text
from consumers.reconcile.dialects.sqlite import STRANGE
from consumers.reconcile.digest import RangeDigest, RowHash
from consumers.reconcile.fast import Collation
from consumers.reconcile.groups import Counts, Grouping
from consumers.reconcile.mapping import Incomparable

Key = tuple[str, ...]
A = TypeVar("A")
B = TypeVar("B")
_NULLS = (None, STRANGE)  # the latter where a side has a text for it
KEYS_SHOWN = 3  # that do not tell rows apart
KEY_HASH_HEX = 8  # digits of the md5 of a key's text that buckets are made by


@dataclass(frozen=True, slots=True)
class KeyRange:
    low: Key | None = None
    high: Key | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """The rows whose key's hash has the remainder `at` when divided by `of`."""

    of: int
    at: int

    def split(self, parts: int) -> list[Bucket]:
        if self.of * parts > 16**KEY_HASH_HEX:  # more than the hash has values
            return [self]
        return [Bucket(self.of * parts, self.at + self.of * n) for n in range(parts)]


Part = KeyRange | Bucket
WHOLE = KeyRange()


def ranges_between(bounds: Sequence[Key], whole: KeyRange = WHOLE) -> list[KeyRange]:
    """`bounds` rise, and lie within `whole`."""
    ends = [whole.low, *bounds, whole.high]
    return [KeyRange(low, high) for low, high in pairwise(ends)]


def buckets(of: int) -> list[Bucket]:
    return [Bucket(of, at) for at in range(of)]


def by_key(rows: Iterable[tuple[Sequence[str | None], RowHash]], place: str) -> dict[Key, RowHash]:
    """Raises Incomparable where the key does not tell the rows apart: a table that somebody else made need
    not have it unique, and of doubled rows one would be as good as the other."""
    found: dict[Key, RowHash] = {}
    wrong: Counter[Sequence[str | None]] = Counter()
    for texts, row_hash in rows:
        key = tuple([text for text in texts if text is not None])
        if len(key) < len(texts) or key in found:
            wrong[tuple(texts)] += 1
        else:
            found[key] = row_hash
    if not wrong:
        return found
    shown = "; ".join(
        f"({', '.join('NULL' if text in _NULLS else text for text in texts)})"
        f" {times + (None not in texts)} times"
        for texts, times in wrong.most_common(KEYS_SHOWN)
    )
    raise Incomparable(
        f"its key does not tell the rows of {place} apart: {shown}\n  -> delete what is there twice or has"
        " NULL in its key, and give the table a primary key"
    )


def key_hash(key: Key) -> int:
    return int(md5(row_text(key).encode(), usedforsecurity=False).hexdigest()[:KEY_HASH_HEX], 16)


@dataclass(frozen=True, slots=True)
class Row:
    """`texts`: of the compared columns. `stamp`: another whenever the row was written anew."""

    texts: tuple[str | None, ...]
    stamp: str


@dataclass(frozen=True, slots=True)
class Order:
    """How a store orders keys. `collations` of its text columns; None: by the bytes of texts."""

    collations: Mapping[str, Collation] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a table is cut: `bounds` of ranges; or, where keys are not ordered alike, so many `buckets`.

    `one_scan`: ranges that touch are read in one scan, however many they are.
    """

    bounds: tuple[Key, ...] = ()
    buckets: int = 0
    one_scan: bool = False

    def parts(self) -> Sequence[Part]:
        return buckets(self.buckets) if self.buckets else ranges_between(self.bounds)


async def both(ours: Coroutine[Any, Any, A], theirs: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Of both sides at once. Where one fails the other is waited for, too: its session takes one statement
    at a time, and must not be closed, or given the next table's, while one is under way."""
    found = await asyncio.gather(ours, theirs, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    one, other = found
    assert not isinstance(one, BaseException)
    assert not isinstance(other, BaseException)
    return one, other


class Side(Protocol):
    """One table of one store, open. Errors are of streamer.errors."""

    @property
    def place(self) -> str:
        """For people: server and table."""

    @property
    def read_bytes(self) -> int:
        """What came over the wire, or 0 where there is none."""

    async def close(self) -> None: ...

    async def estimate(self) -> int:
        """Rows, about."""

    async def digest(self, parts: Sequence[Part]) -> list[RangeDigest]:
        """Of parts of one kind, in their order; ranges rise and touch, or lie apart."""

    async def split(self, part: KeyRange, parts: int, rows: int) -> list[KeyRange]:
        """By this side's keys, of which there are about `rows`, about evenly; one range where there is
        nothing to split."""

    async def hashes(self, parts: Sequence[Part]) -> dict[Key, RowHash]:
        """Raises Incomparable: see by_key."""

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        """Those that are there, whether a condition takes them or not."""

    async def groups(self, grouping: Grouping) -> Counts:
        """Rows by group and window, of those that the condition takes. More than GROUPS_LIMIT groups: so
        many and one, whichever they are. A side without a query language has groups.Tally."""
