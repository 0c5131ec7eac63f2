"""Tables of a Postgres target that are rebuilt beside the live ones: what is noted of them, and the exchange.

    rebuilds       (flow, schema, new name): which table, the oid of the one beside, how it was asked for;
                   `swapped` once the names are exchanged, in the transaction that does so
    rebuild_keys   (flow, topic, partition, key): keys whose row is taken from the live table in the end, as
                   they are parked there, or as the table beside refused them

While it is built, the table beside has checkpoints of its own, under a flow name that no config can have.
At the exchange it is exactly where the live one is, so that the live one's checkpoints, tombstones, parked
keys and floors hold for it as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.fold import BOTTOM, Version
from consumers.targets import postgres_beside as beside
from consumers.targets import postgres_columns as had
from consumers.targets import postgres_state as state
from consumers.targets.postgres_arrays import plain
from consumers.targets.postgres_beside import Live
from consumers.targets.postgres_catalog import quote
from consumers.targets.postgres_errors import unavailable
from consumers.targets.postgres_exchange import OID, Exchange, Names, number
from streamer.config import PostgresTarget
from streamer.errors import ConfigError
from streamer.postgres.connection import session_statements

BUSY_TRIES = 3  # ... and so often all of it, PAUSE_S apart
HOLD_LIMIT = "30s"  # a session that is cut off while it holds apply up

_DDL = (
    """CREATE TABLE IF NOT EXISTS _tailrace.rebuilds (
        flow text, schema_name text, into_name text, table_name text NOT NULL, into_oid bigint NOT NULL,
        old_name text NOT NULL, settings text NOT NULL, asked_by text NOT NULL,
        began timestamptz NOT NULL DEFAULT now(), swapped timestamptz,
        PRIMARY KEY (flow, schema_name, into_name))""",
    """CREATE TABLE IF NOT EXISTS _tailrace.rebuild_keys (
        flow text, topic text, partition int, key_hash uuid, key bytea NOT NULL,
        PRIMARY KEY (flow, topic, partition, key_hash))""",
)
_KNOWN = """SELECT table_name, into_oid, old_name, settings,
to_char(swapped AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM _tailrace.rebuilds
WHERE (flow, schema_name, into_name) = ($1, $2, $3)"""
_NOTE = """INSERT INTO _tailrace.rebuilds
(flow, schema_name, into_name, table_name, into_oid, old_name, settings, asked_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"""
# A process that is killed must not hold apply up until its statement is done.
_CHECK_CLIENT = """SELECT set_config(name, '1s', false) FROM pg_settings
WHERE name = 'client_connection_check_interval'"""
_AGAIN = "DELETE FROM _tailrace.rebuilds WHERE (flow, schema_name, into_name) = ($1, $2, $3)"
_BEGIN = """INSERT INTO _tailrace.checkpoints (flow, topic, partition, next_offset)
SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[])"""
_STANDS = """SELECT topic, partition, next_offset FROM _tailrace.checkpoints
WHERE flow = $1 AND topic = ANY ($2::text[]) ORDER BY 1, 2 FOR UPDATE"""
_FLOOR = "SELECT epoch, lsn, ordinal FROM _tailrace.floors WHERE schema_name = $1 AND table_name = $2"
_LEAVE_OUT = "INSERT INTO _tailrace.rebuild_keys VALUES ($1, $2, $3, $4::uuid, $5) ON CONFLICT DO NOTHING"
_LEFT_OUT = "SELECT DISTINCT key FROM _tailrace.rebuild_keys WHERE flow = $1 ORDER BY 1"
_FORGET = (
    *(
        f"DELETE FROM _tailrace.{table} WHERE flow = $1"
        for table in ("checkpoints", "tombstones", "needs_reread", "parked", "deleted", "rebuild_keys")
    ),
)


@dataclass(frozen=True, slots=True)
class Known:
    live: str
    oid: int
    old: str
    settings: str
    swapped: str | None  # when, UTC


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """Of the target; `source`: its name in a key."""

    name: str
    source: str
    type: str


class Rebuilds:
    """One session, for one rebuild. `async with`; raises TargetUnavailable of everything that fails there."""

    def __init__(self, settings: PostgresTarget, names: Names, place: str) -> None:
        self._url = settings.url.get_secret_value()
        self._names = names
        self._place = place
        self._connection: state.Connection | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Rebuilds]:
        """The only one of its kind: raises ConfigError where another process is at it."""
        async with self._errors():
            self._connection = await AsyncConnection.connect(
                self._url,
                autocommit=True,
                cursor_factory=AsyncRawCursor,
                application_name=f"tailrace replay {self._names.of}",
            )
        try:
            async with self._errors():
                await self._begin()
            yield self
        finally:
            await self._connection.close()

    async def _begin(self) -> None:
        names, connection = self._names, self.connection
        settings = {"search_path": "pg_catalog", "idle_in_transaction_session_timeout": HOLD_LIMIT}
        version = connection.info.server_version
        await connection.execute(session_statements(version, **settings), prepare=False)
        await self._rows(_CHECK_CLIENT)
        lock = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
        ((alone,),) = await self._rows(lock, f"{names.flow}")
        if not alone:
            raise ConfigError(
                f"another process rebuilds {names.schema}.{names.into} now",
                where=self._place,
                fix="wait for it, or stop it: this command goes on where it was",
            )
        ((there,),) = await self._rows("SELECT to_regclass('_tailrace.rebuild_keys') IS NOT NULL")
        if not there:
            async with state.making(connection):
                await state.create(connection, _DDL)
        await had.ensure(connection)

    @property
    def connection(self) -> state.Connection:
        assert self._connection is not None
        return self._connection

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (psycopg.Error, OSError) as error:
            raise unavailable(error, self._place) from error

    async def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await (await self.connection.execute(query, parameters, prepare=False)).fetchall()

    async def _do(self, statement: str) -> None:
        await self.connection.execute(statement, prepare=False)

    # What is there

    async def find(self) -> Live:
        """The live table. Raises ConfigError for what is none, or is another role's."""
        async with self._errors():
            return await beside.find(self.connection, self._names.schema, self._names.live)

    async def check(self, live: Live, sent: Collection[str]) -> None:
        """That it may be exchanged. `sent`: columns that the flow writes. Raises ConfigError."""
        async with self._errors():
            await beside.obstacles(self.connection, live)
            await beside.keeps_own(self.connection, live, sent)

    async def columns(self, live: Live) -> dict[str, beside.Column]:
        async with self._errors():
            return await beside.columns(self.connection, live.oid)

    async def known(self) -> Known | None:
        async with self._errors():
            rows = await self._rows(_KNOWN, self._names.of, self._names.schema, self._names.into)
        return Known(*rows[0]) if rows else None

    async def oid(self, name: str) -> int | None:
        async with self._errors():
            ((oid,),) = await self._rows(OID, self._names.schema, name)
        return None if oid is None else int(oid)

    async def floor(self, name: str) -> Version:
        async with self._errors():
            rows = await self._rows(_FLOOR, self._names.schema, name)
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else BOTTOM

    # Building

    async def begin(
        self, live: Live, key: Collection[str], begins: Mapping[Place, int], settings: str, who: str
    ) -> int:
        """The empty table, its checkpoints and the note of it, all or nothing; its oid."""
        names, places = self._names, sorted(begins)
        async with self._errors(), self.connection.transaction():
            await self._forget()
            await self._rows_none(_AGAIN, names.of, names.schema, names.into)
            oid = await beside.make(self.connection, live, names.into, key)
            await self._rows_none(_BEGIN, *state.columns_of(places), plain([begins[p] for p in places]))
            at = names.of, names.schema, names.into
            await self._rows_none(_NOTE, *at, names.live, oid, names.old, settings, who)
        return oid

    async def _rows_none(self, query: str, *parameters: object) -> None:
        await self.connection.execute(query, parameters, prepare=False)

    async def drop(self) -> None:
        """What an earlier call has left, which cannot be gone on with."""
        names = self._names
        async with self._errors(), self.connection.transaction():
            await self._do(f"DROP TABLE IF EXISTS {quote(names.schema)}.{quote(names.into)}")
            await self._forget()

    async def _forget(self) -> None:
        names = self._names
        for statement in _FORGET:
            await self._rows_none(statement, names.flow)
        of_into = "WHERE schema_name = $1 AND table_name = $2"
        await self._rows_none(f"DELETE FROM _tailrace.floors {of_into}", names.schema, names.into)
        await had.forget(self.connection, names.flow, (names.schema, names.into))
        kept = await number(self.connection, names.schema, names.into)
        if kept is not None:
            await self._rows_none("DELETE FROM _tailrace.versions WHERE table_id = $1", kept)
        at = names.of, names.schema, names.into
        same = "(flow, schema_name, into_name) = ($1, $2, $3)"
        await self._rows_none(f"DELETE FROM _tailrace.rebuilds WHERE swapped IS NULL AND {same}", *at)

    async def leave_out(self, place: Place, key: bytes) -> None:
        """Durable before the batch without it is."""
        async with self._errors():
            hashed = state.key_hash(key)
            await self._rows_none(_LEAVE_OUT, self._names.flow, *place[1:], hashed, key)

    async def left_out(self) -> list[bytes]:
        async with self._errors():
            return [bytes(key) for (key,) in await self._rows(_LEFT_OUT, self._names.flow)]

    async def carry(
        self, live: Live, columns: Sequence[KeyColumn], keys: Iterable[Mapping[str, str]]
    ) -> None:
        """Rows of these keys as the live table has them, or none. `keys`: texts, by the source's names."""
        into = f"{quote(live.schema)}.{quote(self._names.into)}"
        async with self._errors():
            stored = [
                c.name for c in (await beside.columns(self.connection, live.oid)).values() if not c.generated
            ]
            listed = ", ".join(map(quote, stored))
            fits = " AND ".join(f"{quote(c.name)} = ${n}::text::{c.type}" for n, c in enumerate(columns, 1))
            for key in keys:
                texts = [key[column.source] for column in columns]
                await self._rows_none(f"DELETE FROM {into} WHERE {fits}", *texts)
                await self._rows_none(
                    f"INSERT INTO {into} ({listed}) OVERRIDING SYSTEM VALUE SELECT {listed}"
                    f" FROM {live.relation} WHERE {fits}",
                    *texts,
                )

    async def complete(self, live: Live, oid: int) -> None:
        """Indexes that refuse nothing, foreign keys, and what the planner knows. Raises ConfigError."""
        async with self._errors():
            await beside.add_indexes(self.connection, live, self._names.into, forbidding=False)
            await beside.add_parents(self.connection, live, self._names.into, oid)
            await self._do(f"ANALYZE {quote(live.schema)}.{quote(self._names.into)}")

    # The exchange

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[dict[Place, int]]:
        """A transaction that holds apply up at the live table's checkpoints: up to where they come, replays
        that are under way included. It is committed when the block ends without an error."""
        names = self._names
        async with self._errors(), self.connection.transaction():
            rows = await self._rows(_STANDS, names.of, list(names.topics))
            places = [Place(names.of, topic, partition) for topic, partition, _ in rows]
            stands = await state.stands(self.connection, places)
            yield {place: stand.replayed_to for place, stand in stands.items()}

    async def stands(self, places: Collection[Place]) -> dict[Place, Checkpoint]:
        async with self._errors():
            return await state.stands(self.connection, sorted(places))

    async def exchange(self, live: Live, oid: int, *, drop_old: bool) -> list[str]:
        """Inside of `holding`; as Exchange.run has it."""
        async with self._errors():
            return await Exchange(self.connection, self._names, self._place).run(live, oid, drop_old=drop_old)

    async def tidy(self) -> None:
        """What the table beside needed while it was built; it may be many rows."""
        async with self._errors():
            await self._forget()
