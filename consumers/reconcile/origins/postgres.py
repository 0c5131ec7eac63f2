"""Tables of a PostgreSQL source: described as the capture does, read by one session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from consumers.reconcile import expressions, fast, fence
from consumers.reconcile import mapping as maps
from consumers.reconcile.expressions import literal, quote
from consumers.reconcile.fast import COLLATION_FACTS, SERVER_FACTS, Collation
from consumers.reconcile.mapping import Compared, Incomparable
from consumers.reconcile.origins.base import Captured, Logged, Moves, Refused, SourceSide
from consumers.reconcile.sides import postgres
from consumers.reconcile.sides.base import Order
from consumers.reconcile.sides.postgres import PostgresSide
from consumers.reconcile.sides.vectors import rendered_side
from consumers.targets.postgres_catalog import casts_directly
from streamer.changes.backfill import Request
from streamer.changes.lsn import format_lsn
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic
from streamer.config import Flow, PostgresSource, unbuilt_table
from streamer.postgres import catalog
from streamer.postgres.catalog import Table, list_tables
from streamer.postgres.connection import Connection
from streamer.postgres.pgoutput import Relation, RelationColumn


class PostgresOrigin:
    def __init__(self, settings: PostgresSource) -> None:
        self._settings = settings
        self._session = postgres.Session(settings.url.get_secret_value(), "source")

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def tables(self, flow: Flow) -> AsyncGenerator[Captured | Refused, None]:
        settings, session = self._settings, self._session
        for table in await list_tables(session.connection, settings):
            if not flow.takes(table.schema, table.name):
                continue
            unbuilt = unbuilt_table(settings, table.schema, table.name)
            if unbuilt:
                yield Refused(table.qualified, table.schema, table.name, f"it is not captured: {unbuilt[0]}")
                continue
            found: Captured | Refused
            try:
                found = await describe_table(session, settings.name, table, settings.publication.name)
            except postgres.QueryRefused as error:
                found = Refused(table.qualified, table.schema, table.name, str(error))
            yield found


async def describe_table(
    session: postgres.Session, source: str, table: Table, publication: str = ""
) -> PostgresTable:
    """`publication`: of the capture's, by which it is known whether the table is captured."""
    record = await describe(session.connection, source, table)
    compared_lsn = await session.insert_lsn() if table.partitioned else 0  # asked for partitions only
    name = f"{quote(table.schema)}.{quote(table.name)}"
    log = PostgresLog(session, record, compared_lsn)
    facts = await server_facts(session, name)
    return PostgresTable(session, table, record, log, await session.server(), facts, publication)


async def describe(
    connection: Connection, source: str, table: Table, *, as_target: bool = False
) -> SchemaRecord:
    flagged = set(await catalog.identity_columns(connection, table))
    columns = tuple(
        RelationColumn(name, oid, typmod, name in flagged)
        for name, oid, typmod in await catalog.published_columns(connection, table, as_target=as_target)
    )
    relation = Relation(table.oid, table.schema, table.name, table.identity, columns)
    primary = table.primary_key if table.identity == "f" else ()
    return await catalog.describe(connection, source, relation, None, primary, as_target=as_target)


async def server_facts(session: postgres.Session, name: str) -> fast.Server:
    """`name`: of a table, quoted."""
    ((major, encoding, probe),) = await session.rows(SERVER_FACTS)
    if major < fast.OLDEST_MAJOR:  # no versions of collations: names and determinism only
        return fast.Server(major, encoding, probe, {})
    found = await session.rows(COLLATION_FACTS.replace("$1", literal(name)))
    return fast.Server(major, encoding, probe, {column: Collation(*rest) for column, *rest in found})


class PostgresLog:
    """See base.Logged. A place is an LSN. `compared_lsn`: of before the table was looked at."""

    def __init__(self, session: postgres.Session, record: SchemaRecord, compared_lsn: int) -> None:
        self.topic = data_topic(record.source, record.schema, record.table)
        self.source = record.source
        self.hops: fence.Hops | None = None
        self.request: Callable[[str], Request] | None = self._request
        self._session = session
        self._record = record
        self._compared_lsn = compared_lsn

    async def insert_lsn(self) -> int:
        return await self._session.insert_lsn()

    async def holds_commits(self) -> bool:
        return await self._session.holds_commits()

    def moves(self, side: SourceSide) -> Moves:
        return Moves()  # xmin tells

    def shown(self, lsn: int) -> str:
        return format_lsn(lsn)

    def _request(self, run: str) -> Request:
        record, lsn = self._record, self._compared_lsn
        return Request(run, record.source, schema=record.schema, table=record.table, compared_lsn=lsn)


class PostgresTable:
    def __init__(
        self,
        session: postgres.Session,
        table: Table,
        record: SchemaRecord,
        log: Logged,
        server: postgres.Server,
        facts: fast.Server,
        publication: str,
    ) -> None:
        self.qualified = table.qualified
        self.schema = table.schema
        self.name = table.name
        self.record = record
        self.order: Order | None = Order(facts.collations)
        self.facts: fast.Server | str = facts
        self.log: Logged | None = log
        self._session = session
        self._table = table
        self._server = server
        self._publication = publication

    async def count(self) -> int:
        wanted = catalog.Publications(self._publication, ())
        present = await catalog.publication_tables(self._session.connection, wanted.name, wanted.inserts_name)
        if present and self.qualified not in set().union(*present.values()):
            raise Incomparable(
                "it is in no publication of the capture, which has sent nothing of it; `tailrace status` says"
                " how it is added",
                meant=True,
            )
        relation = f"{quote(self._table.schema)}.{quote(self._table.name)}"
        only = "" if self._table.partitioned else "ONLY "
        ((rows,),) = await self._session.rows(f"SELECT count(*) FROM {only}{relation}")
        return int(rows)

    async def settle(self, compared: Compared) -> None:
        await settle_casts(self._session, compared)

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> SourceSide:
        reading = postgres.Reading(
            self._table.schema,
            self._table.name,
            not self._table.partitioned,
            expressions.of_source(compared),
            [pair.source for pair in compared.columns],
            [pair.source for pair in compared.key_pairs],
            "xmin",
            live=expressions.there(compared),
            where=where,
            beside=expressions.beside_source(compared),
        )
        if compared.made is not None:
            return rendered_side(
                lambda read: PostgresSide(self._session, read, self._server), reading, compared.made
            )
        return PostgresSide(self._session, reading, self._server, server_hash=server_hash)


async def settle_casts(session: postgres.Session, compared: Compared) -> None:
    """Types that the server does not know, and casts that it does not have. Raises Incomparable."""
    for pair in list(compared.pairs):
        cast = pair.source.form.cast
        if cast is not None and not await _knows(session, cast):
            maps.without(compared, pair, f"the source does not know the type {cast}")
        elif (via := pair.source.form.via) is not None:
            if not await _knows(session, via):
                via = None  # the target's own, such as a domain: the column's type says what it holds
            held = pair.source.held
            direct = await casts_directly(session.connection, held.type, held.kind, via or cast or "")
            compared.pairs[compared.pairs.index(pair)] = maps.settled(pair, via=via, direct=direct)
    if any(name not in {pair.name for pair in compared.pairs} for name in compared.key):
        raise Incomparable("a column of its key is of a type that the source does not know")


async def _knows(session: postgres.Session, type_: str) -> bool:
    ((found,),) = await session.rows(f"SELECT to_regtype({literal(type_)}) IS NOT NULL")
    return bool(found)
