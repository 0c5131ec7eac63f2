"""Keys too large for a batch: read in steps that block the server for milliseconds, one walk a key.

Owns when a key is walked (not again before its debounce is over) and what its members were compared
with. While a key is here it is read by nobody else; what touches it meanwhile has it walked once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from streamer.redis.ahead import Touched
from streamer.redis.chunks import KEPT_BYTES, SCANS, Chunks, ChunkWalk
from streamer.redis.encode import BadValue
from streamer.redis.entities import Match
from streamer.redis.reading import Reading, touch, touch_rows
from streamer.redis.reread import KeyChanged, KeyState
from streamer.redis.rows import PlainEntity
from streamer.redis.shadow import Changed, Marks
from streamer.redis.shadow_records import Place
from streamer.redis.streams import Streams

WALKS = 4  # at once: one key of millions must not hold up those of thousands
CONFIRM_MEMBERS = 1000  # asked for at once
DEBOUNCE_SHARE = 0.1  # of what the last walk took, without a `debounce` of the entity's
DEBOUNCE_LIMIT_S = 1.0

Key = tuple[int, bytes]


@dataclass(slots=True)
class _Walk:
    """A key that waits, or is walked. `touched`: since the present walk began."""

    match: Match
    seen_s: float
    due_s: float
    scan: bool
    walking: bool = False
    walked_s: float | None = None  # since when what the present walk is for was noticed
    force: bool = False  # the next walk gives every row, whether it differs or not
    forced: bool = False  # the present one does
    touched: bool = False
    done: int = 0  # walks that have ended


@dataclass(slots=True)
class _Target:
    """One entity whose exploded rows the key's members are; of a pivot's key that may be one of ours."""

    entity: PlainEntity
    place: Place
    marks: Marks
    force: bool = False


class Large:
    """`run` in a task of its own; `touch` at any time."""

    def __init__(
        self,
        reading: Reading,
        *,
        debounce_s: Callable[[str], float | None],
        clock_s: Callable[[], float],
        worked: Callable[[float], None],
    ) -> None:
        """`debounce_s`: by entity, None where the config says nothing. `worked`: something was appended
        of what was first seen then."""
        self._reading = reading
        self._debounce_s = debounce_s
        self._clock_s = clock_s
        self._worked = worked
        self._walks: dict[Key, _Walk] = {}
        self.streams = Streams(reading)
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()  # another one for each walk

    def __contains__(self, key: Key) -> bool:
        return key in self._walks

    @property
    def waiting(self) -> int:
        return len(self._walks)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of what waits, or is being read, was noticed."""
        seen = (walk.seen_s if walk.walked_s is None else walk.walked_s for walk in self._walks.values())
        return min(seen, default=None)

    def touch(self, match: Match, *, scan: bool, force: bool = False, seen_s: float | None = None) -> None:
        """Walk it: now, when it was not here, else once more after the present walk or wait.

        `force`: all its rows are given, whether they differ or not. `seen_s`: noticed earlier than now.
        """
        key = match.db, match.key
        now_s = self._clock_s()
        noticed_s = now_s if seen_s is None else seen_s
        walk = self._walks.get(key)
        if walk is None:
            self._walks[key] = _Walk(match, noticed_s, now_s, scan, force=force)
            self._wake.set()
        else:
            if walk.walking and not walk.touched:
                walk.touched, walk.seen_s = True, noticed_s
            walk.seen_s = min(walk.seen_s, noticed_s)
            walk.scan = walk.scan or scan
            walk.force = walk.force or force

    async def drained(self, given_up: Callable[[], bool]) -> None:
        """Until every key that is here now has been walked once or has left, or the caller gives up."""
        for key, walk in list(self._walks.items()):
            wanted = walk.done + (2 if walk.walking else 1)  # the present one may have begun before
            while self._walks.get(key) is walk and walk.done < wanted and not given_up():
                await self.moved()

    async def moved(self) -> None:
        """Until a walk ends, or somebody nudges."""
        await self._moved.wait()

    def nudge(self) -> None:
        """Have everybody who waits look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(WALKS):
                tasks.create_task(self._work(), name=f"large keys {number}")

    async def _work(self) -> None:
        while True:
            walk = self._next()
            now_s = self._clock_s()
            if walk is None or walk.due_s > now_s:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if walk is None else walk.due_s - now_s):
                        await self._wake.wait()
                continue
            await self._one(walk)

    def _next(self) -> _Walk | None:
        ready = [walk for walk in self._walks.values() if not walk.walking]
        return min(ready, key=lambda walk: walk.due_s, default=None)

    async def _one(self, walk: _Walk) -> None:
        key = walk.match.db, walk.match.key
        walk.walking, walk.touched = True, False
        began_s, seen_s, scan = self._clock_s(), walk.seen_s, walk.scan
        walk.walked_s = seen_s
        walk.scan = False
        walk.forced, walk.force = walk.force, False
        try:
            await self._read(walk, scan)
            if walk.match.feeds:
                await self._reading.settle(walk.match)
        except KeyChanged:
            walk.touched = True
            walk.force = walk.force or walk.forced
        took_s = self._clock_s() - began_s
        self._worked(seen_s)
        walk.done += 1
        walk.walking, walk.walked_s = False, None
        if walk.touched:
            walk.due_s = self._clock_s() + self._pause_s(walk.match, took_s)
            self._wake.set()
        else:
            del self._walks[key]
        self.nudge()

    def _pause_s(self, match: Match, took_s: float) -> float:
        given = self._debounce_s(match.entity.name) if match.entity is not None else None
        return given if given is not None else min(took_s * DEBOUNCE_SHARE, DEBOUNCE_LIMIT_S)

    async def _read(self, walk: _Walk, scan: bool) -> None:
        """As it is now: it may be small, gone or of another type by now."""
        reading = self._reading
        match = walk.match
        for _, state in await reading.keys([match], scan=scan, force=walk.forced):
            if state.type == "stream":
                await self.streams.read(match, state, scan=scan, force=walk.forced)
            elif state.type == "string":
                whole = await reading.reread.read_string(match.db, match.key)
                await self._whole(walk, whole, scan)
            else:
                await self._members(walk, state, scan)

    async def _members(self, walk: _Walk, state: KeyState, scan: bool) -> None:
        reading, match = self._reading, walk.match
        assert state.type is not None
        targets = self._targets(walk, state.type)
        entity = match.entity
        whole = entity is not None and entity.type == state.type and not entity.explodes
        if not whole and state.type in SCANS and self._room_for(match):
            await self._chunks(walk, targets, state, scan)
            return
        reading.chunks.pop((match.db, match.key), None)
        collected: dict[Any, Any] = {}
        last_us = state.server_us
        async for step in reading.reread.scan_members(match.db, match.key, state.type):
            last_us = step.server_us
            if whole:
                collected.update(step.members)
            for target in targets:
                await self._compare(match, target, step.members, state, step.server_us, scan)
            await reading.room()
        if whole:
            value: Any = collected if state.type in ("zset", "hash") else list(collected.values())
            if state.type == "set":
                value = list(collected)
            await self._whole(walk, state._replace(value=value, server_us=last_us), scan)
        for target in targets:
            await self._gone(walk, target, state, scan)

    def _room_for(self, match: Match) -> bool:
        kept = self._reading.chunks
        used = sum(chunks.bytes for chunks in kept.values())
        return (match.db, match.key) in kept or used < KEPT_BYTES

    async def _chunks(self, walk: _Walk, targets: list[_Target], state: KeyState, scan: bool) -> None:
        """The server compares: only chunks that changed since the last walk are sent."""
        reading, match = self._reading, walk.match
        key = match.db, match.key
        chunks = reading.chunks.pop(key, None)  # of no use when the walk does not come to its end
        known = chunks is not None and chunks.fits(state) and not (scan and match.feeds) and not walk.forced
        if chunks is None or not known:
            assert state.type is not None
            chunks = Chunks(state.type, state.expires_us)
        steps = ChunkWalk(reading.reread, chunks, match.db, match.key)
        cursor = b"0"
        while True:
            found = await steps.step(cursor)
            if found.changed:
                for target in targets:
                    await self._compare(match, target, found.changed, state, found.server_us, scan)
                await reading.room()
            cursor = found.after
            if cursor == b"0":
                break
            if steps.too_many:
                walk.touched = True  # the table was made anew: the next walk reads it as a whole
                walk.force = walk.force or walk.forced
                return
        missing = steps.end()
        there: set[bytes] = set()
        for target in targets:
            reading.shadow.seen(target.place)
            if not known:
                there |= await self._gone(walk, target, state, scan)
            elif missing:
                row_keys = target.entity.row_keys(target.place, missing)
                there |= await self._confirm(match, target, row_keys, state, scan)
        steps.returned(there)
        if chunks.bytes <= KEPT_BYTES:
            reading.chunks[key] = chunks

    def _targets(self, walk: _Walk, kind: str) -> list[_Target]:
        match = walk.match
        entities: list[PlainEntity] = []
        if match.entity is not None and match.entity.type == kind and match.entity.explodes:
            entities.append(match.entity)
        for feed in match.feeds:
            if feed.members is not None and feed.members.type == kind and feed.members not in entities:
                entities.append(feed.members)
        shadow = self._reading.shadow
        targets = []
        for entity in entities:
            try:
                force = walk.forced and entity is match.entity
                targets.append(_Target(entity, match.members_place(entity), shadow.begin_members(), force))
            except BadValue as error:
                self._reading.events.bad_value(error)
        return targets

    async def _compare(
        self,
        match: Match,
        target: _Target,
        members: dict[Any, Any],
        state: KeyState,
        server_us: int,
        scan: bool,
    ) -> None:
        """Members that are there: what differs is appended, and pivots' rows with it."""
        reading = self._reading
        bad: list[BadValue] = []
        rows = target.entity.member_rows(target.place, members.items(), state.expires_us, bad)
        for each in bad:
            reading.events.bad_value(each)
        async with reading.steady:
            with reading.shadow.forcing(target.force):
                changes = reading.shadow.diff_members(target.place, rows, target.marks)
            await self._append(match, target, changes, server_us, scan, rows if scan else ())

    async def _append(
        self,
        match: Match,
        target: _Target,
        changes: list[Changed],
        server_us: int,
        scan: bool,
        scanned: Iterable[bytes] = (),
    ) -> None:
        """`scanned`: rows that a scan has met, whose pivots are read whether they differ or not."""
        if changes:
            self._reading.events.rows(changes, server_us, scan=scan)
        touched: Touched = {}
        for feed in match.feeds:
            if feed.members is target.entity:
                touch(feed.pivot, target.entity, changes, touched)
                touch_rows(feed.pivot, target.entity, target.place, scanned, touched)
        if touched:
            await self._reading.pivots(touched, scan)

    async def _gone(self, walk: _Walk, target: _Target, state: KeyState, scan: bool) -> set[bytes]:
        """Rows that the walk has not met: those that Redis confirms to be gone are deleted (H21). Gives the
        members of the others."""
        reading, match = self._reading, walk.match
        assert state.type is not None
        returned: set[bytes] = set()
        for missing in reading.shadow.members_not_seen(target.place, target.marks):
            if state.type == "list":
                if walk.touched:
                    break  # its steps were of different lists; the next walk says what is gone
                async with reading.steady:
                    changes = reading.shadow.gone(target.place, missing)
                    await self._append(match, target, changes, state.server_us, scan)
                continue
            returned |= await self._confirm(match, target, missing, state, scan)
        return returned

    async def _confirm(
        self, match: Match, target: _Target, missing: list[bytes], state: KeyState, scan: bool
    ) -> set[bytes]:
        """Delete those of these rows whose members Redis says are gone; gives the other members."""
        reading = self._reading
        assert state.type is not None
        returned: set[bytes] = set()
        for at in range(0, len(missing), CONFIRM_MEMBERS):
            row_keys = missing[at : at + CONFIRM_MEMBERS]
            by_member = {target.entity.member_of(row_key): row_key for row_key in row_keys}
            step = await reading.reread.confirm_members(match.db, match.key, state.type, list(by_member))
            gone = [by_member[member] for member, value in step.members.items() if value is None]
            there = {member: value for member, value in step.members.items() if value is not None}
            if there:
                returned |= there.keys()
                if state.type == "set":
                    there = dict.fromkeys(there)
                await self._compare(match, target, there, state, step.server_us, scan)
            async with reading.steady:
                changes = reading.shadow.gone(target.place, gone)
                await self._append(match, target, changes, step.server_us, scan)
            await reading.room()
        return returned

    async def _whole(self, walk: _Walk, state: KeyState, scan: bool) -> None:
        """A key that is one row, all of it read."""
        async with self._reading.steady:
            await self._reading.one(walk.match, state, scan, walk.forced)
        await self._reading.room()
