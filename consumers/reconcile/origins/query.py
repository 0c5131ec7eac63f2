"""A query of a PostgreSQL source: described by the server, checked, and read as a subquery.

Nothing captures it: there is no log to wait for, and nothing that publishes a row again (see settle).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import generators, pq
from psycopg.pq.abc import PGresult

from consumers.reconcile import expressions, fast, settle
from consumers.reconcile.dialects.postgres import printed
from consumers.reconcile.expressions import quote
from consumers.reconcile.mapping import Compared, by_equality
from consumers.reconcile.origins.base import Captured, Logged, Refused, SourceSide
from consumers.reconcile.origins.postgres import settle_casts
from consumers.reconcile.sides import postgres
from consumers.reconcile.sides.base import Order
from consumers.reconcile.sides.query import QueryReading, QuerySide, subquery
from consumers.reconcile.sides.vectors import rendered_side
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow, PostgresSource, QuerySource
from streamer.config.base import nearest
from streamer.errors import ConfigError
from streamer.postgres import catalog
from streamer.postgres.connection import Connection
from streamer.postgres.pgoutput import Relation, RelationColumn

KEYS_SHOWN = 3  # that do not tell rows apart
_SYNTAX_ERROR = "42601"


@dataclass(frozen=True, slots=True)
class Query:
    """`place`: of the config, for messages: `sql` and `key` stand there."""

    name: str
    sql: str
    key: tuple[str, ...]
    place: str


class QueryOrigin:
    """`on`: the source on whose server it runs."""

    def __init__(self, settings: QuerySource, on: PostgresSource) -> None:
        self._query = Query(settings.name, settings.sql, settings.key, f"sources.{settings.name}")
        self._session = postgres.Session(on.url.get_secret_value(), "source")

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def tables(self, flow: Flow) -> AsyncGenerator[Captured | Refused, None]:
        query, session = self._query, self._session
        record = await describe_query(session.connection, query)
        why = await not_told_apart(session, query)
        if why:
            yield Refused(query.name, "", query.name, why)
        else:
            yield QueryTable(session, query, record, await session.server())


class QueryTable:
    order: Order | None = None
    facts: fast.Server | str = "the source's rows are those of a query"

    def __init__(
        self,
        session: postgres.Session,
        query: Query,
        record: SchemaRecord,
        server: postgres.Server,
    ) -> None:
        self.qualified = self.name = query.name
        self.schema = ""
        self.record = record
        self.log: Logged | None = None
        self._session = session
        self._sql = query.sql
        self._server = server

    async def count(self) -> int:
        ((rows,),) = await self._session.rows(f"SELECT count(*) FROM {subquery(self._sql)}")
        return int(rows)

    async def settle(self, compared: Compared) -> None:
        await settle_casts(self._session, compared)
        compared.pairs = [by_equality(pair) if pair.name in compared.key else pair for pair in compared.pairs]
        if self.log is None:
            compared.notes.append(settle.NOTE)

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> SourceSide:
        reading = self._reading(compared, where)
        if compared.made is not None:
            return rendered_side(self._side_of, reading, compared.made)
        return self._side_of(reading)

    def _side_of(self, reading: QueryReading) -> QuerySide:
        return QuerySide(self._session, self.name, reading, self._server)

    def _reading(self, compared: Compared, where: str) -> QueryReading:
        return QueryReading(
            "",
            self.name,
            False,
            expressions.of_source(compared),
            [pair.source for pair in compared.columns],
            [pair.source for pair in compared.key_pairs],
            where=where,
            beside=expressions.beside_source(compared),
            sql=self._sql,
        )


async def describe_query(connection: Connection, query: Query) -> SchemaRecord:
    """Raises ConfigError: it is no query, or does not give its key."""
    where = query.place
    columns = await _columns(connection, query, f"{where}.sql")
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"the query has two columns {name!r}",
                where=f"{where}.sql",
                fix=f"name each with AS; it has: {', '.join(names)}",
            )
    for name in query.key:
        if name not in names:
            raise ConfigError(
                f"the key names {name!r}, which the query does not have",
                where=f"{where}.key",
                fix=f"{nearest(name, names)}; the query has: {', '.join(names)}",
            )
    relation = Relation(0, "", query.name, "d", tuple(columns))
    return await catalog.describe(connection, query.name, relation, None, ())


async def _columns(connection: Connection, query: Query, where: str) -> list[RelationColumn]:
    """As the server describes the query, which is not run for it. What it takes alone and as a subquery is
    one statement that reads: of two it prepares none, and one that writes is no subquery."""
    result = await _described(connection, query.sql, where)
    if result.nparams:
        raise ConfigError("the query has parameters ($1)", where=where, fix="write their values")
    await _described(connection, f"SELECT * FROM {subquery(query.sql)}", where)
    columns = []
    for at in range(result.nfields):
        name = (result.fname(at) or b"").decode()
        columns.append(RelationColumn(name, result.ftype(at), result.fmod(at), name in query.key))
    return columns


async def _described(connection: Connection, sql: str, where: str) -> PGresult:
    pgconn = connection.pgconn
    pgconn.send_prepare(b"", sql.encode())
    _checked(await connection.wait(generators.execute(pgconn)), sql, where)
    pgconn.send_describe_prepared(b"")
    return _checked(await connection.wait(generators.execute(pgconn)), sql, where)


def _checked(results: Sequence[PGresult], sql: str, where: str) -> PGresult:
    (result,) = results
    if result.status != pq.ExecStatus.FATAL_ERROR:
        return result
    error = psycopg.errors.error_from_result(result)
    at = error.diag.statement_position
    sign = sql[int(at) - 1 : int(at)] if at else ";"  # two statements are an error without a place
    if error.sqlstate == _SYNTAX_ERROR and sign == ";":
        what, fix = "the query has a `;`, or more than one statement", "write one SELECT, without `;`"
    else:
        what = f"the server refuses the query: {error.diag.message_primary or error}"
        fix = "write one SELECT that the source's role may run"
    raise ConfigError(what, where=where, fix=fix) from error


async def not_told_apart(session: postgres.Session, query: Query) -> str:
    """Why the key is none: rows with the same one, or without; empty when it is one."""
    names = [quote(name) for name in query.key]
    nulls = " OR ".join(f"{name} IS NULL" for name in names)
    found = await session.rows(
        f"SELECT {', '.join(map(printed, names))}, count(*) FROM {subquery(query.sql)}"
        f" GROUP BY {', '.join(names)} HAVING count(*) > 1 OR {nulls} LIMIT {KEYS_SHOWN}"
    )
    if not found:
        return ""
    shown = "; ".join(f"({_shown(key)}) {count} times" for *key, count in found)
    return (
        f"its key ({', '.join(query.key)}) does not tell the query's rows apart: {shown}\n  -> write a"
        " query that gives each key once (DISTINCT, GROUP BY) and none with NULL, or another"
        f" `{query.place}.key`"
    )


def _shown(key: Sequence[str | None]) -> str:
    return ", ".join("NULL" if text is None else text for text in key)
