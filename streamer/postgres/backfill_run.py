"""One run of a backfill: which chunk comes next, and what is published of it.

Owns a run's way from its cursor to its end: a few chunks at a time between their marks, the rows of each
given to the publisher with the run's progress when the stream shows its close mark, all at once, so that no
flush comes between (H10). A chunk that is void takes with it those read after it, and the walk goes on from
the last one that was published. What a window is good for is decided in windows, the SQL is in chunks; which
table it is, and whether it may be read, in backfill_table.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import orjson
import psycopg
from psycopg import errors

from streamer.backfill_ledger import Ledger
from streamer.changes.backfill import TABLE_GONE, Key, Progress, Run, State, Wanted
from streamer.changes.envelope import SNAPSHOT_INCREMENTAL
from streamer.config import PostgresSource
from streamer.errors import BadRecordError, ConfigError, FatalError, SourceUnavailable
from streamer.postgres import backfill_table, catalog, chunks, rights
from streamer.postgres.backfill_table import Refused, TableGone
from streamer.postgres.chunks import Chunk, Given, Range, TableChanged, Walk
from streamer.postgres.connection import Connection, connect
from streamer.postgres.relations import Relations
from streamer.postgres.windows import Commit, Verdict, Window, Windows
from streamer.publisher import Publisher

CHUNK_ROWS = 500  # published at once, which takes some milliseconds in which the stream waits
CHUNK_BYTES = 2**20  # a chunk is smaller than a flush may be, whatever its rows are
FIRST_ROWS = 100  # of a table whose rows may each be a megabyte
IN_FLIGHT = 3  # chunks between their marks: one is read while the marks of others travel
WAITING_LIMIT_BYTES = 4 * 2**20  # rows that Kafka has not taken: then the stream comes first
LAG_LIMIT_BYTES = 64 * 2**20  # WAL that the stream is behind: then it comes first
OWED_LIMIT_BYTES = 256 * 1024  # keys in one progress record, well under Kafka's default message
ENVELOPE_BYTES = 4_096  # what an event has around its row, rounded up
POLL_S = 0.1  # while something is in the way of the next chunk
RETRY_S = 0.25  # after a void chunk: what hides a transaction rarely lasts as long
BACKOFF_S = 1.0  # after an error of the server that may pass
RATE_S = 10.0  # over which rows a second are counted

# SQLSTATE classes of what passes: connection, transaction, resources, locks, shutdowns, the server's own.
_PASSING = ("08", "25", "40", "53", "55", "57", "58")


# Of psycopg itself, without a SQLSTATE: a value that has no place in a statement, or a call that is none.
_OF_THE_CLIENT = (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError)


def _may_pass(error: psycopg.Error) -> bool:
    """Whether the same chunk may be read later. What has no SQLSTATE is of the line, or of the client."""
    if error.sqlstate is None:
        return not isinstance(error, _OF_THE_CLIENT)
    return error.sqlstate.startswith(_PASSING)


@dataclass(frozen=True, slots=True)
class Context:
    """What all runs of a source share. `lag_bytes`: of the stream."""

    source: PostgresSource
    relations: Relations
    publisher: Publisher
    windows: Windows
    ledger: Ledger
    session: str  # part of every chunk's id: marks of another session are passed over
    now_us: Callable[[], int]
    lag_bytes: Callable[[], int]


@dataclass(slots=True)
class _Flight:
    """A chunk between its marks. `owed`: keys that it reads because a chunk before it could not.

    `cursor`: what the run's is when the chunk is published; None: as before.
    """

    walk: Walk
    chunk: Chunk
    owed: frozenset[Key]
    cursor: tuple[str, ...] | None = None


class TableRun:
    """One run while it is worked on."""

    def __init__(self, context: Context, run: Run) -> None:
        assert run.request is not None
        self.run = run
        self.request = run.request
        self._context = context
        self._event = asyncio.Event()
        self._flights: dict[str, _Flight] = {}  # by their chunks' ids, in the order of their marks
        self._keys: Sequence[Key] = run.keys() if self.request.keyed else ()
        self._number = 0
        self._turn = 0  # rises whenever the walk goes back
        self._fit = FIRST_ROWS  # rows of this table that make a chunk
        self._next_s = 0.0  # not before, by the loop's clock: the rate, or a pause after a void chunk
        self._counted: deque[tuple[float, int]] = deque()
        self._rewind()

    @property
    def progress(self) -> Progress:
        """What has been given to the publisher."""
        return self._context.ledger.of(self.run)

    # ---- for the supervisor and status -------------------------------------------------------

    def notice(self) -> None:
        """A person has said something, or there is room again."""
        self._event.set()

    def rows_per_s(self) -> float:
        now_s = asyncio.get_running_loop().time()
        while self._counted and self._counted[0][0] < now_s - RATE_S:
            self._counted.popleft()
        if not self._counted:
            return 0.0
        return sum(rows for _, rows in self._counted) / max(1.0, now_s - self._counted[0][0])

    async def work(self) -> None:
        """Until the run is over, or a person pauses it."""
        began_us = self.progress.began_us or self._context.now_us()
        self._write(replace(self.progress, state=State.RUNNING, reason="", began_us=began_us))
        try:
            while self.progress.state in (State.RUNNING, State.WAITING):
                await self._attempt()
        finally:
            self._abandon()

    async def _attempt(self) -> None:
        url = self._context.source.url.get_secret_value()
        try:
            async with connect(url, application="tailrace backfill") as connection:
                try:
                    await self._walk(connection)
                except errors.QueryCanceled as error:
                    raise Refused(
                        f"a chunk was cancelled: {error.diag.message_primary}",
                        fix="look at why so few rows take the server so long, then resume the run",
                    ) from error
                except psycopg.Error as error:
                    if _may_pass(error):
                        raise
                    raise await self._refused(connection, error) from error
        except SourceUnavailable as error:
            self._abandon()
            self._say(error.what)
            if await self._goes_on():
                await self._rest(BACKOFF_S)
        except TableGone as error:
            if self.run.unasked:
                self._end(State.CANCELLED, TABLE_GONE)
            else:
                self._end(State.FAILED, f"{error.what}: {error.fix}")
        except (Refused, ConfigError, FatalError, BadRecordError) as error:
            self._end(State.FAILED, f"{error.what}: {error.fix}" if error.fix else error.what)

    async def _refused(self, connection: Connection, error: psycopg.Error) -> Refused:
        """What the server refuses for good; a missing right with the statements that give it."""
        fix = ""
        await connection.rollback()
        if catalog.is_gone(error):
            request = self.request
            if await catalog.find_table(connection, request.schema, request.table) is None:
                return TableGone(request.place)
        if isinstance(error, errors.InsufficientPrivilege):
            lacks = await rights.reading(connection, [(self.request.schema, self.request.table)])
            fix = rights.as_owner(s for lack in lacks for s in lack.statements) if lacks else ""
        return Refused(error.diag.message_primary or str(error), fix=fix)

    # ---- the walk ----------------------------------------------------------------------------

    async def _walk(self, connection: Connection) -> None:
        await chunks.prepare(connection)
        walk = await self._look(connection)
        if walk is None:
            return
        if self.progress.estimated_rows is None:
            rows = await self._estimate(connection, walk)
            self._write(replace(self.progress, estimated_rows=rows))
        self._say("", State.RUNNING)
        changed = 0
        while await self._goes_on():
            if self._in_the_way():
                await self._rest(POLL_S)
                continue
            part = self._next_part(walk)
            if part is None:
                if not self._flights:
                    self._end(State.DONE, "")
                    return
                await self._rest(POLL_S)
                continue
            try:
                await self._chunk(connection, walk, *part)
                changed = 0
            except (TableChanged, errors.UndefinedTable):
                changed += 1
                if changed >= backfill_table.DESCRIBE_TRIES:
                    raise Refused(
                        f"{self.request.place} changes faster than it can be read",
                        fix="begin the backfill again when its columns stay as they are",
                    ) from None
                self._void("the table's columns changed")
                again = await self._look(connection)
                if again is None:
                    return
                walk = again

    async def _goes_on(self) -> bool:
        """False when the run is over, or a person has paused or cancelled it, which is recorded at once."""
        if self.progress.state.over:
            return False
        wanted = self.run.wanted
        if wanted is Wanted.RUN:
            return True
        self._abandon()
        if wanted is Wanted.CANCEL:
            self._end(State.CANCELLED, self.run.by)
        else:
            self._context.ledger.pause(self.run)
        return False

    def _in_the_way(self) -> bool:
        context = self._context
        if len(self._flights) >= IN_FLIGHT or asyncio.get_running_loop().time() < self._next_s:
            return True
        if context.lag_bytes() >= LAG_LIMIT_BYTES:
            self._say("waits for the stream, which is behind")
            return True
        return context.publisher.waiting_bytes >= WAITING_LIMIT_BYTES

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()

    def _next_part(self, walk: Walk) -> tuple[Range | Given, frozenset[Key]] | None:
        """What the next chunk reads, and which owed keys it settles; None: nothing is left to read."""
        rows = min(CHUNK_ROWS, self._fit, max(1, self.request.rate or CHUNK_ROWS))
        reading = {key for flight in self._flights.values() for key in flight.owed}
        owed = [key for key in self.progress.owed if key not in reading][:rows]
        if owed:
            return self._given(walk, owed, strict=False), frozenset(owed)
        if self.request.keyed:
            wanted = self._keys[self._offset : self._offset + rows]
            strict = not self.request.deletes
            return (self._given(walk, wanted, strict=strict), frozenset()) if wanted else None
        if self._exhausted:
            return None
        return Range(self._after, self.request.where, rows, CHUNK_BYTES), frozenset()

    def _given(self, walk: Walk, keys: Sequence[Key], *, strict: bool) -> Given:
        return Given([chunks.key_texts(walk, key) for key in keys], CHUNK_BYTES, strict)

    async def _chunk(
        self, connection: Connection, walk: Walk, part: Range | Given, owed: frozenset[Key]
    ) -> None:
        context, described = self._context, walk.described
        self._number += 1
        turn = self._turn
        name = f"{context.session}.{self.run.run}.{self._number}"
        window = Window(name, described.table.oid, described.record.id, self._closed)
        context.windows.register(window)
        try:
            chunk = await chunks.read_chunk(connection, walk, window, self.run.run, part)
            flight = _Flight(walk, chunk, owed)
            self._check_sizes(flight)
        except BaseException:
            context.windows.forget(window)
            raise
        if turn != self._turn:  # a chunk before this one is read again, and this one with it
            context.windows.forget(window)
            await connection.rollback()
            return
        self._advance(flight, part)
        self._flights[name] = flight
        await chunks.close_chunk(connection, window, self.run.run)

    def _advance(self, flight: _Flight, part: Range | Given) -> None:
        """The reader stands behind this chunk now; its progress follows when the stream shows its mark."""
        chunk = flight.chunk
        if isinstance(part, Range):
            self._after = flight.cursor = chunk.cursor
            self._exhausted = chunk.whole
        elif not flight.owed:
            self._offset += chunk.taken
            flight.cursor = (str(self._offset),)
        if chunk.taken:
            self._fit = max(1, min(CHUNK_ROWS, CHUNK_BYTES * chunk.taken // max(1, chunk.bytes)))
        if self.request.rate:
            now_s = asyncio.get_running_loop().time()
            self._next_s = max(now_s, self._next_s) + chunk.taken / self.request.rate

    def _check_sizes(self, flight: _Flight) -> None:
        """Before the close mark, where nothing may fail any more."""
        limit = flight.walk.described.sink.limit_bytes - ENVELOPE_BYTES
        for key, after in flight.chunk.rows.items():
            if len(key) + len(after) > limit:
                raise Refused(
                    f"a row of {len(key) + len(after):,} bytes is above the message limit; "
                    f"its key is {key.decode(errors='replace')[:200]}",
                    fix="raise kafka.topics.max_message, or leave the row out with a condition",
                )

    # ---- the stream shows a close mark ---------------------------------------------------------

    def _closed(self, window: Window, verdict: Verdict, commit: Commit) -> None:
        """Publish the chunk, or read it again. Without an await: a flush takes all of it or nothing."""
        flight = self._flights.get(window.chunk)
        if flight is None:
            return  # given up meanwhile
        self._event.set()
        owed = tuple(self._key_of(flight, key) for key in verdict.owed)
        left = tuple(key for key in self.progress.owed if key not in flight.owed)
        owed = left + tuple(key for key in owed if key not in left)
        if verdict.void or len(orjson.dumps(owed)) > OWED_LIMIT_BYTES:
            self._fit = max(1, self._fit // 2)
            self._void(verdict.void or "too many of its rows changed in part meanwhile")
            return
        del self._flights[window.chunk]
        rows, deletes = self._publish(flight, verdict, commit)
        progress = self.progress
        over = not owed and not self._flights and self._all_read()
        now_us = self._context.now_us()
        self._write(
            replace(
                progress,
                state=State.DONE if over else State.RUNNING,
                reason="",
                cursor=progress.cursor if flight.cursor is None else flight.cursor,
                owed=owed,
                chunks=progress.chunks + 1,
                rows=progress.rows + rows,
                deletes=progress.deletes + deletes,
                dropped=progress.dropped + len(flight.chunk.rows) - rows,
                floor_lsn=commit.lsn,
                ended_us=now_us if over else None,
            )
        )
        self._counted.append((asyncio.get_running_loop().time(), rows))

    def _publish(self, flight: _Flight, verdict: Verdict, commit: Commit) -> tuple[int, int]:
        """-> rows and deletes that were published."""
        described, chunk, dropped = flight.walk.described, flight.chunk, verdict.dropped
        self._context.relations.adopt(described.record)
        template = described.source.transaction(
            commit_us=commit.commit_us,
            xid=None,
            commit_lsn=commit.lsn,
            previous_commit_lsn=None,
            now_us=self._context.now_us(),
            snapshot=SNAPSHOT_INCREMENTAL,
        )
        append, read, lsn = described.sink.append, template.read, commit.lsn
        rows = chunk.rows
        if dropped:
            rows = {key: after for key, after in rows.items() if key not in dropped}
        gone = chunk.missing if self.request.deletes and not flight.owed else {}
        respelt = {chunk.respelt[key] for key in gone if key in chunk.respelt}
        for key, after in rows.items():
            if key not in respelt:
                append(key, read(after, lsn))
        deletes = 0
        for key, before in gone.items():
            if key not in dropped and chunk.respelt.get(key) not in dropped:
                append(key, template.delete(before, lsn, 0))
                append(key, None)
                deletes += 1
        # A target may take both spellings of a key for one: the row is newer than the delete of the other.
        for key in respelt:
            if key in rows:
                append(key, read(rows[key], lsn, 1))
        return len(rows), deletes

    def _key_of(self, flight: _Flight, key: bytes) -> Key:
        raw: dict[str, Any] = orjson.loads(key)
        return tuple(raw[column.name] for column in flight.walk.key_columns)

    def _all_read(self) -> bool:
        return self._offset >= len(self._keys) if self.request.keyed else self._exhausted

    def _void(self, why: str) -> None:
        """Read again from the last chunk that was published."""
        self._abandon()
        self._next_s = max(self._next_s, asyncio.get_running_loop().time() + RETRY_S)
        self._write(replace(self.progress, reread=self.progress.reread + 1, reason=why))

    def _abandon(self) -> None:
        self._turn += 1
        flights, self._flights = self._flights, {}
        for flight in flights.values():
            self._context.windows.forget(flight.chunk.window)
        self._rewind()

    def _rewind(self) -> None:
        cursor = self.progress.cursor
        self._exhausted = False
        self._after = None if self.request.keyed else cursor
        self._offset = int(cursor[0]) if self.request.keyed and cursor is not None else 0

    # ---- what is told ----------------------------------------------------------------------------

    def _say(self, reason: str, state: State | None = None) -> None:
        state = state or self.progress.state
        if (reason, state) != (self.progress.reason, self.progress.state):
            self._write(replace(self.progress, reason=reason, state=state))

    def _end(self, state: State, reason: str) -> None:
        self._context.ledger.end(self.run, state, reason)

    def _write(self, progress: Progress) -> None:
        self._context.ledger.write(self.run, progress)

    # ---- what is read ----------------------------------------------------------------------------

    async def _look(self, connection: Connection) -> Walk | None:
        """The table as it is now; None when a person does not want it any more. Raises Refused."""
        request, context = self.request, self._context
        while await self._goes_on():
            table = await backfill_table.find(connection, context.source, request)
            if table is not None:
                await self._outlast_writers(connection, table)
                return await backfill_table.describe(connection, context.relations, table)
            self._say(f"{request.place} is not in its publication yet", State.WAITING)
            await self._rest(BACKOFF_S)
        return None

    async def _outlast_writers(self, connection: Connection, table: catalog.Table) -> None:
        """Rows written before the table was published are not in the stream: wait until they all show.

        A table that has events of this epoch was published long ago. One that the capture has added itself
        had no writers then; one that a person has added may have had some.
        """
        if (table.schema, table.name) in self._context.relations.frozen:
            return
        before = await catalog.writers(connection, table)
        while before & await catalog.writers(connection, table) and await self._goes_on():
            self._say(f"waits for transactions that wrote to {table.qualified} before it was published")
            await self._rest(POLL_S)

    async def _estimate(self, connection: Connection, walk: Walk) -> int:
        if self.request.keyed:
            return len(self._keys)
        return await backfill_table.estimate(connection, walk, self.request.where)
