"""From touched keys to events: read again, made into rows, compared with the shadow, appended.

Owns the order: one batch is read after the other, each by one script, and applied in the same order;
so a key is never in two reads at once and its later state never gets the lower version (H21). What
differs is staged in the shadow and appended to the publisher before anything else can run, or under
`steady` where a pivot's row has to be read in between; a flush takes `steady` too, so it takes both or
neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import groupby

from streamer.redis.ahead import Ahead, Touched
from streamer.redis.chunks import Chunks
from streamer.redis.connection import RedisConnection
from streamer.redis.encode import BadValue
from streamer.redis.entities import Entities, Match
from streamer.redis.pivot import PivotEntity
from streamer.redis.pivot_reads import read_rows
from streamer.redis.publish import NO_SWEEP, Events
from streamer.redis.reread import KeyState, Reread, StreamInfo
from streamer.redis.rows import PlainEntity
from streamer.redis.shadow import Changed, Shadow
from streamer.redis.shadow_records import Place

UNSETTLED_LIMIT = 2_000  # of a pivot; each is read again at a change of a key that its rows share
PIVOT_ROWS = 200  # read at one moment of the server, a few values each: well below 5 ms

Sweep = Mapping[str, int]  # entity -> its rows that a reverse pass found gone


class Steady(asyncio.Lock):
    """Held from a comparison with the shadow until all that follows from it is appended.

    `torn`: somebody was stopped in between; what is staged then must never be flushed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.torn = False

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.torn = self.torn or kind is not None
        self.release()


class Reading:
    """One for a session; several tasks may use it."""

    def __init__(
        self,
        connection: RedisConnection,
        entities: Entities,
        shadow: Shadow,
        events: Events,
        *,
        room: Callable[[], Awaitable[None]],
        overflow: Callable[[str], None],
    ) -> None:
        """`room` waits until Kafka has taken enough of what was appended. `overflow`: as Ahead's."""
        self.reread = Reread(connection)
        self.entities = entities
        self.shadow = shadow
        self.events = events
        self.room = room
        self.steady = Steady()
        self.keys_read = 0
        self.chunks: dict[tuple[int, bytes], Chunks] = {}  # of large keys; void once a key is read as a whole
        self._ahead = Ahead(entities, shadow, overflow=overflow)
        # Rows of pivots that stay as they were published, since a value of theirs cannot be used: by pivot
        # and database. What mends them may be a change of a key that has no members of theirs any more.
        self._unsettled: dict[tuple[PivotEntity, int], dict[bytes, None]] = {}
        self._connection = connection
        self._reading = asyncio.Lock()
        self._applying = asyncio.Lock()

    async def keys(
        self, matches: Sequence[Match], *, scan: bool, sweep: Sweep = NO_SWEEP, force: bool = False
    ) -> list[tuple[Match, KeyState]]:
        """Read and publish these keys; gives those that are to be read in steps instead.

        `force`: all their rows, whether they differ or not.
        """
        async with self._reading:
            states = await self.reread.read([(match.db, match.key) for match in matches])
            self.keys_read += len(states)
            await self._applying.acquire()  # before the next read ends: what was read first is applied first
        try:
            await asyncio.sleep(0)  # the next batch is asked for while this one is worked on
            async with self.steady:
                large = await self._apply(matches, states, scan, sweep, force)
        finally:
            self._applying.release()
        await self.room()
        return large

    async def gone(self, matches: Sequence[Match]) -> list[bool]:
        """Whether each of these keys is gone, as the script decides; nothing is published."""
        states = await self.reread.read([(match.db, match.key) for match in matches])
        self.keys_read += len(states)
        return [state.type is None for state in states]

    async def pivot_rows(
        self, places: Iterable[Place], *, sweep: Sweep = NO_SWEEP, force: bool = False
    ) -> None:
        """Read and publish these rows of pivots. `force`: whether they differ or not."""
        touched: Touched = {}
        for place in places:
            entity = self.entities.entity(place.entity)
            assert isinstance(entity, PivotEntity)
            touched[entity, place.db, place.key] = None
        async with self.steady:
            await self.pivots(touched, force, sweep, force)
        await self.room()

    async def gone_rows(self, places: Sequence[Place]) -> list[bool]:
        """Whether each of these rows of pivots is gone; nothing is published."""
        gone = dict.fromkeys(places, False)
        for db, group in groupby(sorted(places, key=lambda place: place.db), key=lambda place: place.db):
            rows = []
            for place in group:
                entity = self.entities.entity(place.entity)
                assert isinstance(entity, PivotEntity)
                rows.append(entity.row(db, place.key))
            for at in range(0, len(rows), PIVOT_ROWS):
                chunk = rows[at : at + PIVOT_ROWS]
                _, answers = await read_rows(self._connection, db, chunk)
                for row, answer in zip(chunk, answers, strict=True):
                    try:
                        gone[row.place] = row.row(answer) is None
                    except BadValue:
                        gone[row.place] = False
        return [gone[place] for place in places]

    async def one(self, match: Match, state: KeyState, scan: bool, force: bool = False) -> None:
        """A key that was read by itself. The caller holds `steady`, and is the only one to read the key."""
        await self._apply([match], [state], scan, NO_SWEEP, force)

    async def settle(self, match: Match) -> None:
        """A key has been compared in steps: read the pivots' rows that were read ahead of it."""
        touched = self._ahead.take(match.db, match.key)
        for feed in match.feeds:
            if feed.row_id is None:
                for row_id in self._unsettled.get((feed.pivot, match.db), ()):
                    touched[feed.pivot, match.db, row_id] = None
        if touched:
            async with self.steady:
                await self.pivots(touched, False)

    async def stream(self, match: Match) -> StreamInfo | None:
        """What this stream says of itself; None: there is none."""
        return await self.reread.stream_info(match.db, match.key)

    # A batch

    async def _apply(
        self,
        matches: Sequence[Match],
        states: Sequence[KeyState],
        scan: bool,
        sweep: Sweep,
        force: bool,
    ) -> list[tuple[Match, KeyState]]:
        large: list[tuple[Match, KeyState]] = []
        singles: list[tuple[Place, bytes | None]] = []
        changes: list[Changed] = []
        touched: Touched = {}
        for match, state in zip(matches, states, strict=True):
            entity = match.entity
            if state.value is None and state.type is not None and in_steps(match, state.type):
                large.append((match, state))
                continue
            self.chunks.pop((match.db, match.key), None)
            with self.shadow.forcing(force):
                found = self._rows(match, entity, state, singles) if entity is not None else []
            changes += found
            if match.feeds:
                changes += self._feeds(match, state, found, touched, scan)
                touched.update(self._ahead.take(match.db, match.key))
        with self.shadow.forcing(force):
            changes += self.shadow.diff_keys(singles)
        if changes:
            self.events.rows(changes, states[-1].server_us, scan=scan, sweep=sweep)
        if touched:
            await self.pivots(touched, scan, sweep)
        return large

    def _rows(
        self,
        match: Match,
        entity: PlainEntity,
        state: KeyState,
        singles: list[tuple[Place, bytes | None]],
    ) -> list[Changed]:
        """What differs of a key's rows; a key of one row is put off, to be compared with many others."""
        bad: list[BadValue] = []
        try:
            place = match.place()
        except BadValue as error:
            self.events.bad_value(error)
            return []
        try:
            rows = entity.rows(place, state, bad)
        except BadValue as error:
            self.events.bad_value(error)
            if state.type == entity.type:
                return self.shadow.diff(place, {}, [place.head])  # stays as it was published
            rows = {}  # a key of another type holds no row of this entity
        for each in bad:
            self.events.bad_value(each)
        if place.single:
            singles.append((place, rows.get(place.head)))
            return []
        return self.shadow.diff(place, rows, [b.row_key for b in bad if b.row_key is not None])

    def _feeds(
        self, match: Match, state: KeyState, found: Sequence[Changed], touched: Touched, scan: bool
    ) -> list[Changed]:
        """Note the pivots' rows that the key touches; what of its members is only kept in the shadow.

        A scan takes nothing for settled: it touches the rows of all members.
        """
        beside: dict[int, list[Changed]] = {}
        for feed in match.feeds:
            if feed.row_id is not None:
                touched[feed.pivot, match.db, feed.row_id] = None
                continue
            members = feed.members
            assert members is not None
            changed = found
            if members is not match.entity:
                if id(members) not in beside:
                    place = match.members_place(members)
                    rows = members.rows(place, state, []) if state.type == members.type else {}
                    beside[id(members)] = self.shadow.diff(place, rows)
                changed = beside[id(members)]
            touch(feed.pivot, members, changed, touched)
            for row_id in self._unsettled.get((feed.pivot, match.db), ()):
                touched[feed.pivot, match.db, row_id] = None
            if scan and state.type == members.type:
                place = match.members_place(members)
                touch_rows(feed.pivot, members, place, members.rows(place, state, []), touched)
        return [change for changed in beside.values() for change in changed]

    async def pivots(
        self, touched: Touched, scan: bool, sweep: Sweep = NO_SWEEP, force: bool = False
    ) -> None:
        """Read these rows and append what differs. The caller holds `steady`."""
        by_db = sorted(touched, key=lambda row: row[1])
        for db, group in groupby(by_db, key=lambda row: row[1]):
            rows = []
            for pivot, _, row_id in group:
                try:
                    rows.append(pivot.row(db, row_id))
                except BadValue as error:
                    self.events.bad_value(error)
            for at in range(0, len(rows), PIVOT_ROWS):
                chunk = rows[at : at + PIVOT_ROWS]
                server_us, answers = await read_rows(self._connection, db, chunk)
                self._ahead.note(chunk, answers)
                items: list[tuple[Place, bytes | None]] = []
                for row, answer in zip(chunk, answers, strict=True):
                    unsettled = self._unsettled.setdefault((row.entity, db), {})
                    try:
                        items.append((row.place, row.row(answer)))
                        unsettled.pop(row.place.key, None)
                    except BadValue as error:
                        if len(unsettled) < UNSETTLED_LIMIT:
                            unsettled[row.place.key] = None
                        self.events.bad_value(error)
                        self.shadow.diff(row.place, {}, [row.place.head])
                with self.shadow.forcing(force):
                    changes = self.shadow.diff_keys(items)
                if changes:
                    self.events.rows(changes, server_us, scan=scan, sweep=sweep)


def touch(pivot: PivotEntity, members: PlainEntity, changed: Iterable[Changed], touched: Touched) -> None:
    """Note the pivot's rows whose id is a member that changed."""
    for change in changed:
        touched[pivot, change.place.db, members.member_of(change.row_key)] = None


def touch_rows(
    pivot: PivotEntity, members: PlainEntity, place: Place, row_keys: Iterable[bytes], touched: Touched
) -> None:
    """Note the pivot's rows of these members, changed or not."""
    for row_key in row_keys:
        touched[pivot, place.db, members.member_of(row_key)] = None


def in_steps(match: Match, kind: str) -> bool:
    """Whether a key of this type, whose value did not come with its state, is read in steps."""
    if match.entity is not None and match.entity.type == kind:
        return True
    return any(feed.members is not None and feed.members.type == kind for feed in match.feeds)
