"""The stream at work: read, flush, confirm, watch; until a stop or the first error.

Owns the timing between reading and publishing. Reading goes on while a flush is in flight; what is
read ahead is bounded by bytes. An LSN is confirmed to the server only when the position that holds
it is in Kafka (H4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from streamer.changes.position import Position
from streamer.errors import SourceUnavailable, TailraceError
from streamer.postgres.connection import Connection, CopyStream, translate
from streamer.postgres.pgoutput import Message, Relation
from streamer.postgres.relations import Relations
from streamer.postgres.replication_messages import Keepalive, parse, status_update
from streamer.postgres.transactions import Transactions
from streamer.postgres.watch import Watch
from streamer.publisher import Publisher
from streamer.stopping import end_tasks

LOOK_S = 1.0
INSPECT_S = 2.0  # a table made by a migration is seen before it has rows, mostly
FEEDBACK_S = 1.0  # far below wal_sender_timeout (60 s)
FEEDBACK_MIN_US = 100_000  # a confirm a flush would cost more than it is worth
SILENCE_LIMIT_S = 75.0  # a walsender speaks at least every wal_sender_timeout / 2
FLUSH_BYTES = 512 * 1024  # under load: big enough that a Kafka transaction's cost does not count
WAITING_LIMIT_BYTES = 16 * 2**20  # rows read ahead of Kafka; bounds this process's memory
MESSAGES_BETWEEN_PAUSES = 256  # how long the stream may run before other tasks get a turn
IDLE_FLUSH_S = 1.0  # how often an idle advance is recorded
STOP_FLUSH_S = 6.0  # SIGTERM: the flush in hand; with the rest it stays under 10 s
FINISH_S = 2.0

_XLOG_DATA = ord("w")


@dataclass(slots=True)
class Progress:
    """What `status` shows of the stream."""

    recorded: Position
    drained: bool = False
    flushes: int = 0
    read_us: int = 0  # when the server last said anything


class Stream:
    """Copies a running COPY BOTH into the publisher."""

    def __init__(
        self,
        copy: CopyStream,
        catalog: Connection,
        transactions: Transactions,
        relations: Relations,
        publisher: Publisher,
        watch: Watch,
        *,
        recorded: Position,
        heartbeat_s: float,
        now_us: Callable[[], int],
        where: str,
    ) -> None:
        self._copy = copy
        self._catalog = catalog
        self._stopping = False
        self._flushed_us = 0
        self._transactions = transactions
        self._relations = relations
        self._publisher = publisher
        self._watch = watch
        self._heartbeat_s = heartbeat_s
        self._now_us = now_us
        self._where = where
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._feedback_us = 0
        self.progress = Progress(recorded=recorded, read_us=now_us())

    async def run(self, stop: asyncio.Event, *beside: Callable[[], Coroutine[None, None, None]]) -> None:
        """Until `stop` (then everything in hand is flushed and confirmed) or the first error.

        `beside`: what runs as long as the stream does.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_loop(), name="flush")
            others = [
                tasks.create_task(self._translated(self._read()), name="read the stream"),
                tasks.create_task(self._translated(self._feedback_loop()), name="feedback"),
                tasks.create_task(self._watch_loop(), name="watch the source"),
                *(tasks.create_task(work(), name="beside the stream") for work in beside),
            ]
            await stop.wait()
            self._stopping = True  # the flush in hand is finished, not cut
            self._work.set()
            await end_tasks(*others)
        await self._translated(self._finish())

    def wake(self) -> None:
        """Something was given to the publisher that no message of the stream has brought."""
        self._work.set()

    @property
    def lag_bytes(self) -> int:
        """WAL that the server has written and Kafka does not have, by the last look."""
        return max(0, self._watch.observed.server_lsn - self.progress.recorded.lsn)

    async def _translated(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except psycopg.Error as error:
            raise translate(error, self._where) from error

    # ---- reading -------------------------------------------------------------------------------

    async def _read(self) -> None:
        copy, transactions, publisher, progress = (
            self._copy,
            self._transactions,
            self._publisher,
            self.progress,
        )
        take, feed = copy.take, transactions.feed
        budget = MESSAGES_BETWEEN_PAUSES
        while True:
            try:
                data = take()
            except EOFError:
                await self._ended()
            if data is None:
                progress.drained = True
                self._work.set()
                budget = MESSAGES_BETWEEN_PAUSES
                await copy.readable()
                progress.drained = False
                progress.read_us = self._now_us()
                continue
            raw = bytes(data)
            if raw[0] == _XLOG_DATA:
                asked = feed(raw)
                if asked is not None:
                    await self._answer(asked, raw)
            else:
                self._keepalive(raw)
            budget -= 1
            if budget <= 0:
                budget = MESSAGES_BETWEEN_PAUSES
                progress.read_us = self._now_us()
                transactions.new_batch()
                waiting = publisher.waiting_bytes
                if waiting >= FLUSH_BYTES:
                    self._work.set()
                while publisher.waiting_bytes >= WAITING_LIMIT_BYTES:
                    self._room.clear()
                    await self._room.wait()
                await asyncio.sleep(0)

    async def _answer(self, asked: Relation | Message, raw: bytes) -> None:
        transactions = self._transactions
        if isinstance(asked, Relation):
            transactions.define(asked.oid, await self._relations.captured(self._catalog, asked))
        else:
            transactions.message_sink = await self._relations.message_sink()
            transactions.feed(raw)

    def _keepalive(self, raw: bytes) -> None:
        message = parse(raw)
        assert isinstance(message, Keepalive)
        self._transactions.keepalive(message.wal_end)
        if message.reply_requested:
            self._feedback()

    async def _ended(self) -> None:
        with suppress(psycopg.errors.AdminShutdown):
            await self._copy.result()
        raise SourceUnavailable(
            "the server ended the stream", where=self._where, fix="nothing: it is started again"
        )

    # ---- flushing ------------------------------------------------------------------------------

    async def _flush_loop(self) -> None:
        publisher, progress = self._publisher, self.progress
        while not self._stopping:
            with suppress(TimeoutError):
                # Not wait_for: until Python 3.12 it loses a cancellation that meets the event's being set.
                async with asyncio.timeout(IDLE_FLUSH_S):
                    await self._work.wait()
            self._work.clear()
            waiting = publisher.waiting_records
            if waiting or self._idle_advance_due():
                await self._flush()
                if publisher.waiting_records and (progress.drained or publisher.waiting_bytes >= FLUSH_BYTES):
                    self._work.set()

    def _idle_advance_due(self) -> bool:
        position = self._transactions.lsn
        due_us = self._flushed_us + int(IDLE_FLUSH_S * 1_000_000)
        return position > self.progress.recorded.lsn and self._now_us() >= due_us

    async def _flush(self) -> None:
        position = self._transactions.position()
        recorded = await self._publisher.flush(position)  # takes the buffers before its first await
        self._flushed_us = self._now_us()
        self.progress.recorded = recorded
        self.progress.flushes += 1
        self._room.set()
        if self._flushed_us - self._feedback_us >= FEEDBACK_MIN_US:
            self._feedback()

    def _feedback(self) -> None:
        """Confirm what is in Kafka, as far as it need not be shown again."""
        self._feedback_us = self._now_us()
        lsn = self._transactions.confirmable(self.progress.recorded.lsn)
        self._copy.put(status_update(lsn, now_us=self._feedback_us))

    async def _feedback_loop(self) -> None:
        while True:
            await asyncio.sleep(FEEDBACK_S)
            self._feedback()
            silent_us = self._now_us() - self.progress.read_us
            if self.progress.drained and silent_us > SILENCE_LIMIT_S * 1_000_000:
                raise SourceUnavailable(
                    f"the server has said nothing for {silent_us // 1_000_000} s",
                    where=self._where,
                    fix="look at the network between here and the source; a new connection is tried",
                )

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        next_heartbeat = loop.time() + self._heartbeat_s
        next_inspect = 0.0
        events = self._transactions.events
        while True:
            await self._look()
            now = loop.time()
            if now >= next_heartbeat:
                next_heartbeat = now + self._heartbeat_s
                if self._transactions.events == events:
                    await self._watch.heartbeat()
                events = self._transactions.events
            if now >= next_inspect:
                next_inspect = now + INSPECT_S
                await self._watch.inspect(self._transactions.lsn)
                self._publisher.add_ground(self._watch.drift.take_fresh())
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        windows = self._transactions.windows
        held = windows.confirm_limit
        await self._watch.look(self._now_us())
        windows.look(self._watch.snapshot)
        if held is not None and windows.confirm_limit != held:
            self._feedback()

    # ---- stopping ------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Flush what is in hand, confirm it, and let the server read the confirm."""
        try:
            async with asyncio.timeout(STOP_FLUSH_S):
                await self._flush()
            with suppress(TailraceError, TimeoutError):  # what no snapshot was seen to see is not confirmed
                async with asyncio.timeout(FINISH_S / 2):
                    await self._look()
            self._feedback()
            async with asyncio.timeout(FINISH_S):
                await self._copy.finish()
        except TimeoutError:
            return  # nothing is lost: what is not confirmed is sent again
