"""Which keys two sides may not agree on: digests of parts, unequal ones split, then hashes of their rows.

Pure, over the Protocol Side. What it finds are suspects: the sides are read at two moments, and only the
fence tells what was in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from consumers.reconcile.digest import RangeDigest
from consumers.reconcile.mapping import Extras
from consumers.reconcile.sides.base import Bucket, Key, Part, Side, both

SPLIT = 32  # parts of an unequal part: 5,000 rows become some 150
HASHES_ROWS = 2_000  # of a part whose rows are listed: a hundred KB on the way, and as many Python objects
SPLIT_PARTS = 4  # unequal parts that are split for one call: 128 smaller ones
LISTED_ROWS = 100_000  # of a call for buckets, as each is a scan of the table
SUSPECTS_LIMIT = 100_000  # of a table: kept in memory, and each is read three times


@dataclass(slots=True)
class Found:
    """Of some parts. `cut`: more suspects than are kept; the rest was not looked at. `strangers`: suspects
    that the target alone has, where it may keep rows."""

    source_rows: int = 0
    target_rows: int = 0
    suspects: set[Key] = field(default_factory=set)
    cut: bool = False
    strangers: set[Key] = field(default_factory=set)
    keeps_extra: bool = False
    extras: Extras | None = None
    lets_go: bool = False


@dataclass(frozen=True, slots=True)
class _Unequal:
    part: Part
    source: RangeDigest
    target: RangeDigest

    @property
    def rows(self) -> int:
        return max(self.source.count, self.target.count)


async def compare(
    source: Side,
    target: Side,
    parts: Sequence[Part],
    *,
    room: int = SUSPECTS_LIMIT,
    keeps_extra: bool = False,
    extras: Extras | None = None,
    lets_go: bool = False,
) -> Found:
    """`parts` have no row in common. `room`: how many suspects there may be. `keeps_extra`: what the target
    alone has is no suspect, unless `extras` proves it one; `lets_go`: nor what the source alone has."""
    found = Found(keeps_extra=keeps_extra, extras=extras, lets_go=lets_go)
    unequal, rows = await _digests(source, target, parts)
    found.source_rows, found.target_rows = rows
    levels = [unequal]  # depth first: what differs everywhere is given up early
    while levels and not found.cut:
        level = levels.pop()
        await _list(source, target, [each for each in level if each.rows <= HASHES_ROWS], found, room)
        large = [each for each in level if each.rows > HASHES_ROWS]
        if not large or found.cut:
            continue
        step = len(large) if isinstance(large[0].part, Bucket) else SPLIT_PARTS
        now, later = large[:step], large[step:]
        smaller: list[Part] = []
        for each in now:
            parts = await _split(source, target, each)
            if len(parts) > 1:
                smaller += parts
            else:
                await _list(source, target, [each], found, room)
        levels += [later] if later else []
        levels += [(await _digests(source, target, smaller))[0]] if smaller else []
    if extras is not None:
        found.strangers = set(await extras.strangers())
        found.suspects |= found.strangers
    return found


async def _digests(
    source: Side, target: Side, parts: Sequence[Part]
) -> tuple[list[_Unequal], tuple[int, int]]:
    ours, theirs = await both(source.digest(parts), target.digest(parts))
    pairs = zip(parts, ours, theirs, strict=True)
    unequal = [_Unequal(part, one, other) for part, one, other in pairs if one != other]
    return unequal, (sum(one.count for one in ours), sum(other.count for other in theirs))


async def _split(source: Side, target: Side, unequal: _Unequal) -> Sequence[Part]:
    """By the keys of the side that has more of them: of the other there may be none."""
    if isinstance(unequal.part, Bucket):
        return unequal.part.split(SPLIT)
    side = source if unequal.source.count >= unequal.target.count else target
    return await side.split(unequal.part, SPLIT, unequal.rows)


async def _list(source: Side, target: Side, unequal: Sequence[_Unequal], found: Found, room: int) -> None:
    for some in _of_rows(unequal):
        if len(found.suspects) >= room:
            found.cut = True
            return
        parts = [each.part for each in some]
        ours, theirs = await both(source.hashes(parts), target.hashes(parts))
        keys = ours.keys() | theirs.keys()
        if found.keeps_extra:
            if found.extras is not None:
                found.extras.add(keys - ours.keys())
            keys &= ours.keys()
        if found.lets_go:
            keys &= theirs.keys()
        found.suspects |= {key for key in keys if ours.get(key) != theirs.get(key)}


def _of_rows(unequal: Sequence[_Unequal]) -> Iterator[list[_Unequal]]:
    """Of up to so many rows together."""
    limit = LISTED_ROWS if unequal and isinstance(unequal[0].part, Bucket) else HASHES_ROWS
    some: list[_Unequal] = []
    rows = 0
    for each in unequal:
        if some and rows + each.rows > limit:
            yield some
            some, rows = [], 0
        some.append(each)
        rows += each.rows
    if some:
        yield some
