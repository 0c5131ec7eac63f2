"""A processor's rows as the query that they stand for, and the fence from the source to them (H19).

    the source's log, and the capture's position, as for any table of the source that the query runs on
    the same of the other sources that the rows come from
    of each processor on the way: its committed offsets pass what its inputs held, then what its hops held
    then its `out`, which the target's checkpoints pass

A key that is parked in a processor is not in the rows that it counts for, and which these are is not known:
while one is, a difference is told as parked, and not as drift. No backfill brings derived rows.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from consumers.apply.schemas import Schemas
from consumers.processors.operations import wait_through
from consumers.reconcile import fence
from consumers.reconcile.expressions import quote
from consumers.reconcile.fence import NotPassed, Patience
from consumers.reconcile.mapping import Compared
from consumers.reconcile.origins.base import Captured, Moves, Refused, SourceSide
from consumers.reconcile.origins.beside import Beside
from consumers.reconcile.origins.query import Query, QueryTable, describe_query, not_told_apart
from consumers.reconcile.sides import postgres
from consumers.reconcile.sides.base import Key, Row
from consumers.reconcile.sides.query import QueryReading, QuerySide, subquery
from streamer.changes.backfill import Request
from streamer.changes.lsn import format_lsn
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import clean, status_topic
from streamer.commands.brokers import with_brokers
from streamer.config import Config, Flow
from streamer.config.base import nearest
from streamer.config.derived import processor_of, query_source, sources_of, upstream
from streamer.status import StatusReader, now_us

# A query's rows have no stamp of their writes: a row that was written twice to the same values in between
# looks still, and what the target had meanwhile must not show so many times in a row.
ROUNDS = 3


class DerivedOrigin:
    """`job`: of the config, which has the query."""

    def __init__(self, config: Config, flow: Flow, job: str) -> None:
        processor = processor_of(config, flow)
        assert processor is not None
        self._config = config
        self._processor = processor
        self._job = job
        self._on = query_source(config, job)
        self._session = postgres.Session(self._on.url.get_secret_value(), "source")
        others = [name for name in sources_of(config.processors, processor) if name != self._on.name]
        self._beside = Beside(with_brokers(config), others)

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._beside.close()
        await self._session.close()

    async def tables(self, flow: Flow) -> AsyncGenerator[Captured | Refused, None]:
        config, session = with_brokers(self._config), self._session
        sql = config.reconcile[self._job].sql
        assert sql is not None
        topic = clean(flow.source_pattern)
        name = topic.partition(".")[2] or topic
        derived = await self._derived(config, name)
        key = config.processors[self._processor].key or (derived.key_columns if derived else ())
        if not key:
            place = f"processors.{self._processor}.key"
            yield Refused(topic, "", name, f"nothing is derived yet, and its key not known: write {place}")
            return
        query = Query(name, sql, key, f"reconcile.{self._job}")
        record = replace(await describe_query(session.connection, query), source=self._processor)
        columns = [column.name for column in derived.columns] if derived else []
        why = await not_told_apart(session, query) or await not_derived(session, query, record, columns)
        if why:
            yield Refused(topic, "", name, why)
            return
        log = DerivedLog(session, self._on.name, topic, Between(config, self._processor, self._beside))
        yield DerivedTable(session, query, record, await session.server(), log, columns)

    async def _derived(self, config: Config, table: str) -> SchemaRecord | None:
        """The table as its last rows are; None: nothing is derived yet."""
        kafka = config.kafka
        schemas = Schemas(kafka.brokers, kafka.security, config.name)
        try:
            await schemas.open()
            records = await schemas.of_source(self._processor)
        finally:
            await schemas.close()
        return next((record for record in reversed(records) if record.table == table), None)


async def not_derived(
    session: postgres.Session, query: Query, record: SchemaRecord, derived: Sequence[str]
) -> str:
    """Why the query is not of these rows: it has values in a column that they do not have; empty when it is.
    A column that has been null in all of them is not theirs yet."""
    for name in [column.name for column in record.columns if derived and column.name not in derived]:
        ((count,),) = await session.rows(f"SELECT count({quote(name)}) FROM {subquery(query.sql)}")
        if int(count or 0):
            return (
                f"the query gives a column {name!r}, and the derived rows have {', '.join(derived)}\n  ->"
                f" {nearest(name, derived)} Name it with AS in {query.place}.sql, or leave it out; where the"
                " agent gives it from now on, wait for its first row"
            )
    return ""


class DerivedTable(QueryTable):
    """A query with a stream behind it. `derived`: the columns that the rows have, as far as is known."""

    def __init__(
        self,
        session: postgres.Session,
        query: Query,
        record: SchemaRecord,
        server: postgres.Server,
        log: DerivedLog,
        derived: Sequence[str],
    ) -> None:
        super().__init__(session, query, record, server)
        self.qualified = log.topic
        self.log = log
        self._derived = derived

    async def settle(self, compared: Compared) -> None:
        await super().settle(compared)
        given = {column.name for column in self.record.columns}
        if left := [name for name in self._derived if name not in given]:
            compared.notes.append(f"the query does not give {', '.join(left)}: not compared")

    def _side_of(self, reading: QueryReading) -> QuerySide:
        return DerivedSide(self._session, self.name, reading, self._server)


class DerivedSide(QuerySide):
    """Rows whose values are their stamps: what reads otherwise than before was written."""

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        found = await super().rows(keys)
        return {key: Row(row.texts, repr(row.texts)) for key, row in found.items()}


class DerivedLog:
    """See base.Logged: the log of the source that the query runs on."""

    request: Callable[[str], Request] | None = None

    def __init__(self, session: postgres.Session, source: str, topic: str, between: Between) -> None:
        self.source = source
        self.topic = topic
        self.hops: fence.Hops | None = between
        self._between = between
        self._session = session

    async def insert_lsn(self) -> int:
        return await self._session.insert_lsn()

    async def holds_commits(self) -> bool:
        return await self._session.holds_commits() or await self._between.holds_commits()

    def moves(self, side: SourceSide) -> Moves:
        return Moves(ROUNDS)

    def shown(self, lsn: int) -> str:
        return format_lsn(lsn)


class Between:
    """See fence.Hops: the other sources, then the processors on the way, the one that is read by the next
    first. `config` names the brokers."""

    def __init__(
        self,
        config: Config,
        processor: str,
        beside: Beside,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._beside = beside
        self._names = upstream(config.processors, processor)
        self._clock_s = clock_s

    async def pass_(self, stall_s: float) -> None:
        await self._beside.pass_(stall_s)
        for name in self._names:
            await self._pass(name, Patience(self._clock_s, stall_s))

    async def holds_commits(self) -> bool:
        return await self._beside.holds_commits()

    async def _pass(self, name: str, patience: Patience) -> None:
        if not await wait_through(self._config, name, stopped=lambda at: not patience.has_left(at)):
            raise NotPassed(
                f"the processor {name} has not handled what its inputs hold, and did not move for"
                f" {patience.still_s:.0f} s\n  -> start it: `tailrace process {name}` (or `tailrace run`);"
                " `tailrace status` says what it waits for"
            )

    async def parked(self) -> int:
        """As the workers' heartbeats say, which have passed the fence a moment ago."""
        kafka = self._config.kafka
        topic = status_topic(self._config.name)
        async with StatusReader(kafka.brokers, kafka.security, topic) as reader:
            await reader.poll()
            at_us = now_us()
            records = [r for r in reader.records() if r.kind == "process" and r.name in self._names]
            return sum(
                int(r.detail.get("parked") or 0) for r in records if not r.ended and not r.silent(at_us)
            )
