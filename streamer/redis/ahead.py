"""Rows of pivots that were read later than the members that they come from.

A sorted set or hash that all rows share is compared with the shadow, and only rows whose members differ
are read. A row is read later than that, or because another of its keys changed: so it may show a member
that came after the comparison. If the member is gone again at the next one, nothing differs, and the
row would stay for good. So whoever reads a row notes here where it does not agree with the shadow; the
shared key has been changed since it was compared, is notified of that, and when it is read again these
rows are read too. Pure but for the shadow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamer.redis.entities import Entities
from streamer.redis.pivot import Answer, PivotEntity, PivotRow
from streamer.redis.rows import PlainEntity
from streamer.redis.shadow import Shadow
from streamer.redis.shadow_records import Place

# Rows that wait for their shared key, about 30 MB: a scan that reads so many before the key is read is
# cheaper to repeat than to remember.
ROWS_LIMIT = 100_000

Touched = dict[tuple[PivotEntity, int, bytes], None]  # rows of pivots: entity, database, id; in order


class Ahead:
    """`overflow` is told a sentence when rows had to be forgotten; all must be read again then."""

    def __init__(self, entities: Entities, shadow: Shadow, *, overflow: Callable[[str], None]) -> None:
        self._entities = entities
        self._shadow = shadow
        self._overflow = overflow
        self._rows: dict[tuple[int, bytes], Touched] = {}
        self._count = 0
        self._shared: dict[tuple[PivotEntity, int, bytes, str], tuple[PlainEntity, Place] | None] = {}

    def note(self, rows: Sequence[PivotRow], answers: Sequence[Sequence[Answer]]) -> None:
        """What was read of some rows just now."""
        members: dict[tuple[PlainEntity, Place], dict[bytes, bytes | None]] = {}
        readers: dict[tuple[PlainEntity, Place, bytes], list[PivotRow]] = {}
        for row, values in zip(rows, answers, strict=True):
            for read, answer in zip(row.reads, values, strict=True):
                shared = self._members(row.entity, read.db, read.key, read.kind)
                if shared is None:
                    continue
                entity, place = shared
                there = answer is not None and not isinstance(answer, BaseException)
                row_key, made = entity.member_row(place, read.field, answer if there else _ANY[read.kind])
                members.setdefault(shared, {})[row_key] = made if there else None
                readers.setdefault((entity, place, row_key), []).append(row)
        for (entity, place), found in members.items():
            for row_key in self._shadow.others(place, found):
                for row in readers[entity, place, row_key]:
                    self._add(place, row)

    def take(self, db: int, key: bytes) -> Touched:
        """The rows that wait for this key, which has just been compared; they wait no more."""
        rows = self._rows.pop((db, key), {})
        self._count -= len(rows)
        return rows

    def _add(self, place: Place, row: PivotRow) -> None:
        waiting = self._rows.setdefault((place.db, place.key), {})
        name = row.entity, row.place.db, row.place.key
        if name in waiting:
            return
        waiting[name] = None
        self._count += 1
        if self._count > ROWS_LIMIT:
            self._rows.clear()
            self._count = 0
            self._overflow(f"more than {ROWS_LIMIT} rows of pivots waited for the keys that they share")

    def _members(
        self, pivot: PivotEntity, db: int, key: bytes, kind: str
    ) -> tuple[PlainEntity, Place] | None:
        """How the shadow keeps the members of a key that all rows share; None: it is one row's own key."""
        if not any(column.fixed_key == key and column.kind == kind for column in pivot.columns):
            return None
        name = pivot, db, key, kind
        if name not in self._shared:
            self._shared[name] = None
            match = self._entities.match(db, key)
            for feed in match.feeds if match is not None else ():
                if feed.pivot is pivot and feed.members is not None and feed.members.type == kind:
                    assert match is not None
                    self._shared[name] = feed.members, match.members_place(feed.members)
        return self._shared[name]


_ANY: dict[str, Any] = {"zset": 0, "hash": b""}  # of a member that is gone only the row's key is wanted
