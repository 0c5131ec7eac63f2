"""Rows of a Redis entity as its capture would publish them now: all of them, or those of some keys.

Owns how an entity is walked and a row is found again. What a key's state becomes is streamer.redis.rows's and
streamer.redis.pivot's, and how long one step may block the server is streamer.redis.reread's: the same code
that captures. A value that the entity cannot use is no row here; `passed_over` says which.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from hashlib import blake2b
from typing import Any

from orjson import loads

from consumers.reconcile.event_texts import EventTexts
from consumers.reconcile.keys import event_key
from consumers.reconcile.sides.base import Key, Row
from consumers.reconcile.sides.redis_touches import Touches
from consumers.reconcile.sides.spooled import Found
from streamer.config import RedisSource
from streamer.redis.connection import RedisConnection
from streamer.redis.encode import BadValue, key_bytes
from streamer.redis.entities import Entities, Match
from streamer.redis.pivot import PivotEntity, PivotRow
from streamer.redis.pivot_reads import read_rows
from streamer.redis.reading import PIVOT_ROWS
from streamer.redis.reread import KeyChanged, KeyState, Reread, id_of
from streamer.redis.rows import PlainEntity
from streamer.redis.scan import full

MEMBERS_AT_ONCE = 500  # asked for by name, of a large key
KEY_ATTEMPTS = 3  # of a key that becomes one of another type while it is read in steps
STAMP_BYTES = 8

Rows = dict[bytes, bytes]  # row key's JSON -> row's JSON


class EntityReader:
    """`touches`: None where a write of a key says too little of its rows."""

    def __init__(
        self,
        connection: RedisConnection,
        source: RedisSource,
        entities: Entities,
        entity: PlainEntity | PivotEntity,
        texts: EventTexts,
        kinds: Mapping[str, str],
        touches: Touches | None,
        note: Callable[[str], None],
    ) -> None:
        """`kinds`: of the compared key's columns, in their order. `note`: takes what is not compared."""
        self._connection = connection
        self._config = source.entities[entity.name]
        self._databases = source.databases_of(self._config)
        self._entities = entities
        self._entity = entity
        self._texts = texts
        self._kinds = kinds
        self._touches = touches
        self._note = note
        self._reread = Reread(connection)
        self._touched: tuple[dict[Key, int], dict[Key, int]] = {}, {}
        self._unusable: set[Key] = set()
        self._places: Mapping[Key, Sequence[tuple[int, bytes]]] = {}  # of the keys of the last `rows`
        self._unusable_rows = 0  # that a walk has met
        self._noted = False
        self.read_bytes = 0

    @property
    def place(self) -> str:
        return f"{self._entity.name} in source redis {self._connection.where}"

    def names(self) -> Sequence[str]:
        return self._texts.names

    async def all_rows(self) -> AsyncGenerator[list[Found], None]:
        self._unusable_rows = 0
        if isinstance(self._entity, PivotEntity):
            batches = self._pivots(self._entity)
        else:
            batches = self._keys(self._entity)
        async with aclosing(batches):
            async for rows in batches:
                yield self._found(rows)
        if self._unusable_rows and not self._noted:
            self._noted = True
            self._note(
                f"{self._unusable_rows:,} values that the entity cannot use: their rows are not compared"
                " (`tailrace status` says where they are)"
            )

    def _found(self, rows: Collection[bytes]) -> list[Found]:
        self.read_bytes += sum(map(len, rows))
        made = (self._texts.of(loads(row)) for row in rows)
        return [found for found in made if found is not None]

    # All keys of a plain entity

    async def _keys(self, entity: PlainEntity) -> AsyncGenerator[Collection[bytes], None]:
        globs = {db: [entity.pattern.glob] for db in self._databases}
        async with aclosing(full(self._connection, globs)) as walk:
            async for db, keys in walk:
                found = [match for key in keys if (match := self._entities.match(db, key)) is not None]
                matches = [match for match in found if match.entity is entity]
                states = await self._reread.read([(match.db, match.key) for match in matches])
                rows: list[bytes] = []
                for match, state in zip(matches, states, strict=True):
                    if _is_large(entity, state):
                        async with aclosing(self._large(entity, match, state)) as steps:
                            async for some in steps:
                                yield some.values()
                    else:
                        rows += self._rows_of(entity, match, state).values()
                yield rows

    def _rows_of(self, entity: PlainEntity, match: Match, state: KeyState) -> Rows:
        bad: list[BadValue] = []
        try:
            rows = entity.rows(match.place(), state, bad)
        except BadValue:
            # A key of another type has lost its rows; a value that cannot be used leaves its row as it was.
            self._unusable_rows += state.type == entity.type
            return {}
        self._unusable_rows += len(bad)
        return rows

    async def _large(self, entity: PlainEntity, match: Match, state: KeyState) -> AsyncGenerator[Rows, None]:
        """A key that is read in steps. One that changes its type on the way is read as far as it came."""
        try:
            place = match.place()
            if state.type == "stream":
                after = b"-"
                while entries := (await self._reread.read_stream(match.db, match.key, after)).entries:
                    after = entries[-1][0]
                    yield self._members(entity, match, entries, state)
            elif entity.explodes:
                async for step in self._reread.scan_members(match.db, match.key, entity.type):
                    yield self._members(entity, match, step.members.items(), state)
            else:
                whole = await self._whole(match, state)
                bad: list[BadValue] = []
                yield entity.rows(place, whole, bad)
        except BadValue:
            self._unusable_rows += 1
        except KeyChanged:
            return

    def _members(self, entity: PlainEntity, match: Match, members: Any, state: KeyState) -> Rows:
        bad: list[BadValue] = []
        rows = entity.member_rows(match.place(), members, state.expires_us, bad)
        self._unusable_rows += len(bad)
        return rows

    async def _whole(self, match: Match, state: KeyState) -> KeyState:
        """A large key that is one row."""
        assert state.type is not None
        if state.type == "string":
            return await self._reread.read_string(match.db, match.key)
        collected: dict[Any, Any] = {}
        async for step in self._reread.scan_members(match.db, match.key, state.type):
            collected.update(step.members)
        if state.type in ("zset", "hash"):
            return state._replace(value=collected)
        return state._replace(value=list(collected if state.type == "set" else collected.values()))

    # All rows of a pivot

    async def _pivots(self, pivot: PivotEntity) -> AsyncGenerator[Collection[bytes], None]:
        """By the ids that its keys name; one that several keys name comes several times."""
        async with aclosing(self._ids(pivot)) as walk:
            async for db, ids in walk:
                found = list(dict.fromkeys(ids))
                for at in range(0, len(found), PIVOT_ROWS):
                    wanted = [
                        row for row_id in found[at : at + PIVOT_ROWS] if (row := _row(pivot, db, row_id))
                    ]
                    self._unusable_rows += len(found[at : at + PIVOT_ROWS]) - len(wanted)
                    rows = await self._read_pivots(db, wanted)
                    self._unusable_rows += sum(isinstance(row, BadValue) for row in rows)
                    yield [row for row in rows if isinstance(row, bytes)]

    async def _ids(self, pivot: PivotEntity) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        patterns = {c.pattern.text: c.pattern for c in pivot.columns if c.fixed_key is None}
        fixed = {(c.fixed_key, c.kind) for c in pivot.columns if c.fixed_key is not None}
        for db in self._databases:
            for key, kind in sorted(fixed):
                try:
                    async for step in self._reread.scan_members(db, key, kind):
                        yield db, list(step.members)
                except KeyChanged:
                    continue
        if not patterns:
            return
        globs = {db: [pattern.glob for pattern in patterns.values()] for db in self._databases}
        async with aclosing(full(self._connection, globs)) as walk:
            async for db, keys in walk:
                parts = (pattern.match(key) for key in keys for pattern in patterns.values())
                yield db, [found[0] for found in parts if found is not None]

    async def _read_pivots(self, db: int, rows: Sequence[PivotRow]) -> list[bytes | BadValue | None]:
        if not rows:
            return []
        _, answers = await read_rows(self._connection, db, rows)
        found: list[bytes | BadValue | None] = []
        for row, answer in zip(rows, answers, strict=True):
            try:
                found.append(row.row(answer))
            except BadValue as error:
                found.append(error)
        return found

    # Rows of some keys

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        """As they are now. Keys are watched from here on."""
        self._unusable = set()
        wanted = {key: values for key in keys if (values := self._values_of(key)) is not None}
        if isinstance(self._entity, PivotEntity):
            places = {key: place for key, values in wanted.items() if (place := self._pivot_of(values))}
            await self._watch({key: [(r.db, r.key) for r in row.reads] for key, row in places.items()})
            rows = await self._pivots_of(places)
        else:
            matches = {key: match for key, values in wanted.items() if (match := self._match_of(values))}
            await self._watch({key: [(match.db, match.key)] for key, match in matches.items()})
            rows = await self._plain_of(self._entity, matches, wanted)
        found: dict[Key, Row] = {}
        for key, row in rows.items():
            made = self._texts.of(loads(row))
            if made is not None and made[0] == key:
                found[key] = Row(made[1], blake2b(row, digest_size=STAMP_BYTES).hexdigest())
        return found

    def _values_of(self, key: Key) -> list[Any] | None:
        """None: no key of Redis can be this row's."""
        values = event_key(key, self._kinds, self._entity.record)
        return None if values is None else list(values)

    def _db_of(self, values: Sequence[Any]) -> tuple[int, Sequence[Any]]:
        return (values[0], values[1:]) if self._entity.several else (self._databases[0], values)

    def _pivot_of(self, values: Sequence[Any]) -> PivotRow | None:
        assert isinstance(self._entity, PivotEntity)
        db, (row_id,) = self._db_of(values)
        cast = self._config.key.get(self._config.pivot or "", "text")
        if db not in self._databases:
            return None
        try:
            return _row(self._entity, db, key_bytes(cast, row_id))
        except ValueError:
            return None

    def _match_of(self, values: Sequence[Any]) -> Match | None:
        entity = self._entity
        assert isinstance(entity, PlainEntity)
        db, rest = self._db_of(values)
        try:
            parts = [
                key_bytes(self._config.key.get(name, "text"), value)
                for name, value in zip(entity.pattern.names, rest, strict=False)
            ]
        except ValueError:
            return None
        key = entity.pattern.key_of(parts)
        match = self._entities.match(db, key) if key is not None else None
        return match if match is not None and match.entity is entity else None

    async def _pivots_of(self, places: Mapping[Key, PivotRow]) -> dict[Key, bytes]:
        found: dict[Key, bytes] = {}
        by_db: dict[int, list[Key]] = {}
        for key, row in places.items():
            by_db.setdefault(row.place.db, []).append(key)
        for db, keys in by_db.items():
            for at in range(0, len(keys), PIVOT_ROWS):
                some = keys[at : at + PIVOT_ROWS]
                rows = await self._read_pivots(db, [places[key] for key in some])
                for key, made in zip(some, rows, strict=True):
                    if isinstance(made, bytes):
                        found[key] = made
                    elif made is not None:
                        self._unusable.add(key)
        return found

    async def _plain_of(
        self, entity: PlainEntity, matches: Mapping[Key, Match], values: Mapping[Key, Sequence[Any]]
    ) -> dict[Key, bytes]:
        by_place: dict[tuple[int, bytes], list[Key]] = {}
        for key, match in matches.items():
            by_place.setdefault((match.db, match.key), []).append(key)
        places = sorted(by_place)
        found: dict[Key, bytes] = {}
        for read in await self._reread.read(places):
            keys, state = by_place[read.db, read.key], read
            match = matches[keys[0]]
            for _ in range(KEY_ATTEMPTS):
                try:
                    found |= await self._of_key(entity, match, state, {key: values[key] for key in keys})
                    break
                except KeyChanged:
                    (state,) = await self._reread.read([(match.db, match.key)])
        return found

    async def _of_key(
        self, entity: PlainEntity, match: Match, state: KeyState, keys: Mapping[Key, Sequence[Any]]
    ) -> dict[Key, bytes]:
        """Rows of one key of Redis. Raises KeyChanged."""
        if state.type != entity.type:
            return {}
        bad: list[BadValue] = []
        try:
            place = match.place()
            if not entity.explodes:
                whole = await self._whole(match, state) if _is_large(entity, state) else state
                rows = entity.rows(place, whole, bad)
            elif _is_large(entity, state):
                rows = await self._some_members(entity, match, state, keys, bad)
            else:
                rows = entity.rows(place, state, bad)
        except BadValue:
            self._unusable |= keys.keys()
            return {}
        refused = {each.row_key for each in bad}
        found: dict[Key, bytes] = {}
        for key, values in keys.items():
            row_key = self._row_key(entity, match, values)
            if row_key in rows:
                found[key] = rows[row_key]
            elif row_key in refused:
                self._unusable.add(key)
        return found

    def _row_key(self, entity: PlainEntity, match: Match, values: Sequence[Any]) -> bytes:
        place = match.place()
        return entity.row_keys(place, [self._member(entity, values)])[0] if entity.explodes else place.head

    def _member(self, entity: PlainEntity, values: Sequence[Any]) -> Any:
        """The member, field, index or id of an exploded row, as Redis has it."""
        if entity.type == "list":
            return values[-1]
        name = next(iter(self._config.row_parts.values()))
        return key_bytes(self._config.column(name).cast or "text", values[-1])

    async def _some_members(
        self,
        entity: PlainEntity,
        match: Match,
        state: KeyState,
        keys: Mapping[Key, Sequence[Any]],
        bad: list[BadValue],
    ) -> Rows:
        rows: Rows = {}
        for some in _batches([self._member(entity, values) for values in keys.values()]):
            members = await self._members_now(entity, match, some)
            rows |= entity.member_rows(match.place(), members, state.expires_us, bad)
        return rows

    async def _members_now(
        self, entity: PlainEntity, match: Match, members: Sequence[Any]
    ) -> list[tuple[Any, Any]]:
        db, key = match.db, match.key
        if entity.type in ("list", "stream"):
            line = self._connection
            words = ("LRANGE",) if entity.type == "list" else ("XRANGE",)
            replies = await line.pipeline(
                [("SELECT", db), *((*words, key, member, member) for member in members)]
            )
            if entity.type == "list":
                pairs = zip(members, replies[1:], strict=True)
                return [(index, found[0]) for index, found in pairs if found]
            entries = [entry for found in replies[1:] for entry in found]
            return [(at, list(zip(flat[::2], flat[1::2], strict=True))) for at, flat in entries]
        step = await self._reread.confirm_members(db, key, entity.type, members)
        there = [(member, value) for member, value in step.members.items() if value is not None]
        return [(member, None) for member, _ in there] if entity.type == "set" else there

    def entry_of(self, key: Key) -> tuple[Match, bytes] | None:
        """(the stream, the entry's id) of a row of a stream; None: no stream can have it."""
        values = self._values_of(key)
        match = None if values is None else self._match_of(values)
        if values is None or match is None:
            return None
        assert isinstance(self._entity, PlainEntity)
        try:
            entry: bytes = self._member(self._entity, values)
            id_of(entry)
        except ValueError:
            return None
        return match, entry

    def passed_over(self) -> Collection[Key]:
        """Of the keys of the last `rows`, those whose values the entity cannot use."""
        return self._unusable

    # What was written meanwhile

    async def _watch(self, keys: Mapping[Key, Sequence[tuple[int, bytes]]]) -> None:
        if self._touches is None:
            return
        self._places = keys
        await self._touches.watch([place for places in keys.values() for place in places])
        self._touched = self._touched[1], self._counted(keys)

    def _counted(self, keys: Mapping[Key, Sequence[tuple[int, bytes]]]) -> dict[Key, int]:
        assert self._touches is not None
        count = self._touches.count
        return {key: sum(count(place) for place in places) for key, places in keys.items()}

    async def moved(self, keys: Sequence[Key]) -> Collection[Key]:
        """Those that were written since `rows` was asked the last time but one."""
        if self._touches is None:
            return ()
        await self._touches.settled()
        before, now = self._touched[0], self._counted(self._places)
        return {key for key in keys if key in now and now[key] != before.get(key, now[key])}


def _is_large(entity: PlainEntity, state: KeyState) -> bool:
    return state.value is None and state.type is not None and state.type == entity.type


def _row(pivot: PivotEntity, db: int, row_id: bytes) -> PivotRow | None:
    try:
        return pivot.row(db, row_id)
    except BadValue:
        return None


def _batches(members: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(members), MEMBERS_AT_ONCE):
        yield members[at : at + MEMBERS_AT_ONCE]
