"""Postgres as a target: a batch's rows and checkpoints in one transaction.

Small batches take two round trips: lock (checkpoints, floors), then everything else with the COMMIT
in one pipeline. The order inside: floors, deletes with their tombstones, patches, rows, checkpoints.
A row of one partition is written only when that partition's checkpoint is where the batch was read.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from consumers.apply.checkpoint import Checkpoint, Place, Rewind
from consumers.targets import postgres_columns as columns
from consumers.targets import postgres_constraints as constraints
from consumers.targets import postgres_floors as floors
from consumers.targets import postgres_known as known
from consumers.targets import postgres_parked as parked
from consumers.targets import postgres_replays as replays
from consumers.targets import postgres_state as state
from consumers.targets.base import (
    AskedAnew,
    Batch,
    FlowError,
    Gate,
    Look,
    Outcome,
    Parked,
    RowsRefused,
    TableChanges,
    TableLost,
    Unwhole,
    Versions,
    reread_cure,
)
from consumers.targets.postgres_arrays import quoted
from consumers.targets.postgres_errors import Reaction, not_let_in, reaction_to, unavailable
from consumers.targets.postgres_memory import Memory
from consumers.targets.postgres_plans import Plan
from consumers.targets.postgres_refused import find_refused, pass_over
from consumers.targets.postgres_sequences import Sequences
from consumers.targets.postgres_tables import ensure_table
from consumers.targets.postgres_write import make_ready, write_batch
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow, VectorTarget, describe_postgres
from streamer.config import PostgresTarget as Settings
from streamer.errors import BadRecordError, ConfigError, TailraceError, TargetUnavailable
from streamer.postgres import holdups, rights
from streamer.postgres.connection import connect, session_statements

CONNECT_TIMEOUT_S = 10
SILENCE_MS = 30_000  # a target that acknowledges nothing for so long is gone
ATTEMPTS = 8  # of one batch, at deadlocks and the like, before it counts as waiting
PLANS_LIMIT = 1000  # prepared statements a session
# Executions before psycopg prepares a statement that does not ask for it: never. In a pipeline it takes one
# for prepared that stood behind an error, and is not.
PREPARED_AFTER = 2**31
LOOK_LIMIT_S = 5.0  # for who holds up the session: connecting and two queries on the catalogue
LAST_WORDS_S = 2.0  # for what is still to be said when a session is closed

# Key look-ups must not become scans of a whole table; a session that was cut off must not keep its locks.
_OWN_SETTINGS = {
    "jit": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "idle_in_transaction_session_timeout": "60s",
}


# What it warns of is raised too; a refused row would be told twice, once without its reason.
logging.getLogger("psycopg").setLevel(logging.ERROR)


class PostgresTarget:
    """One session; not for concurrent use. `group`: the consumer group bound to this target."""

    def __init__(self, settings: Settings | VectorTarget, group: str, flows: Sequence[Flow]) -> None:
        self.place = f"target {settings.name!r} ({describe_postgres(settings.url)})"
        self._settings = settings
        self._group = group
        self._flows = {flow.name: flow for flow in flows}
        self._connection: state.Connection | None = None
        self._memory = Memory()
        self._sequences = Sequences()
        self._silent = False  # triggers and foreign keys of the target are off in this session
        self._plans: dict[tuple[str, str, str], Plan] = {}
        self._id = ""
        self._clock_offset_s = 0.0
        self._jitter = random.Random()

    @property
    def id(self) -> str:
        return self._id

    @property
    def clock_offset_s(self) -> float:
        return self._clock_offset_s

    def details(self) -> Mapping[str, Any]:
        return {"clock_offset_ms": round(self._clock_offset_s * 1000, 1)}

    # Session

    async def open(self) -> None:
        """Connect and make the state tables. Raises TargetUnavailable, ConfigError, FatalError."""
        await self.close()
        try:
            try:
                self._connection = await self._connect()
            except psycopg.OperationalError as error:
                refused = not_let_in(error, self.place)
                if refused is not None:
                    raise refused from error
                raise
            self._id = str(await state.ensure(self._connection, self._group))
            await parked.ensure(self._connection)
            await replays.ensure(self._connection)
            await columns.ensure(self._connection)
            await self._read_clock()
        except (psycopg.Error, OSError) as error:
            await self.close()
            raise unavailable(error, self.place) from error
        except BaseException:
            await self.close()
            raise
        self._plans.clear()
        self._memory = Memory()

    async def _connect(self) -> state.Connection:
        given = conninfo_to_dict(self._settings.url.get_secret_value())
        extra: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": f"tailrace apply {self._settings.name}",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": SILENCE_MS,
        }
        conninfo = make_conninfo(**{**extra, **given})
        connection: state.Connection = await AsyncConnection.connect(
            conninfo, autocommit=True, cursor_factory=AsyncRawCursor, client_encoding="utf8"
        )
        connection.prepared_max = PLANS_LIMIT
        connection.prepare_threshold = PREPARED_AFTER
        try:
            await connection.execute(
                session_statements(connection.info.server_version, **_OWN_SETTINGS), prepare=False
            )
            self._silent = await _silence_triggers(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def held_up_by(self) -> str:
        connection = self._connection
        if connection is None or connection.closed:
            return ""
        url = self._settings.url.get_secret_value()
        with suppress(TimeoutError, TailraceError):
            async with asyncio.timeout(LOOK_LIMIT_S), connect(url, application="tailrace look") as beside:
                return holdups.named(await holdups.blocking(beside, connection.info.backend_pid))
        return ""

    async def _read_clock(self) -> None:
        connection = self._open_connection()
        before = time.time()
        row = await (
            await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        ).fetchone()
        after = time.time()
        self._clock_offset_s = float(str((row or (after,))[0])) - (before + after) / 2

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.info.transaction_status == TransactionStatus.IDLE:
            with suppress(psycopg.Error, OSError):  # what is not set now is set after the next batch
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._sequences.catch_up(connection, idle=True)
        await connection.close()

    def _open_connection(self) -> state.Connection:
        if self._connection is None or self._connection.closed:
            raise TargetUnavailable(
                "the session with the target has ended", where=self.place, fix="it connects again by itself"
            )
        return self._connection

    # State

    async def checkpoints(self, places: Iterable[Place]) -> dict[Place, Checkpoint]:
        wanted = sorted(places)
        connection = self._open_connection()
        try:
            found = await state.read_checkpoints(connection, wanted)
            for flow in {place.flow for place in wanted}:
                await self._memory.load(connection, flow)
        except (psycopg.Error, OSError) as error:
            await self._recover()
            raise unavailable(error, self.place) from error
        return found

    async def rewind(self, rewinds: Iterable[Rewind], who: str) -> dict[Place, Checkpoint]:
        async with self._statement() as connection:
            return await replays.rewind(connection, list(rewinds), who)

    async def look(self, places: Iterable[Place]) -> Look:
        async with self._statement() as connection:
            self._id, stands = await state.look(connection, sorted(places))
        return Look(self._id, stands)

    async def findings(self) -> list[str]:
        found = []
        connection = self._open_connection()
        try:
            rows = await (
                await connection.execute(
                    "SELECT flow, schema_name, table_name, count(*), min(key) FROM _tailrace.needs_reread"
                    " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
                )
            ).fetchall()
        except (psycopg.Error, OSError) as error:
            await self._recover()
            raise unavailable(error, self.place) from error
        found += self._sequences.findings
        for flow, schema, table, count, key in rows:
            found.append(
                f"flow {flow}: {count} rows of {schema}.{table} are not whole until they are read again"
                f" from the source (for one, key {key}): SELECT * FROM _tailrace.needs_reread in the target"
                + reread_cure(self._flows.get(str(flow)))
            )
        return found

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        async with self._statement() as connection:
            cursor = await connection.execute(state.READ_REREADS, (quoted(list(topics)), limit))
            rows: list[tuple[Any, ...]] = await cursor.fetchall()
        return [
            Unwhole(flow, topic, schema, table, key.encode(), (epoch, lsn, ordinal))
            for flow, topic, schema, table, key, epoch, lsn, ordinal in rows
        ]

    async def sweep(self, keep_s: float) -> None:
        async with self._statement() as connection:
            await state.purge(connection, keep_s)
            await parked.purge(connection)
            await self._read_clock()
        await self._catch_up()

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[state.Connection]:
        """The session, for what stands outside of batches. Raises TargetUnavailable."""
        connection = self._open_connection()
        try:
            yield connection
        except (psycopg.Error, OSError) as error:
            await self._recover()
            raise unavailable(error, self.place) from error

    async def versions(self, batch: Batch) -> Versions | None:
        async with self._statement() as connection:
            return await known.versions(connection, batch, await self._prepare(connection, batch))

    # What waits

    async def parked(self, places: Iterable[Place] | None = None, *, asked: bool = False) -> list[Parked]:
        async with self._statement() as connection:
            return await parked.read(connection, places, asked=asked)

    async def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        async with self._statement() as connection:
            return await parked.ask(connection, keys, action, who)

    async def gates(self) -> list[Gate]:
        async with self._statement() as connection:
            return await parked.gates(connection)

    async def hold(self, gate: Gate) -> None:
        async with self._statement() as connection:
            await parked.hold(connection, gate)

    async def decide(self, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
        async with self._statement() as connection:
            return await parked.decide(connection, flow, state, who, up_to_us)

    async def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        async with self._statement() as connection:
            return await parked.recent_deletes(connection, flow, topic, window_s)

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        async with self._statement() as connection:
            return await parked.count_rows(connection, schema, table)

    async def count_below(self, changes: TableChanges, limit: int) -> int:
        batch = Batch([changes], [], {changes.record.id: changes.record}, "")
        async with self._statement() as connection:
            plans = await self._prepare(connection, batch)
            plan = plans[changes.schema, changes.table, changes.record.id]
            return await floors.count_below(connection, changes, plan, limit)

    # Batches

    async def prepare(self, batch: Batch) -> None:
        for changes in batch.tables:
            plan = self._plans.get((changes.schema, changes.table, changes.record.id))
            if plan is not None:
                await make_ready(changes, plan)

    async def apply(self, batch: Batch) -> Outcome:
        """Raises TargetUnavailable (all of it again later), RowsRefused (again without those rows) and
        FlowError (again without that flow)."""
        singly = False
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            connection = self._open_connection()
            try:
                plans = await self._prepare(connection, batch)
                memory, flows = self._memory, self._flows
                for flow in {changes.flow for changes in batch.tables} - memory.flows:
                    await memory.load(connection, flow)  # of a session that was opened again
                outcome = await write_batch(connection, batch, plans, memory, flows, singly=singly)
                await self._catch_up(batch)
                return outcome
            except (FlowError, AskedAnew):
                await self._recover()
                raise
            except BadRecordError as error:
                await self._recover()
                await self._raise_refused(batch, error)
            except OSError as error:
                await self._recover()
                raise unavailable(error, self.place) from error
            except psycopg.Error as error:
                await self._recover()
                reaction = reaction_to(error)
                if reaction is Reaction.REFUSED and attempt == 0:
                    self._plans.clear()  # the table may have changed under them
                    continue
                if reaction is Reaction.REFUSED:
                    await self._raise_refused(batch, error)
                if reaction is Reaction.WAIT or last:
                    raise unavailable(error, self.place) from error
                if reaction is Reaction.LOOK_AGAIN:
                    self._plans.clear()
                singly = singly or reaction is Reaction.SINGLY
                await asyncio.sleep(self._jitter.uniform(0, 0.01 * 2**attempt))
        raise AssertionError("unreachable")

    async def _catch_up(self, batch: Batch | None = None) -> None:
        """Sequences, after a batch was committed or in a pause. A session that ends here shows at the next
        call, and a later one sets them."""
        written = [
            self._plans[changes.schema, changes.table, schema_id]
            for changes in (batch.tables if batch else ())
            if any(fold.rows or fold.creates or fold.added for fold in changes.folds)
            for schema_id in changes.schema_ids
        ]
        self._sequences.written(written)
        connection = self._connection
        if connection is None or connection.closed:
            return
        try:
            await self._sequences.catch_up(connection, idle=not written)
        except (psycopg.Error, OSError):
            await self._recover()

    async def _recover(self) -> None:
        """After an error: roll back, or throw the session away."""
        connection = self._connection
        if connection is None or connection.closed:
            return
        try:
            await connection.execute("ROLLBACK", prepare=False)
        except (psycopg.Error, OSError):
            await self.close()

    async def _raise_refused(self, batch: Batch, error: Exception) -> None:
        """Find the rows. Returns when every row went through this time."""
        connection = self._open_connection()
        try:
            plans = await self._prepare(connection, batch)
            await pass_over(connection, batch, plans)
            refused = await find_refused(connection, batch, plans, self._flows)
        except (psycopg.Error, OSError) as again:
            await self.close()
            raise unavailable(again, self.place) from error
        if refused:
            raise RowsRefused(refused, where=self.place) from error

    async def _prepare(self, connection: state.Connection, batch: Batch) -> dict[tuple[str, str, str], Plan]:
        """Plans by (schema, table, schema id); tables are made fit on the way."""
        plans = self._plans
        for changes in batch.tables:
            for schema_id in changes.schema_ids:
                key = (changes.schema, changes.table, schema_id)
                if key in plans:
                    continue
                record = batch.records[schema_id]
                place = changes.schema, changes.table
                flow, topic = self._flows[changes.flow], changes.topic
                remake = (flow.name, topic) in batch.remakes
                try:
                    plans[key] = await self._plan(connection, place, record, flow, topic, remake=remake)
                except (ConfigError, TableLost) as error:
                    raise FlowError(changes.flow, error) from error
                except psycopg.errors.InsufficientPrivilege as error:
                    raise await self._may_not(connection, place, error) from error
                if len(changes.schema_ids) == 1 and len(plans) > 1:
                    self._forget_stale(changes.schema, changes.table, schema_id)
        return plans

    async def _may_not(
        self, connection: state.Connection, place: tuple[str, str], error: psycopg.Error
    ) -> TargetUnavailable:
        lacks = await rights.writing(connection, *place)
        cure = rights.as_owner(statement for lack in lacks for statement in lack.statements)
        cure = cure if lacks else "grant it (`tailrace doctor` prints the SQL)"
        what = f"the role may not prepare {'.'.join(place)}: {error.diag.message_primary}"
        return TargetUnavailable(what, where=self.place, fix=f"{cure} It goes on by itself")

    async def _plan(
        self,
        connection: state.Connection,
        place: tuple[str, str],
        record: SchemaRecord,
        flow: Flow,
        topic: str,
        *,
        remake: bool,
    ) -> Plan:
        """Raises ConfigError, TableLost."""
        fitted = await ensure_table(connection, *place, record, flow, topic=topic, remake=remake)
        if not self._silent:
            await constraints.ensure(connection, fitted.table)
        return Plan(fitted, flow, silent=self._silent)

    def _forget_stale(self, schema: str, table: str, schema_id: str) -> None:
        """Older versions of the table: the column types behind their plans may have changed."""
        for key in [k for k in self._plans if k[:2] == (schema, table) and k[2] != schema_id]:
            del self._plans[key]


async def _silence_triggers(connection: state.Connection) -> bool:
    """Where the role may; else the target's triggers fire, and its foreign keys hold."""
    try:
        await connection.execute("SET session_replication_role = replica", prepare=False)
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True
