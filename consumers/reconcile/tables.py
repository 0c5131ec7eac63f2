"""A flow's table on both sides: what the catalogues say of it, and the two sides that read it.

Here it is decided how rows are hashed (the servers' own function or canonical text) and how a table is cut
(ranges of the key or buckets). What is compared with what is the mapping's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from consumers.reconcile import fast
from consumers.reconcile import mapping as maps
from consumers.reconcile.fast import COLLATION_FACTS, SERVER_FACTS, Collation
from consumers.reconcile.forms import Held
from consumers.reconcile.mapping import Compared, Incomparable
from consumers.reconcile.sides import postgres, sqlite
from consumers.reconcile.sides.base import Side
from consumers.reconcile.sides.postgres import PostgresSide, literal, quote
from consumers.reconcile.sides.sqlite import SqliteSide
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.postgres import catalog
from streamer.postgres.catalog import Table
from streamer.postgres.connection import Connection
from streamer.postgres.pgoutput import Relation, RelationColumn

FAST, CANONICAL = "fast", "canonical"

_OID = """SELECT c.oid::bigint, c.relkind = 'p' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname = {} AND c.relname = {}"""
_UNIQUE = """SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k) FROM pg_index i
WHERE i.indrelid = {} AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL"""


@dataclass(frozen=True, slots=True)
class Sides:
    """`why_not_fast`: where the path is canonical. `ordered`: cut by ranges; else by buckets."""

    source: PostgresSide
    target: Side
    record: SchemaRecord
    compared: Compared
    ordered: bool
    why_not_fast: str | None

    @property
    def path(self) -> str:
        return FAST if self.why_not_fast is None else CANONICAL


@dataclass(frozen=True, slots=True)
class Source:
    """The source's table, described as its capture does."""

    session: postgres.Session
    table: Table
    record: SchemaRecord
    server: postgres.Server
    facts: fast.Server


class Store(Protocol):
    """A target that holds tables; one session."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def has(self, schema: str, name: str) -> bool: ...

    async def sides(self, source: Source, flow: Flow, *, where: str, only: Collection[str]) -> Sides:
        """Raises Incomparable, ConfigError."""


async def describe_source(session: postgres.Session, source: str, table: Table) -> Source:
    record = await _describe(session.connection, source, table)
    name = f"{quote(table.schema)}.{quote(table.name)}"
    return Source(session, table, record, await session.server(), await _facts(session, name))


async def _describe(connection: Connection, source: str, table: Table) -> SchemaRecord:
    flagged = set(await catalog.identity_columns(connection, table))
    columns = tuple(
        RelationColumn(name, oid, typmod, name in flagged)
        for name, oid, typmod in await catalog.published_columns(connection, table)
    )
    relation = Relation(table.oid, table.schema, table.name, table.identity, columns)
    primary = table.primary_key if table.identity == "f" else ()
    return await catalog.describe(connection, source, relation, None, primary)


async def _facts(session: postgres.Session, name: str) -> fast.Server:
    ((major, encoding, probe),) = await session.rows(SERVER_FACTS)
    if major < fast.OLDEST_MAJOR:  # no versions of collations: names and determinism only
        return fast.Server(major, encoding, probe, {})
    found = await session.rows(COLLATION_FACTS.replace("$1", literal(name)))
    return fast.Server(major, encoding, probe, {column: Collation(*rest) for column, *rest in found})


def _expressions(compared: Compared, *, of_source: bool) -> dict[str, str]:
    """The side's own columns, by the names that both have in the comparison."""
    found = {}
    for pair in compared.pairs:
        if not of_source:
            found[pair.name] = quote(pair.target_name)
        elif pair.name in compared.constants:
            found[pair.name] = f"{literal(compared.constants[pair.name])}::text"
        else:
            found[pair.name] = quote(pair.name)
    return found


def _live(compared: Compared) -> str:
    """Which of the target's rows are the flow's, and not deleted."""
    conditions = [f"{quote(name)} = {literal(text)}" for name, text in compared.own.items()]
    if compared.soft is not None:
        conditions.append(f"{quote(compared.soft)} IS NULL")
    return " AND ".join(conditions)


def _stamp(names: Collection[str], glue: str) -> str:
    if not set(maps.VERSION) <= set(names):
        return "''"
    return glue.join(f"coalesce({quote(name)}, 0)" for name in maps.VERSION)


def _source_side(source: Source, compared: Compared, where: str, *, fast_: bool) -> PostgresSide:
    key = [pair.source for pair in compared.key_pairs]
    reading = postgres.Reading(
        source.table.schema,
        source.table.name,
        not source.table.partitioned,
        _expressions(compared, of_source=True),
        [pair.source for pair in compared.pairs],
        key,
        "xmin",
        where=where,
    )
    return PostgresSide(source.session, reading, source.server, server_hash=fast_)


class PostgresStore:
    def __init__(self, url: str) -> None:
        self._session = postgres.Session(url, "target")

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def has(self, schema: str, name: str) -> bool:
        return bool(await self._session.rows(_OID.format(literal(schema), literal(name))))

    async def sides(self, source: Source, flow: Flow, *, where: str, only: Collection[str]) -> Sides:
        session = self._session
        schema, name = flow.place(source.table.schema, source.table.name)
        ((oid, partitioned),) = await session.rows(_OID.format(literal(schema), literal(name)))
        table = Table(schema, name, oid, "n", (), False, partitioned)
        columns = (await _describe(session.connection, source.record.source, table)).columns
        held: dict[str, Held | None] = {column.name: Held(column.kind, column.type) for column in columns}
        unique = [frozenset(names) for (names,) in await session.rows(_UNIQUE.format(oid))]
        there = maps.Target(held, unique)
        compared = maps.compared_columns(flow, source.record, there, only)
        await self._check_casts(source.session, compared)
        facts = await _facts(session, f"{quote(schema)}.{quote(name)}")
        ordered = maps.ordered_alike(compared, source.facts.collations, facts.collations)
        why_not = fast.why_not(source.facts, facts, compared.pairs)
        reading = postgres.Reading(
            schema,
            name,
            not partitioned,
            _expressions(compared, of_source=False),
            [pair.target for pair in compared.pairs],
            [pair.target for pair in compared.key_pairs],
            _stamp(held, " || '.' || "),
            live=_live(compared),
            where=where,
        )
        server = await session.server()
        side = PostgresSide(session, reading, server, server_hash=why_not is None)
        ours = _source_side(source, compared, where, fast_=why_not is None)
        return Sides(ours, side, source.record, compared, ordered, why_not)

    async def _check_casts(self, source: postgres.Session, compared: Compared) -> None:
        """Types that one of the servers does not know, and casts that it does not have."""
        for pair in list(compared.pairs):
            cast = pair.source.form.cast
            if cast is not None and not await _knows(source, cast):
                maps.without(compared, pair, f"the source does not know the type {cast}")
            elif pair.source.form.direct and not await _casts(source, pair.source.held.type, cast or ""):
                compared.pairs[compared.pairs.index(pair)] = maps.by_text(pair)
        if any(name not in {pair.name for pair in compared.pairs} for name in compared.key):
            raise Incomparable("a column of its key is of a type that the source does not know")


async def _knows(session: postgres.Session, type_: str) -> bool:
    ((found,),) = await session.rows(f"SELECT to_regtype({literal(type_)}) IS NOT NULL")
    return bool(found)


async def _casts(session: postgres.Session, from_: str, to: str) -> bool:
    try:
        await session.connection.execute(f"SELECT NULL::{from_}::{to}".encode())
    except psycopg.errors.CannotCoerce:
        return False
    return True


class SqliteStore:
    def __init__(self, session: sqlite.Session) -> None:
        self._session = session

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def has(self, schema: str, name: str) -> bool:
        return await self._spelt(name) is not None

    async def _spelt(self, name: str) -> str | None:
        """The table's name: SQLite ignores case."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(?)"
        found = await self._session.run(lambda line: line.execute(query, (name,)).fetchone())
        return None if found is None else str(found[0])

    async def sides(self, source: Source, flow: Flow, *, where: str, only: Collection[str]) -> Sides:
        name = await self._spelt(flow.place(source.table.schema, source.table.name)[1])
        assert name is not None
        columns, unique = await self._session.run(lambda line: _sqlite_table(line, name))
        there = maps.Target(_known_as(flow, source.record, columns), unique)
        compared = maps.compared_columns(flow, source.record, there, only)
        ordered = maps.ordered_alike(compared, source.facts.collations, None)
        reading = sqlite.Reading(
            name,
            _expressions(compared, of_source=False),
            [pair.target.form for pair in compared.pairs],
            [at for at, pair in enumerate(compared.pairs) if pair.name in compared.key],
            _stamp(columns, " || '.' || "),
            live=_live(compared),
            where=where,
        )
        ours = _source_side(source, compared, where, fast_=False)
        side = SqliteSide(self._session, reading)
        return Sides(ours, side, source.record, compared, ordered, "the target is SQLite")


def _sqlite_table(line: sqlite3.Connection, name: str) -> tuple[list[str], list[frozenset[str]]]:
    """Columns that are no generated ones, and those of each unique index."""
    found: Sequence[tuple[Any, ...]] = line.execute(f"PRAGMA table_xinfo({quote(name)})").fetchall()
    unique = [frozenset(str(row[1]) for row in found if row[5])]
    for _, index, is_unique, _, partial in line.execute(f"PRAGMA index_list({quote(name)})").fetchall():
        if is_unique and not partial:
            parts = line.execute(f"PRAGMA index_info({quote(index)})").fetchall()
            unique.append(frozenset(str(part[2]) for part in parts))
    return [str(row[1]) for row in found if row[6] == 0], unique


def _known_as(flow: Flow, record: SchemaRecord, columns: Sequence[str]) -> Mapping[str, Held | None]:
    """The table's columns, in the spelling of the flow where only the case differs."""
    lower = {name.lower() for name in columns}
    spelt = {column.name for column in record.columns} | set(flow.columns)
    spelt |= {rule if isinstance(rule, str) else rule.to or "" for rule in flow.columns.values()}
    return dict.fromkeys([name for name in spelt if name.lower() in lower] + list(columns))
