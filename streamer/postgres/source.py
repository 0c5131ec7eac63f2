"""A session of a Postgres source: from taking the lock to a stop or an error.

Owns the order in which things are taken (H30): the source's lock, the slot, the transactional ids,
then the position. A session ends with the first error; the runner decides whether there is another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from secrets import token_hex

import psycopg
from psycopg import errors

from streamer.backfill_ledger import Follow, Ledger
from streamer.changes.lsn import format_lsn, parse_lsn
from streamer.changes.position import Position, Stage, epoch_without_position
from streamer.config import PostgresSource, check_topics
from streamer.config.built import unbuilt_table
from streamer.errors import ConfigError, SourceUnavailable
from streamer.logs import Log
from streamer.postgres import catalog, history, holdups, rights
from streamer.postgres.backfill import Backfill
from streamer.postgres.backfill_run import Context
from streamer.postgres.connection import Connection, CopyStream, connect, place
from streamer.postgres.copy_start import CopyStart, open_copy
from streamer.postgres.ground import read_ground
from streamer.postgres.identity import unidentified
from streamer.postgres.omissions import omissions, unlogged_tables
from streamer.postgres.publishing import make_publications
from streamer.postgres.relations import FrozenKeys, Relations
from streamer.postgres.slot import (
    System,
    check_slot,
    drop_slot,
    identify_system,
    read_slot,
    start_replication,
    terminate_leftover,
    timeline_forks,
    try_lock,
)
from streamer.postgres.snapshot import Progress as CopyProgress
from streamer.postgres.snapshot import SnapshotCopy, SnapshotTable
from streamer.postgres.stream import Stream
from streamer.postgres.transactions import Transactions
from streamer.postgres.watch import Watch, require_publications
from streamer.postgres.windows import Snapshot, Windows
from streamer.publisher import Loaded, Publisher
from streamer.resetting import key_steps
from streamer.stopping import stopped_within

log = Log(__name__)

SESSION_BYTES = 4  # tells a session's chunks from another's
LOCK_POLL_S = 0.5  # a standby takes over within this
LEFTOVER_AFTER_S = 3.0  # a dead capture's walsender usually ends by itself before this
LOCK_TIMEOUT = "2s"  # above deadlock_timeout (1 s), after which an autovacuum in the way gives up
FLUSH_BYTES = 512 * 1024  # during the first copy: big enough that a Kafka transaction's cost does not count


@dataclass(frozen=True, slots=True)
class _Start:
    """What was found before the stream. `stream`: of the slot, if it is there; nothing of it is read."""

    plan: history.Copy | history.Resume
    system: System
    loaded: Loaded
    stream: CopyStream | None


class Session:
    """One attempt to capture; `report` gives state, reason and whether it is shown as waiting."""

    def __init__(
        self,
        source: PostgresSource,
        publisher: Publisher,
        *,
        follow: Follow,
        records: str,
        now_us: Callable[[], int],
        report: Callable[[str, str], None],
        met: Callable[[str], None],
        stop: asyncio.Event,
    ) -> None:
        """`follow`: reads the source's backfills; `records`: the topic that they are in; `met`: is told which
        database it is."""
        self.source = source
        self.publisher = publisher
        self.copying: CopyProgress | None = None  # while the first copy runs
        self.streaming: Stream | None = None  # once the stream runs
        self.transactions: Transactions | None = None
        self.watch: Watch | None = None
        self.backfill: Backfill | None = None  # once the stream runs
        self.copied: dict[str, int] = {}  # schema.table -> rows of the first copy
        self._follow = follow
        self._records = records
        self._url = source.url.get_secret_value()
        self._where = place(self._url)
        self._now_us = now_us
        self._report = report
        self._met = met
        self._stop = stop

    async def run(self) -> None:
        """Capture until `stop`; any error ends the session."""
        async with AsyncExitStack() as stack:
            control = await stack.enter_async_context(connect(self._url, application="tailrace capture"))
            await control.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
            await self._check_server(control)
            if not await self._take_lock(control):
                return
            self.watch = Watch(control, self.source, self._now_us)
            replication = await stack.enter_async_context(self._replication())
            start = await self._prepare(control, replication)
            if isinstance(start.plan, history.Resume):
                if self.source.snapshot.mode == "only":
                    log.info("snapshot mode is `only` and the copy is complete: nothing to do")
                    return
                position, stream = start.plan.position, start.stream
                frozen: FrozenKeys = start.loaded.frozen_keys
                await self.watch.stand_on(start.loaded.ground, frozen)
                self.publisher.add_ground(self.watch.drift.take_fresh())
            else:
                if start.stream is not None:  # a slot of an interrupted start: it is made again
                    await replication.close()
                    await self._drop(control)
                    replication = await stack.enter_async_context(self._replication())
                position, frozen = await self._copy(control, replication, start.plan, start.system)
                if self.source.snapshot.mode == "only":
                    return
                stream = await self._take_slot(control, replication)
            if stream is None:  # between the copy and the stream; the next session tells what is lost
                raise SourceUnavailable(
                    f"slot {self.source.slot.name} was dropped as the stream began",
                    where=self._where,
                    fix="nothing now: the next try says what is to be done",
                )
            relations = self._relations(start.system.database, position.epoch, frozen)
            older = await _running(control) if isinstance(start.plan, history.Copy) else frozenset()
            await self._run_stream(control, stream, position, relations, Windows(older))

    # ---- before the stream ---------------------------------------------------------------------

    async def _check_server(self, control: Connection) -> None:
        cursor = await control.execute("SELECT current_setting('wal_level'), pg_is_in_recovery()")
        row = await cursor.fetchone()
        assert row is not None
        if row[0] != "logical":
            raise ConfigError(
                f"wal_level is {row[0]}, logical replication needs logical",
                where=self._where,
                fix="run ALTER SYSTEM SET wal_level = 'logical'; and restart the server",
            )
        if row[1]:
            raise ConfigError(
                "the server is a standby, which cannot be captured yet",
                where=self._where,
                fix="point `url` at the primary",
            )

    async def _take_lock(self, control: Connection) -> bool:
        """Wait as a standby until this is the only capture; False when stopped meanwhile."""
        name = self.source.slot.name
        while not await try_lock(control, name):
            self._report(
                "standby", f"another capture of {self.source.name} holds its lock; this one waits for it"
            )
            if await stopped_within(self._stop, LOCK_POLL_S):
                return False
        self._report("starting", "")
        return True

    def _replication(self) -> AbstractAsyncContextManager[Connection]:
        return connect(self._url, replication=True, application="tailrace stream")

    async def _prepare(self, control: Connection, replication: Connection) -> _Start:
        """Take the slot, then the transactional ids, then read the position, and decide."""
        name = self.source.slot.name
        system = await identify_system(replication)
        self._met(f"{system.system_id}/{system.database}")
        forks = await timeline_forks(replication, system.timeline)
        slot = await read_slot(control, name)
        stream: CopyStream | None = None
        if slot is not None:
            check_slot(slot, system.database)
            if slot.wal_status != "lost":
                stream = await self._take_slot(control, replication)
        await self.publisher.start()
        loaded = await self.publisher.load()
        slot = await read_slot(control, name)
        system = replace(system, flush_lsn=max(system.flush_lsn, await _flush_lsn(control)))
        plan = history.decide(
            self.source.name,
            loaded.position,
            slot,
            system,
            name,
            unknown_epoch=epoch_without_position(self._now_us() / 1e6),
            published=bool(loaded.schemas),
        )
        if isinstance(plan, history.Resume):
            history.check_timeline(self.source.name, plan.position, system, forks)
            plan = history.Resume(replace(plan.position, timeline=system.timeline))
        return _Start(plan, system, loaded, stream)

    async def _take_slot(self, control: Connection, replication: Connection) -> CopyStream | None:
        """START_REPLICATION makes the slot ours; nothing is read before the position is known.

        None when there is no slot: a capture that is killed while its slot is made leaves one that goes with
        its walsender.
        """
        publications = await require_publications(control, self.source)
        waited_s = 0.0
        while True:
            try:
                return await start_replication(
                    replication,
                    self.source.slot.name,
                    publications,
                    server_version=control.info.server_version,
                )
            except errors.UndefinedObject:
                if await read_slot(control, self.source.slot.name) is not None:
                    raise
                return None
            except errors.ObjectInUse as error:
                self._report(
                    "waiting", f"slot {self.source.slot.name} is still in use: {error.diag.message_primary}"
                )
                if waited_s >= LEFTOVER_AFTER_S:
                    slot = await read_slot(control, self.source.slot.name)
                    if slot is not None:
                        await terminate_leftover(control, slot)
                if await stopped_within(self._stop, LOCK_POLL_S):
                    raise SourceUnavailable("stopped while waiting for the slot") from error
                waited_s += LOCK_POLL_S

    async def _drop(self, control: Connection) -> None:
        """Drop the slot that we have just left; its walsender may need a moment to end."""
        name = self.source.slot.name
        for _ in range(int(LEFTOVER_AFTER_S / LOCK_POLL_S) * 5):
            slot = await read_slot(control, name)
            if slot is None or slot.active_pid is None:
                break
            await asyncio.sleep(LOCK_POLL_S / 5)
        await drop_slot(control, name)

    # ---- the first copy ------------------------------------------------------------------------

    async def _copy(
        self, control: Connection, replication: Connection, plan: history.Copy, system: System
    ) -> tuple[Position, FrozenKeys]:
        source, publisher = self.source, self.publisher
        assert self.watch is not None
        log.info("first copy", source=source.name, epoch=plan.epoch, why=plan.why)
        for sentence in catalog.left_out(source, await catalog.list_tables(control, source)):
            log.warning(sentence)
        for odd in await unlogged_tables(control, source):
            log.warning(odd.what, fix=odd.fix)
        async with open_copy(
            self._url, control, replication, source.slot.name, report=self._report, stop=self._stop
        ) as start:
            publications, position = await self._begin_copy(control, start, plan, system)
            tables = publications.tables
            relations = self._relations(system.database, plan.epoch, {})
            await relations.ensure_topics(tables)
            items = [await relations.from_catalog(start.reader, table) for table in tables]
            seen = await read_ground(start.reader, publications.name, publications.inserts_name)
            self.watch.drift.check_publications(seen.ground)
            self.watch.drift.compare(seen.ground)
            publisher.add_ground(self.watch.drift.take_fresh())
            frozen = relations.frozen
            await start.looked_round()
            # Not before: what ends the look is no copy that was cut, which would cost an epoch.
            position = replace(position, stage=Stage.SNAPSHOT, lsn=start.consistent_point)
            await self.publisher.flush(position)
            await self._copy_tables(start.reader, items, position, floor=plan.floors)
        position = replace(position, stage=Stage.STREAMING)
        await self.publisher.flush(position)
        self.copying = None
        if source.snapshot.mode == "only":
            await drop_slot(control, source.slot.name)
        log.info("first copy complete", source=source.name, lsn=format_lsn(position.lsn))
        return position, frozen

    async def _begin_copy(
        self, control: Connection, start: CopyStart, plan: history.Copy, system: System
    ) -> tuple[catalog.Publications, Position]:
        """Publications, intent, tables held, slot: again from the first while others come before."""
        source = self.source
        assert self.watch is not None
        position: Position | None = None
        while True:
            tables = await self._tables(control)
            publications = catalog.Publications(source.publication.name, tuple(tables))
            try:
                await self._publish(control, publications, told=position is not None)
                uncaptured = await self.watch.count_uncaptured(publications.insert_only)
            except errors.LockNotAvailable as error:
                await start.locked(tables, holdups.DEFINERS, error)
                await start.rest()
                continue
            except psycopg.Error as error:
                if not catalog.is_gone(error):
                    raise
                start.gone(error)
                await start.rest()
                continue
            if position is None:
                position = Position(
                    source=source.name,
                    number=self.publisher.number,
                    epoch=plan.epoch,
                    stage=Stage.INTENT,
                    system_id=system.system_id,
                    timeline=system.timeline,
                    lsn=0,
                    since_epoch=plan.epoch if plan.floors else 0,
                    since_us=self._now_us(),
                )
                await self.publisher.flush(replace(position, uncaptured=uncaptured))

            async def unchanged(found: list[catalog.Table] = tables) -> bool:
                return set(found) <= set(await catalog.list_tables(control, source))

            if await start.begin(tables, unchanged):
                return publications, replace(position, uncaptured=uncaptured)
            await start.rest()

    async def _tables(self, control: Connection) -> list[catalog.Table]:
        source = self.source
        tables = await catalog.list_tables(control, source)
        check_topics([(source.name, table.schema, table.name) for table in tables])
        return [table for table in tables if not unbuilt_table(source, table.schema, table.name)]

    async def _publish(self, control: Connection, publications: catalog.Publications, *, told: bool) -> None:
        """Raises ConfigError where the server, or our rights, are not fit for a copy."""
        source = self.source
        names = [(table.schema, table.name) for table in publications.tables]
        copied = source.snapshot.mode != "never"
        await rights.require_reading(control, names, copied=copied, where=self._where)
        for omission in await omissions(control, publications):
            raise ConfigError(omission.what, where=f"source {source.name}", fix=omission.fix)
        await make_publications(control, publications, source)
        if told:
            return
        for bare in await unidentified(control, publications.insert_only):
            log.warning(
                f"only INSERT and TRUNCATE of this table are captured: {bare.why}",
                table=bare.table.qualified,
                fix=f"{bare.advice} then {key_steps(source.name)}",
            )

    async def _copy_tables(
        self, reader: Connection, items: list[SnapshotTable], position: Position, *, floor: bool
    ) -> None:
        progress = self.copying = CopyProgress(tables=len(items))
        self.copied = progress.copied
        self._report("snapshot", "")

        async def room() -> None:
            if self.publisher.waiting_bytes >= FLUSH_BYTES:
                await self.publisher.flush(position)
            else:
                await asyncio.sleep(0)
            if self._stop.is_set():
                raise SourceUnavailable("stopped during the first copy; it starts again as a reset")

        copy = SnapshotCopy(
            reader, consistent_point=position.lsn, now_us=self._now_us, room=room, progress=progress
        )
        if self.source.snapshot.mode == "never":
            return
        for index, item in enumerate(items):
            await copy.copy(item, last_table=index == len(items) - 1, floor=floor)

    # ---- the stream ----------------------------------------------------------------------------

    def _relations(self, database: str, epoch: int, frozen: FrozenKeys) -> Relations:
        assert self.watch is not None
        return Relations(
            self.source, self.publisher, self.watch.drift, database=database, epoch=epoch, frozen=frozen
        )

    async def _run_stream(
        self,
        control: Connection,
        copy: CopyStream,
        position: Position,
        relations: Relations,
        windows: Windows,
    ) -> None:
        assert self.watch is not None
        slot = await read_slot(control, self.source.slot.name)
        assert slot is not None  # we stream from it
        self.watch.captured = relations.frozen
        self.watch.uncaptured = dict(position.uncaptured)
        rejoin = history.Rejoin(self.source.name, position, slot.confirmed_flush_lsn)
        self.transactions = Transactions(
            position, rejoin, messages=relations.messages(), now_us=self._now_us, windows=windows
        )
        async with connect(self._url, application="tailrace catalog") as catalog_connection:
            stream = self.streaming = Stream(
                copy,
                catalog_connection,
                self.transactions,
                relations,
                self.publisher,
                self.watch,
                recorded=position,
                heartbeat_s=self.source.heartbeat_s,
                now_us=self._now_us,
                where=self._where,
            )
            context = Context(
                self.source,
                relations,
                self.publisher,
                windows,
                Ledger(
                    self.publisher.topic(self._records),
                    now_us=self._now_us,
                    wake=stream.wake,
                    since_us=position.since_us,
                ),
                session=token_hex(SESSION_BYTES),
                now_us=self._now_us,
                lag_bytes=lambda: stream.lag_bytes,
            )
            self.backfill = Backfill(context, self._follow, epoch=position.epoch)
            self.watch.want = self.backfill.want
            self.watch.cures = self.backfill
            self.transactions.on_truncate = self._truncated
            log.info("streaming", source=self.source.name, lsn=format_lsn(position.lsn), epoch=position.epoch)
            self._report("streaming", "")
            await stream.run(self._stop, self.backfill.run)

    def _truncated(self, oid: int, commit_lsn: int) -> None:
        """Recorded with the flush that has the truncate."""
        assert self.watch is not None
        self.watch.drift.partitions.truncated(oid, commit_lsn)
        self.publisher.add_ground(self.watch.drift.take_fresh())


async def _running(control: Connection) -> frozenset[int]:
    """Transactions that may have committed before the slot's first one, and do not show yet (32 bits)."""
    row = await (await control.execute("SELECT pg_current_snapshot()::text")).fetchone()
    assert row is not None
    return frozenset(xid % 2**32 for xid in Snapshot.parse(row[0]).running)


async def _flush_lsn(control: Connection) -> int:
    cursor = await control.execute("SELECT pg_current_wal_flush_lsn()::text")
    row = await cursor.fetchone()
    assert row is not None
    return parse_lsn(row[0])
