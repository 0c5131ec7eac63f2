"""A PostgreSQL target's tables, by one read-only session."""

from __future__ import annotations

from dataclasses import dataclass

from consumers.reconcile import expressions, fast, mapping
from consumers.reconcile.expressions import literal, quote
from consumers.reconcile.forms import Held
from consumers.reconcile.mapping import Compared
from consumers.reconcile.origins.postgres import describe, server_facts
from consumers.reconcile.sides import postgres
from consumers.reconcile.sides.base import Order, Side
from consumers.reconcile.sides.postgres import PostgresSide
from consumers.reconcile.stores.base import Kept
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.postgres.catalog import Table

_OID = """SELECT c.oid::bigint, c.relkind = 'p' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname = {} AND c.relname = {}"""
_NULLABLE = "SELECT attname::text FROM pg_attribute WHERE attrelid = {} AND attnum > 0 AND NOT attnotnull"
_UNIQUE = """SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k) FROM pg_index i
WHERE i.indrelid = {} AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL"""


class PostgresStore:
    def __init__(self, url: str) -> None:
        self._session = postgres.Session(url, "target")

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def has(self, schema: str, name: str) -> bool:
        return bool(await self._session.rows(_OID.format(literal(schema), literal(name))))

    async def table(self, flow: Flow, record: SchemaRecord, schema: str, name: str) -> Kept:
        return await self.described(record, schema, name)

    async def described(self, record: SchemaRecord, schema: str, name: str) -> PostgresKept:
        session = self._session
        ((oid, partitioned),) = await session.rows(_OID.format(literal(schema), literal(name)))
        table = Table(schema, name, oid, "n", (), False, partitioned)
        columns = (await describe(session.connection, record.source, table, as_target=True)).columns
        held: dict[str, Held | None] = {column.name: Held(column.kind, column.type) for column in columns}
        unique = [frozenset(names) for (names,) in await session.rows(_UNIQUE.format(oid))]
        nullable = frozenset(name for (name,) in await session.rows(_NULLABLE.format(oid)))
        facts = await server_facts(session, f"{quote(schema)}.{quote(name)}")
        return PostgresKept(
            session, table, mapping.Target(held, unique, nullable=nullable), facts, await session.server()
        )


@dataclass(frozen=True, slots=True)
class PostgresKept:
    session: postgres.Session
    table: Table
    there: mapping.Target
    facts: fast.Server | str
    server: postgres.Server

    @property
    def order(self) -> Order | None:
        return Order(self.facts.collations) if isinstance(self.facts, fast.Server) else None

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> Side:
        reading = postgres.Reading(
            self.table.schema,
            self.table.name,
            not self.table.partitioned,
            expressions.of_target(compared),
            [pair.target for pair in compared.pairs],
            [pair.target for pair in compared.key_pairs],
            expressions.stamp(self.there.columns),
            live=expressions.live(compared),
            where=where,
            beside=expressions.beside_target(compared),
        )
        return PostgresSide(self.session, reading, self.server, server_hash=server_hash)
