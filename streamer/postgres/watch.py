"""What goes on beside the stream: the server's WAL end, the slot's size, the lock, what needs a look.

Owns the ordinary connection that holds the advisory lock; when that connection is lost the lock is
lost, so the capture must end (H30). Findings are sentences for `status`; each names what to do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import TypeAlias

import psycopg
from psycopg import errors, sql

from streamer.changes.ground import Ground
from streamer.changes.lsn import parse_lsn
from streamer.changes.names import spelt
from streamer.config import PostgresSource
from streamer.config.built import unbuilt_table
from streamer.errors import ConfigError, FatalError
from streamer.postgres.catalog import (
    GONE,
    Publications,
    Table,
    is_gone,
    left_out,
    list_tables,
    publication_tables,
)
from streamer.postgres.connection import Connection, place, translate
from streamer.postgres.ground import NO_CURES, Drift, Seen, read_ground
from streamer.postgres.identity import harmed_tables, odd_partitions, unidentified
from streamer.postgres.membership import judge, keyless_with_rows, rows_of
from streamer.postgres.omissions import omissions, unlogged_tables
from streamer.postgres.partitions import Cures, not_harmless
from streamer.postgres.publishing import add_table, adding
from streamer.postgres.windows import Snapshot
from streamer.resetting import key_steps, reset_fix, reset_steps

# Asks for the backfill of a table: whether that is durable, and what is in the way of it.
Want: TypeAlias = Callable[[Table, bool], tuple[bool, str]]  # the bool: it is published already

HEARTBEAT_PREFIX = "tailrace.heartbeat"
CLOCK_LOOKS = 5  # two slow answers of five change nothing; a clock that was set is noticed after three


class ServerClock:
    """The server's clock less ours: by the middle of each round trip, the median of the last few."""

    def __init__(self) -> None:
        self._differences_us: deque[int] = deque(maxlen=CLOCK_LOOKS)

    def add(self, *, asked_us: int, round_trip_us: int, server_us: int) -> int:
        """A look: when it was asked, by our clock, and what the server's clock was. -> microseconds"""
        self._differences_us.append(server_us - asked_us - round_trip_us // 2)
        return median_low(self._differences_us)


@dataclass(slots=True)
class Observed:
    """What the last look at the server showed. `clock_us` is its clock less ours, microseconds."""

    server_lsn: int = 0
    slot_bytes: int = 0
    slot_active: bool = False
    clock_us: int = 0
    findings: list[str] = field(default_factory=list)
    looks: int = 0  # at the catalogue, in this session


class Watch:
    """Looks at the source through the connection that holds its lock."""

    def __init__(self, connection: Connection, source: PostgresSource, now_us: Callable[[], int]) -> None:
        self._connection = connection
        self._now_us = now_us
        self._source = source
        self._where = place(source.url.get_secret_value())
        self.uncaptured: dict[str, int] = {}  # see Position
        self._clock = ServerClock()
        self.drift = Drift(source.name, Ground(), self._wants)
        self.captured: Mapping[tuple[str, str], object] = {}  # (schema, table) of this epoch's tables
        self.observed = Observed()
        self.snapshot = Snapshot(0, 0, frozenset())  # of the last look; this one sees nothing
        self.want: Want | None = None  # set when backfills are made
        self.cures: Cures = NO_CURES  # the same
        self._taken_empty: set[str] = set()  # tables that this session has published without rows

    def _wants(self, schema: str, table: str) -> bool:
        return self._source.rule_for(schema, table) is not None and not unbuilt_table(
            self._source, schema, table
        )

    async def look(self, now_us: int) -> None:
        """Every second: WAL end, slot, clock, snapshot. Raises when the lock's connection is gone."""
        asked_s = time.monotonic()
        try:
            cursor = await self._connection.execute(
                """SELECT pg_current_wal_flush_lsn()::text, s.active,
                          coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), s.restart_lsn), 0)::bigint,
                          (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
                          pg_current_snapshot()::text
                   FROM (SELECT) one LEFT JOIN pg_replication_slots s ON s.slot_name = %s""",
                (self._source.slot.name,),
            )
            row = await cursor.fetchone()
        except psycopg.Error as error:
            raise translate(error, self._where) from error
        round_trip_us = int((time.monotonic() - asked_s) * 1e6)
        assert row is not None
        observed = self.observed
        observed.server_lsn = parse_lsn(row[0])
        observed.slot_active = bool(row[1])
        observed.slot_bytes = int(row[2])
        observed.clock_us = self._clock.add(
            asked_us=now_us, round_trip_us=round_trip_us, server_us=int(row[3])
        )
        self.snapshot = Snapshot.parse(row[4])

    async def heartbeat(self) -> None:
        """A message in the WAL of an idle database, so that the slot can follow the server."""
        try:
            await self._connection.execute(
                "SELECT pg_logical_emit_message(false, %s, '')", (HEARTBEAT_PREFIX,)
            )
        except errors.ReadOnlySqlTransaction as error:
            raise ConfigError(
                "the source is a standby, which cannot be captured yet",
                where=self._where,
                fix="point `url` at the primary",
            ) from error
        except psycopg.Error as error:
            raise translate(error, self._where) from error

    async def inspect(self, shown_lsn: int) -> None:
        """Every few seconds: publications still the same, new tables, changes that cannot be captured.

        `shown_lsn`: up to which the stream has shown everything.
        """
        try:
            findings = await self._inspect(shown_lsn)
        except errors.LockNotAvailable:
            return  # a table is in use, by a migration perhaps; the next look tries again
        except psycopg.Error as error:
            if is_gone(error):
                return  # as the catalogue was read
            raise translate(error, self._where) from error
        slot = self._source.slot
        if self.observed.slot_bytes >= slot.wal_warn_bytes:
            findings.append(
                f"slot {slot.name} holds {self.observed.slot_bytes / 2**30:.1f} GiB of WAL (wal_warn): "
                "look at why the capture is behind, or give the server more disk"
            )
        self.observed.findings = findings
        self.observed.looks += 1

    async def _inspect(self, shown_lsn: int) -> list[str]:
        source = self._source
        wanted = await list_tables(self._connection, source)
        tables = [table for table in wanted if not unbuilt_table(source, table.schema, table.name)]
        publications = Publications(source.publication.name, tuple(tables))
        seen = await read_ground(self._connection, publications.name, publications.inserts_name)
        self.drift.check_publications(seen.ground)
        membership = judge(source, publications, seen.members, self.captured)
        owed, findings = await self._published_by_others(tables, seen)
        suspect = await not_harmless(self._connection, self.drift.partitions.strange(seen.ground))
        now_us = self._now_us()
        drift = self.drift.compare(owed, suspect, shown_lsn=shown_lsn, now_us=now_us, cures=self.cures)
        findings += [*left_out(source, wanted), *drift, *membership.findings]
        findings += [f"{odd.what}: {odd.fix}" for odd in await unlogged_tables(self._connection, source)]
        findings += [await self._for_a_person(table) for table in membership.by_hand]
        for table in membership.addable:
            findings += await self._publish(table, publications.home(table))
        for harmed in await harmed_tables(self._connection, publications.name, publications.inserts_name):
            findings.append(f"{harmed.what}: {harmed.fix}")
        for odd in await odd_partitions(self._connection, publications.name, publications.inserts_name):
            findings.append(f"{odd.what}: {odd.fix}; then {reset_steps(source.name)}")
        for omission in await omissions(self._connection, publications):
            findings.append(f"{omission.what}: {omission.fix} then {reset_steps(source.name)}")
        findings += await self._uncaptured_changes(publications.insert_only)
        return findings

    async def _published_by_others(self, tables: Iterable[Table], seen: Seen) -> tuple[Ground, list[str]]:
        """A table that somebody else has published since the epoch began may have rows: it is backfilled.

        The ground without those whose backfill is not durable yet: a crash leaves them as unknown as they
        are. Without a key there is no backfill, so that rows that it had are missing until a reset.
        """
        findings = []
        held = set()
        known = {name for oid, facts in self.drift.known.items() for name in (oid, facts.name)}
        by_name = {facts.name: oid for oid, facts in seen.ground.tables.items()}
        for table in tables:
            oid = by_name.get(table.qualified)
            if oid is None or not known.isdisjoint((oid, table.qualified)):
                continue  # not published; or copied, or said to be another table under its name
            if table.qualified in self._taken_empty:
                continue
            if not table.has_key:
                if await self._may_hold_rows(table):
                    self.drift.came_with_rows(table.qualified)
                continue
            durable, finding = self.want(table, True) if self.want is not None else (False, "")
            if finding:
                findings.append(finding)
            elif not durable:
                held.add(oid)
        left = {oid: facts for oid, facts in seen.ground.tables.items() if oid not in held}
        return replace(seen.ground, tables=left), findings

    async def _may_hold_rows(self, table: Table) -> bool:
        try:
            cursor = await self._connection.execute(
                sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.alone)
            )
            row = await cursor.fetchone()
        except errors.InsufficientPrivilege:
            return True
        except GONE:
            return False
        return row is not None and bool(row[0])

    async def _publish(self, table: Table, publication: str) -> list[str]:
        """Add a table that came later; with rows its backfill is durable before. Else what is in the way."""
        try:
            if await add_table(self._connection, publication, table, with_rows=False):
                self._taken_empty.add(table.qualified)
                return []
            if self.want is not None and table.has_key:
                durable, finding = self.want(table, False)
                if durable:
                    await add_table(self._connection, publication, table, with_rows=True)
                return [finding] if finding else []
        except errors.InsufficientPrivilege:
            return [
                f"{table.qualified} fits `tables:` but role {self._connection.info.user} may not publish it: "
                f"{await adding(self._connection, publication, table)} {rows_of(self._source, table)}"
            ]
        except GONE:
            return []  # dropped since the tables were listed
        return [await self._for_a_person(table)]

    async def _for_a_person(self, table: Table) -> str:
        if not table.has_key:
            return keyless_with_rows(self._source, table)
        publication = Publications(self._source.publication.name, ()).home(table)
        return (
            f"{table.qualified} fits `tables:` but is not captured: "
            f"{await adding(self._connection, publication, table)} {rows_of(self._source, table)}"
        )

    async def stand_on(self, ground: Ground, captured: Iterable[tuple[str, str]]) -> None:
        """At a restart, before the stream: the publications must be those of the epoch's first look.

        `captured`: (schema, table) with events of this epoch, some of which the config may leave out by now.
        """
        self.drift = Drift(self._source.name, ground, self._wants)
        self.drift.leave_out(spelt(schema, table) for schema, table in captured)
        publications = Publications(self._source.publication.name, ())
        seen = await read_ground(self._connection, publications.name, publications.inserts_name)
        self.drift.check_publications(seen.ground)

    async def _uncaptured_changes(self, tables: tuple[Table, ...]) -> list[str]:
        """UPDATE and DELETE of tables that publish inserts only (H27), by the server's statistics."""
        if not tables:
            return []
        counts = await self.count_uncaptured(tables)
        seen = {name: count - self.uncaptured.setdefault(name, count) for name, count in counts.items()}
        return [
            f"{bare.table.qualified} had {seen[bare.table.qualified]} UPDATEs or DELETEs that could not be "
            f"captured: {bare.why}; {bare.advice} then {key_steps(self._source.name)}"
            for bare in await unidentified(
                self._connection, [table for table in tables if seen.get(table.qualified, 0) > 0]
            )
        ]

    async def count_uncaptured(self, tables: Iterable[Table]) -> dict[str, int]:
        """Qualified table -> UPDATEs and DELETEs by the server's statistics."""
        cursor = await self._connection.execute(
            """SELECT s.schemaname::text, s.relname::text, s.n_tup_upd + s.n_tup_del
               FROM pg_stat_user_tables s WHERE s.relid = ANY (%s)""",
            ([table.oid for table in tables],),
        )
        return {spelt(schema, name): changes for schema, name, changes in await cursor.fetchall()}


async def require_publications(connection: Connection, source: PostgresSource) -> tuple[str, ...]:
    """At a restart: the publications that the stream was started with must still be there."""
    name = source.publication.name
    inserts = Publications(name, ()).inserts_name
    present = await publication_tables(connection, name, inserts)
    if name not in present:
        raise FatalError(
            f"publication {name} is gone: changes since then cannot be decoded",
            where=f"source {source.name}",
            fix=reset_fix(source.name),
        )
    return (name, inserts) if inserts in present else (name,)
