"""How the first copy begins: every table held, then the slot made, and its snapshot taken.

Owns the order that makes the copy whole (H8): one transaction has ACCESS SHARE on every table from before
the slot is made until the last row is published, and it is the one that reads them, so that no rewrite or
TRUNCATE comes between, and what the copy waits for is plain to the server.

The server cannot see that this transaction waits for the slot, which is made on another connection, and
which waits for every transaction that has written. So nothing waits for us meanwhile: tables are locked at
once or not at all, and as soon as somebody wants one of them while the slot is not made yet, all are let
go, the slot with them, and it begins again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
from psycopg import errors, sql

from streamer.errors import ConfigError, SourceUnavailable
from streamer.postgres import holdups
from streamer.postgres.catalog import GONE, Table
from streamer.postgres.connection import Connection, connect, place
from streamer.postgres.slot import Exported, create_slot, drop_slot
from streamer.stopping import end_tasks, stopped_within

LOOK_S = 0.2  # whoever wants a table goes on after this, while the slot is not made yet
AGAIN_S = 0.5  # between tries: who was let in has the tables meanwhile
TOLD_AFTER_S = 5.0  # transactions of a server at work end before this, mostly
WAITING_AFTER_S = 60.0  # then a person should know: `waiting` is a finding
# Far below deadlock_timeout (1 s): we give up what could be a deadlock before another is ended for it.
LOOK_LOCK_TIMEOUT = "300ms"


@asynccontextmanager
async def open_copy(
    url: str,
    control: Connection,
    replication: Connection,
    slot: str,
    *,
    report: Callable[[str, str], None],
    stop: asyncio.Event,
) -> AsyncIterator[CopyStart]:
    """What it holds is held until the block ends. `report`: takes the state, and what it waits for."""
    async with connect(url, application="tailrace snapshot") as reader:
        await reader.execute(f"SET lock_timeout = '{LOOK_LOCK_TIMEOUT}'")
        yield CopyStart(control, replication, reader, slot, report=report, stop=stop, where=place(url))


class CopyStart:
    """Tries to begin; once it has begun, `reader` sees exactly what precedes `consistent_point`."""

    def __init__(
        self,
        control: Connection,
        replication: Connection,
        reader: Connection,
        slot: str,
        *,
        report: Callable[[str, str], None],
        stop: asyncio.Event,
        where: str,
    ) -> None:
        self.reader = reader
        self.consistent_point = 0
        self._control = control
        self._replication = replication
        self._slot = slot
        self._report = report
        self._stop = stop
        self._where = where
        self._since_s = asyncio.get_running_loop().time()

    async def begin(self, tables: Sequence[Table], unchanged: Callable[[], Awaitable[bool]]) -> bool:
        """False when it gave way, and nothing is held or left: `rest`, and look at the tables again.

        `unchanged`: whether the tables, which are held by then, still are what they were found to be. Raises
        ConfigError when no slot is free, SourceUnavailable when it is stopped meanwhile.
        """
        exported = await self._make() if await self._hold(tables) and await unchanged() else None
        if exported is None:
            await self.reader.rollback()
            await drop_slot(self._control, self._slot)  # it may have been made as it was given up
            return False
        await self.reader.execute(
            sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported.snapshot))
        )
        self.consistent_point = exported.consistent_point
        self._report("starting", "")
        return True

    async def looked_round(self) -> None:
        """What is needed beside the rows has been read; from here on a lock may take its time."""
        await self.reader.execute("SET lock_timeout = 0")

    async def rest(self) -> None:
        if await stopped_within(self._stop, AGAIN_S):
            raise self._stopped()

    async def locked(
        self, tables: Sequence[Table], modes: Sequence[str], error: errors.LockNotAvailable
    ) -> None:
        """Tell who has a table that we need."""
        found = await holdups.holding(self._control, tables, modes)
        by = f": {holdups.named(found)} must end first" if found else ""
        self._tell(f"the first copy waits for a table ({error.diag.message_primary}){by}")

    def gone(self, error: psycopg.Error) -> None:
        """Tell why the tables are looked at again."""
        self._tell(f"the first copy looks at the tables again: {error.diag.message_primary}")

    async def _hold(self, tables: Sequence[Table]) -> bool:
        """Never waits: what held some tables and waited for others could be half of a deadlock."""
        # LOCK TABLE takes no snapshot, so that the slot's can still be taken after it.
        await self.reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if not tables:
            return True
        names = sql.SQL(", ").join(table.identifier for table in tables)
        try:
            await self.reader.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT").format(names))
        except errors.LockNotAvailable as error:
            await self.locked(tables, holdups.READERS, error)
            return False
        except GONE as error:
            self.gone(error)
            return False
        return True

    async def _make(self) -> Exported | None:
        """The slot; None when somebody waits for the tables."""
        creating = asyncio.create_task(self._create(), name="make the slot")
        stopping = asyncio.create_task(self._stop.wait(), name="stop making the slot")
        both = {creating, stopping}
        try:
            while True:
                await asyncio.wait(both, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if creating.done():
                    return creating.result()
                if stopping.done():
                    raise self._stopped()
                if await self._is_wanted():
                    return None
        finally:
            # psycopg cancels the server's command too, which takes the half-made slot away
            await end_tasks(*both)

    async def _create(self) -> Exported:
        try:
            return await create_slot(self._replication, self._slot)
        except errors.ConfigurationLimitExceeded as error:
            raise ConfigError(
                f"no replication slot is free: {error.diag.message_primary}",
                where=self._where,
                fix="drop a slot nobody uses (SELECT slot_name, active FROM pg_replication_slots), or raise "
                "max_replication_slots and restart the server",
            ) from error

    async def _is_wanted(self) -> bool:
        blockers = await holdups.blocking(self._control, self._replication.info.backend_pid)
        waiters = await holdups.waiting_for(self._control, self.reader.info.backend_pid)
        slow = f"the slot waits for transactions that have written: {holdups.named(blockers)} must end first"
        if waiters:
            behind = f"; {slow}" if blockers else ""
            self._tell(f"the first copy gave way to {holdups.named(waiters)}{behind}", at_once=True)
        else:
            self._tell(slow if blockers else "the server has not made the slot yet")
        return bool(waiters)

    def _tell(self, reason: str, *, at_once: bool = False) -> None:
        waited_s = asyncio.get_running_loop().time() - self._since_s
        if at_once or waited_s >= TOLD_AFTER_S:
            self._report("waiting" if waited_s >= WAITING_AFTER_S else "starting", reason)

    def _stopped(self) -> SourceUnavailable:
        return SourceUnavailable("stopped before the first copy began", where=self._where)
