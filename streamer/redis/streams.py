"""Streams: which entries are read next, and which published rows are of a stream that is no more.

Owns the last id that was read of each stream. A stream is a log: entries that were trimmed from its start,
or deleted one by one, stay as they were published. Those of a stream that is gone go with it, also when
another one is under the key by then. A notification tells that (`forget`); where none came, XINFO STREAM
does, asked after all entries were read, in a full scan and when none is known yet. Of the other rows those
are gone

    whose id > last-generated-id                 the stream has never given it
    whose id > the first entry's, and
      > max-deleted-entry-id                     not trimmed, as it is not in front, and not deleted
    that are more than entries-added - length    more than the stream has lost: the lowest of them, or all if
                                                 no entry was published before

What was read before tells nothing: an entry of the other stream is published as soon as it is notified, and
that may be long before the scan. Redis before 7 tells the last id only. Rows that none of this fits are kept,
as trimmed ones.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappush, heappushpop
from typing import NamedTuple

from streamer.redis.encode import BadValue
from streamer.redis.entities import Match
from streamer.redis.publish import NO_SWEEP
from streamer.redis.reading import Reading
from streamer.redis.reread import KeyState, StreamStep, id_of
from streamer.redis.rows import PlainEntity
from streamer.redis.shadow import Marks
from streamer.redis.shadow_records import Place

STREAMS_LIMIT = 100_000  # whose last id is remembered; others are read from their start
CONFIRM_ENTRIES = 500  # asked for at once, by a command each
LOWEST_LIMIT = 100_000  # ids kept in memory to find the lowest; what is beyond goes at the next full scan
_FROM_START = b"-"

Key = tuple[int, bytes]
Id = tuple[int, int]
_BELOW_ALL: Id = (-1, 0)


class _Known(NamedTuple):
    """Of a stream that was read. `remade`: its key has had another value since."""

    last_id: bytes
    expires_us: int | None
    remade: bool = False


@dataclass(slots=True)
class _Walk:
    """One reading: what it has met, and what was said of the key meanwhile."""

    entity: PlainEntity
    place: Place
    marks: Marks
    state: KeyState
    scan: bool
    force: bool
    again: bool = False
    remade: bool = False
    first: Id | None = None
    unusable: int = 0  # entries whose rows were published when the entity could use them
    published: bool = False  # one of them was published before


class Streams:
    """One for a session. A stream is read by one task at a time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._known: OrderedDict[Key, _Known] = OrderedDict()
        self._walks: dict[Key, _Walk] = {}

    def forget(self, db: int, key: bytes, remade: bool) -> None:
        """If this is a stream, the next reading begins at its start. `remade`: nothing of it was kept."""
        at = db, key
        walk = self._walks.get(at)
        if walk is not None:
            walk.again, walk.remade = True, walk.remade or remade
        known = self._known.get(at)
        if known is not None:
            if remade:
                self._known[at] = known._replace(remade=True)
            elif not known.remade:
                del self._known[at]

    def doubt(self) -> None:
        """A full scan begins, as something may have been missed: no stream is known any more. One that was
        made again may be read by its notification alone, where SCAN does not meet it."""
        self._known = OrderedDict((at, known) for at, known in self._known.items() if known.remade)
        for walk in self._walks.values():
            walk.again = True

    async def read(self, match: Match, state: KeyState, *, scan: bool, force: bool) -> None:
        """Publish the entries behind the last one known; in a scan, all. Raises KeyChanged."""
        entity, at = match.entity, (match.db, match.key)
        assert entity is not None
        try:
            place = match.place()
        except BadValue as error:
            self._reading.events.bad_value(error)
            return
        known = self._known.get(at)
        walk = _Walk(entity, place, self._reading.shadow.begin_members(), state, scan, force)
        self._walks[at] = walk
        try:
            last_id = await self._walk(match, walk, known)
        finally:
            del self._walks[at]
            if walk.remade:
                self._remember(at, _Known(_FROM_START, None, remade=True))
        if not walk.again:
            self._remember(at, _Known(last_id, state.expires_us))
        elif at in self._known and not self._known[at].remade:
            del self._known[at]

    def _remember(self, at: Key, known: _Known) -> None:
        self._known[at] = known
        self._known.move_to_end(at)
        if len(self._known) > STREAMS_LIMIT:
            self._known.popitem(last=False)

    async def _walk(self, match: Match, walk: _Walk, known: _Known | None) -> bytes:
        """Gives the last id that was read."""
        remade = known is not None and known.remade
        after, check = _FROM_START, walk.scan or remade or known is None
        if known is not None and not check and known.last_id != _FROM_START:
            info = await self._reading.stream(match)
            check = info is not None and info.last_id < id_of(known.last_id)  # its ids began anew
            if not check and not (walk.entity.expires and known.expires_us != walk.state.expires_us):
                after = known.last_id
        while (step := await self._reading.reread.read_stream(match.db, match.key, after)).entries:
            after = step.entries[-1][0]
            await self._entries(walk, step)
        if check and not walk.again:
            await self._others(match, walk, remade=remade)
        return after

    async def _entries(self, walk: _Walk, step: StreamStep) -> None:
        reading = self._reading
        bad: list[BadValue] = []
        rows = walk.entity.member_rows(walk.place, step.entries, walk.state.expires_us, bad)
        for each in bad:
            reading.events.bad_value(each)
        walk.first = walk.first or id_of(step.entries[0][0])
        walk.unusable += sum(
            each.row_key is not None and reading.shadow.has(walk.place, each.row_key) for each in bad
        )
        async with reading.steady:
            with reading.shadow.forcing(walk.force):
                changes = reading.shadow.diff_members(walk.place, rows, walk.marks)
            walk.published |= len(changes) < len(rows) or any(change.was_there for change in changes)
            if changes:
                reading.events.rows(changes, step.server_us, scan=walk.scan)
        await reading.room()

    # Rows that were published and are no entries now

    async def _others(self, match: Match, walk: _Walk, *, remade: bool) -> None:
        """Delete those that are of another stream."""
        count = 0
        for row_keys in self._not_met(walk):
            count += len(row_keys)
            await asyncio.sleep(0)
        info = await self._reading.stream(match) if count else None
        if info is None:
            return
        spare = 0 if info.lost is None else count - walk.unusable - info.lost
        above, lowest = info.bound(walk.first), _BELOW_ALL
        if remade or (spare > 0 and not walk.published):
            above = _BELOW_ALL
        elif spare > 0:
            lowest = await self._lowest(walk, above, spare)

        def is_gone(entry: Id) -> bool:
            return entry > above or entry <= lowest

        gone = 0
        for row_keys in self._not_met(walk, is_gone):
            gone += len(row_keys)
            await asyncio.sleep(0)
        if gone:
            sweep = {walk.entity.name: gone} if walk.scan or not remade else NO_SWEEP
            for row_keys in self._not_met(walk, is_gone):
                for at in range(0, len(row_keys), CONFIRM_ENTRIES):
                    await self._delete(match, walk, row_keys[at : at + CONFIRM_ENTRIES], sweep)

    async def _lowest(self, walk: _Walk, above: Id, spare: int) -> Id:
        """So many rows are of another stream: those above the id, and the oldest. Gives the last of these."""
        lowest: list[Id] = []  # a heap of negative ids: its first is the highest
        limit, member_of = min(spare, LOWEST_LIMIT), walk.entity.member_of
        for row_keys in self._not_met(walk):
            for milliseconds, sequence in (id_of(member_of(row_key)) for row_key in row_keys):
                if (milliseconds, sequence) > above:
                    spare -= 1
                elif len(lowest) < limit:
                    heappush(lowest, (-milliseconds, -sequence))
                else:
                    heappushpop(lowest, (-milliseconds, -sequence))
            await asyncio.sleep(0)
        if spare <= 0 or not lowest:
            return _BELOW_ALL
        milliseconds, sequence = sorted(lowest, reverse=True)[: min(spare, limit)][-1]
        return -milliseconds, -sequence

    def _not_met(self, walk: _Walk, chosen: Callable[[Id], bool] | None = None) -> Iterator[list[bytes]]:
        """Keys of rows that this reading has not met, of the ids chosen."""
        member_of = walk.entity.member_of
        for row_keys in self._reading.shadow.members_not_seen(walk.place, walk.marks):
            if chosen is None:
                yield row_keys
            elif some := [row_key for row_key in row_keys if chosen(id_of(member_of(row_key)))]:
                yield some

    async def _delete(
        self, match: Match, walk: _Walk, row_keys: list[bytes], sweep: Mapping[str, int]
    ) -> None:
        """Those whose entries are not there: one that is may have come, or be of no use to its entity."""
        reading, ids = self._reading, [walk.entity.member_of(row_key) for row_key in row_keys]
        server_us, there = await reading.reread.confirm_entries(match.db, match.key, ids)
        gone = [row_key for row_key, one in zip(row_keys, ids, strict=True) if one not in there]
        async with reading.steady:
            changes = reading.shadow.gone(walk.place, gone)
            if changes:
                reading.events.rows(changes, server_us, scan=walk.scan, sweep=sweep)
        await reading.room()
