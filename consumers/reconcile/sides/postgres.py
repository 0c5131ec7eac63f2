"""A Postgres table as a side: one connection, read-only, with a limit on every statement.

Rows are read by way of a subquery that gives the target's columns the source's names, so that both sides
take the same condition. A range is found by the key's index. Where parts touch and the key is one column
without a collation, one scan serves all of them, and parallel workers share it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any, cast

import psycopg
from psycopg import errors

from consumers.reconcile import fast
from consumers.reconcile.canonical import row_text as text_of_key
from consumers.reconcile.dialects import postgres as dialect
from consumers.reconcile.dialects.postgres import RowHash as HashSql
from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.digest import EMPTY, RangeDigest, RowHash
from consumers.reconcile.expressions import bracketed
from consumers.reconcile.groups import GROUPS_LIMIT, Counts, Grouping, Window
from consumers.reconcile.sides.base import (
    KEY_HASH_HEX,
    Bucket,
    Key,
    KeyRange,
    Part,
    Plan,
    Row,
    by_key,
    ranges_between,
)
from streamer.changes.kinds import ARRAY
from streamer.changes.lsn import parse_lsn
from streamer.errors import ConfigError, SourceUnavailable, TailraceError, TargetUnavailable
from streamer.postgres.connection import Connection, connect, policies_cure, translate
from streamer.postgres.watch import HEARTBEAT_PREFIX

APPLICATION = "tailrace reconcile"
STATEMENT_TIMEOUT_S = 300  # a piece of a million rows takes seconds; a scan without an index is given up
SAMPLE_BLOCKS = 4_000  # 32 MB: some points for each of the ranges of ten million rows
SAMPLE_THIN = 0.125  # of a block's rows: most often they are neighbours
SPARSE = 4  # numbers a key, up to which a range is cut by its numbers and not by its keys
UNION_PARTS = 32  # of a statement, where each part is a scan of its own
EXACT_DOUBLES = 2**53  # whole numbers below it are doubles, and those above it are not below it as doubles
ROWS_A_BLOCK = 50  # where the server has no count of rows
_NUMBER, _COUNT = "_tailrace_number", "_tailrace_count"  # beside columns, which may have any other name

# JIT compiles a statement for longer than most of these take.
_SESSION = (
    f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'; SET default_transaction_read_only = on;"
    " SET standard_conforming_strings = on; SET jit = off; SET lock_timeout = '10s'"
)
# A cast to a type with a length cuts what is longer.
_WITHOUT_LENGTH = {"character": "bpchar", "bit": "bit varying"}
_WHOLE = ("smallint", "integer", "bigint")
_ONE_SCAN = frozenset(
    {*_WHOLE, "oid", "numeric", "uuid", "date"} | {"timestamp without time zone", "timestamp with time zone"}
)
_NOT_READ_BACK = ("float", "vector")  # kinds whose canonical text is no value's text
_SIZE = """SELECT coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree({0})),
pg_relation_size({0}))::bigint / current_setting('block_size')::bigint,
coalesce((SELECT sum(greatest(c.reltuples, 0)) FROM pg_partition_tree({0}) p
JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf),
(SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = {0}))::bigint"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read of a table.

    `expressions`: what stands for each compared name, over the table's own columns; `columns`: what is
    compared, under these names; `key`: those of them that are the key. `live`: which rows count, in the
    table's own columns; `where`: the same in compared names, and in those of `beside`, which are expressions
    of columns that are not compared. `stamp`: an expression that changes with every write of a row.
    """

    schema: str
    table: str
    alone: bool  # without tables that inherit from it
    expressions: Mapping[str, str]
    columns: Sequence[SqlColumn]
    key: Sequence[SqlColumn]
    stamp: str
    live: str = ""
    where: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def relation(self) -> str:
        return f"{'ONLY ' if self.alone else ''}{quote(self.schema)}.{quote(self.table)}"

    @property
    def regclass(self) -> str:
        return f"{literal(f'{quote(self.schema)}.{quote(self.table)}')}::regclass"

    def rows(self, condition: str = "", *, sample: str = "", all_: bool = False) -> str:
        """What follows FROM. `all_`: the user's condition is left out."""
        where = "" if all_ else self.where
        named = {**self.beside, **self.expressions} if where else self.expressions
        listed = ", ".join(f"{expression} AS {quote(name)}" for name, expression in named.items())
        live = f" WHERE {self.live}" if self.live else ""
        inner = f"SELECT {listed}, {self.stamp} AS _tailrace_stamp FROM {self.relation}{sample}{live}"
        conditions = [bracketed(c) for c in (condition, where) if c]
        return f"({inner}) t" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class Server:
    """What decides how rows are hashed there."""

    major: int
    plain: bool  # see dialects.postgres.PLAIN


class PostgresSide:
    """`server_hash`: hash rows by the server's own function (see fast); both sides do, or neither."""

    def __init__(
        self, session: Session, reading: Reading, server: Server, *, server_hash: bool = False
    ) -> None:
        self._session = session
        self._reading = reading
        self._server = server
        self._hash: HashSql = (
            fast.row_hash(reading.columns, reading.key)
            if server_hash
            else dialect.row_hash(reading.columns, major=server.major, plain=server.plain)
        )
        self._keys = [self._printed(column) for column in reading.key]
        key_text = dialect.row_text(reading.key, major=server.major, plain=server.plain)
        self._key_md5 = f"md5({key_text})"
        self._bucket = f"('x' || left({self._key_md5}, {KEY_HASH_HEX}))::bit(32)::bigint"
        names = [column.sql for column in reading.key]
        self._key = names[0] if len(names) == 1 else f"({', '.join(names)})"
        self._types = [_WITHOUT_LENGTH.get(column.held.base, column.held.base) for column in reading.key]
        self._one_scan = len(names) == 1 and reading.key[0].held.base in _ONE_SCAN

    @property
    def place(self) -> str:
        return f"{self._reading.schema}.{self._reading.table} in {self._session.place}"

    @property
    def read_bytes(self) -> int:
        return self._session.read_bytes

    async def close(self) -> None:
        await self._session.close()

    def _printed(self, column: SqlColumn) -> str:
        return dialect.printed(dialect.column_sql(column, major=self._server.major))

    async def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return await self._session.rows(query)

    # Parts

    async def estimate(self) -> int:
        ((blocks, rows),) = await self._rows(_SIZE.format(self._reading.regclass))
        return int(rows) or int(blocks) * ROWS_A_BLOCK

    async def plan(self, range_rows: int) -> Plan:
        """Ranges of about so many rows, by a sample of the table's blocks."""
        reading = self._reading
        ((blocks, _),) = await self._rows(_SIZE.format(reading.regclass))
        share = min(1.0, SAMPLE_BLOCKS / max(1, blocks))
        if share == 1:
            return Plan(tuple(await self._every(reading.rows(), str(range_rows))), one_scan=self._one_scan)
        sample = reading.rows(f"random() < {SAMPLE_THIN}", sample=f" TABLESAMPLE SYSTEM ({share * 100})")
        step = max(1, round(range_rows * share * SAMPLE_THIN))
        return Plan(tuple(await self._every(sample, str(step))), one_scan=self._one_scan)

    async def split(self, part: KeyRange, parts: int, rows: int) -> list[KeyRange]:
        if len(self._types) == 1 and self._types[0] in _WHOLE and part.low and part.high:
            low, high = int(part.low[0]), int(part.high[0])
            if parts < high - low <= SPARSE * rows:  # nearly every number is a key: nothing need be read
                return ranges_between(
                    [(str(low + (high - low) * n // parts),) for n in range(1, parts)], part
                )
        step = f"greatest(1, ({_COUNT} + {parts - 1}) / {parts})"
        return ranges_between(await self._every(self._reading.rows(self._within(part)), step), part)

    async def _every(self, rows: str, step: str) -> list[Key]:
        """Each key with `step` rows before it, or a multiple; _COUNT in it: how many rows there are."""
        names = ", ".join(column.sql for column in self._reading.key)
        numbers = f"row_number() OVER (ORDER BY {names}) AS {_NUMBER}, count(*) OVER () AS {_COUNT}"
        keys = await self._rows(
            f"SELECT {', '.join(self._keys)} FROM (SELECT {names}, {numbers} FROM {rows}) t"
            f" WHERE {_NUMBER} > 1 AND ({_NUMBER} - 1) % {step} = 0 ORDER BY {_NUMBER}"
        )
        return list(dict.fromkeys(keys))

    def _within(self, part: Part) -> str:
        if isinstance(part, Bucket):
            return f"{self._bucket} % {part.of} = {part.at}"
        ends = [(">=", part.low), ("<", part.high)]
        return " AND ".join(f"{self._key} {sign} {self._bound(key)}" for sign, key in ends if key is not None)

    def _bound(self, key: Key) -> str:
        values = self._typed(key)
        return values if len(key) == 1 else f"({values})"

    def _typed(self, key: Key) -> str:
        return ", ".join(f"{literal(text)}::{type_}" for text, type_ in zip(key, self._types, strict=True))

    # Digests

    async def digest(self, parts: Sequence[Part]) -> list[RangeDigest]:
        found: list[RangeDigest] = []
        if isinstance(parts[0], Bucket):
            return await self._digest_buckets([part for part in parts if isinstance(part, Bucket)])
        for run in _touching([part for part in parts if isinstance(part, KeyRange)]):
            found += await (self._digest_one_scan(run) if self._one_scan else self._digest_each(run))
        return found

    async def _digest_one_scan(self, run: Sequence[KeyRange]) -> list[RangeDigest]:
        whole = KeyRange(run[0].low, run[-1].high)
        rows = self._reading.rows(self._within(whole))
        if len(run) == 1:
            return [RangeDigest.of_sums(*sums) for sums in await self._rows(self._hash.digests(rows))]
        by = self._place_in([part.low[0] for part in run[1:] if part.low is not None])
        return await self._digest_by(by, rows, range(len(run)))

    def _place_in(self, bounds: Sequence[str]) -> str:
        """How many bounds are at or below the key. For doubles the server has a search of its own, in a
        third of the time; whole numbers go in as such where each bound is one exactly."""
        type_, key = self._types[0], self._key
        if type_ in _WHOLE and all(abs(int(bound)) < EXACT_DOUBLES for bound in bounds):
            type_, key = "float8", f"{key}::float8"
        return f"width_bucket({key}, ARRAY[{', '.join(map(literal, bounds))}]::{type_}[])"

    async def _digest_by(self, by: str, rows: str, places: Sequence[int]) -> list[RangeDigest]:
        found = {at: sums for at, *sums in await self._rows(self._hash.digests(rows, by=by))}
        return [RangeDigest.of_sums(*found[at]) if at in found else EMPTY for at in places]

    async def _digest_each(self, run: Sequence[KeyRange]) -> list[RangeDigest]:
        found: list[RangeDigest] = []
        for at in range(0, len(run), UNION_PARTS):
            queries = [
                f"SELECT {number}, d.* FROM ({self._hash.digests(self._reading.rows(self._within(part)))}) d"
                for number, part in enumerate(run[at : at + UNION_PARTS])
            ]
            sums = sorted(await self._rows(" UNION ALL ".join(queries)))
            found += [RangeDigest.of_sums(*each) for _, *each in sums]
        return found

    async def _digest_buckets(self, parts: Sequence[Bucket]) -> list[RangeDigest]:
        by = f"({self._bucket} % {parts[0].of})"
        return await self._digest_by(by, self._reading.rows(self._in_buckets(parts)), [p.at for p in parts])

    def _in_buckets(self, parts: Sequence[Bucket]) -> str:
        of = parts[0].of
        if len(parts) == of:
            return ""
        return f"{self._bucket} % {of} IN ({', '.join(str(part.at) for part in parts)})"

    async def hashes(self, parts: Sequence[Part]) -> dict[Key, RowHash]:
        if isinstance(parts[0], Bucket):
            conditions = [self._in_buckets([part for part in parts if isinstance(part, Bucket)])]
        else:
            conditions = [self._within(part) for part in parts]
        queries = [self._hash.hashes(self._keys, self._reading.rows(condition)) for condition in conditions]
        found = await self._rows(" UNION ALL ".join(f"({query})" for query in queries))
        return by_key([(row[:-2], RowHash.of(row[-2], row[-1])) for row in found], self.place)

    # Groups

    async def groups(self, grouping: Grouping) -> Counts:
        """By the canonical text, as bytes: what a type or a collation takes for one are two groups."""
        by_sql = {column.sql: column for column in self._reading.columns}
        columns = {name: by_sql[quote(name)] for name in self._reading.expressions}
        texts = [f'{self._printed(columns[name])} COLLATE "C"' for name in grouping.by]
        counts = ["count(*)"]
        for window in grouping.windows:
            counts.append(f"count(*) FILTER (WHERE {_within_time(columns[grouping.column], window)})")
        width = len(texts)
        by = f" GROUP BY {', '.join(str(at + 1) for at in range(width))}" if texts else ""
        found = await self._rows(
            f"SELECT {', '.join([*texts, *counts])} FROM {self._reading.rows()}{by} LIMIT {GROUPS_LIMIT + 1}"
        )
        return {tuple(row[:width]): list(row[width:]) for row in found}

    async def texts(
        self, parts: Sequence[Part], rows: int
    ) -> AsyncGenerator[list[tuple[Key, tuple[str | None, ...]]]]:
        """The compared columns' texts of each row, so many rows at a time."""
        if isinstance(parts[0], Bucket):
            conditions = [self._in_buckets([part for part in parts if isinstance(part, Bucket)])]
        else:
            conditions = [self._within(part) for part in parts]
        columns = ", ".join([*self._keys, *map(self._printed, self._reading.columns)])
        width = len(self._keys)
        for condition in conditions:
            query = f"SELECT {columns} FROM {self._reading.rows(condition)}"
            async with aclosing(self._session.batches(query, rows)) as batches:
                async for batch in batches:
                    yield [(row[:width], row[width:]) for row in batch]

    # Rows

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        possible = [key for key in keys if not any("\0" in text for text in key)]
        if not possible:
            return {}
        columns = [*self._keys, *map(self._printed, self._reading.columns), "_tailrace_stamp::text"]
        select = f"SELECT {', '.join(columns)} FROM "
        width = len(self._keys)
        try:
            found = await self._rows(select + self._reading.rows(self._is_one_of(possible), all_=True))
        except _NoSuchValue:  # a key of the other side that is no value of the type here
            found = await self._rows(select + self._reading.rows(self._has_text_of(possible), all_=True))
        return {tuple(row[:width]): Row(tuple(row[width:-1]), row[-1]) for row in found}

    def _is_one_of(self, keys: Sequence[Key]) -> str:
        kinds = [column.held.kind for column in self._reading.key]
        casts = any(column.form.cast for column in self._reading.key)
        if casts or any(kind in _NOT_READ_BACK or kind.startswith(ARRAY) for kind in kinds):
            return self._has_text_of(keys)
        if len(kinds) == 1:
            values = ", ".join(literal(key[0]) for key in keys)
            return f"{self._key} = ANY (ARRAY[{values}]::{self._types[0]}[])"
        return f"{self._key} IN (VALUES {', '.join(f'({self._typed(key)})' for key in keys)})"

    def _has_text_of(self, keys: Sequence[Key]) -> str:
        texts = (md5(text_of_key(key).encode(), usedforsecurity=False).hexdigest() for key in keys)
        return f"{self._key_md5} = ANY (ARRAY[{', '.join(map(literal, texts))}])"


def _within_time(column: SqlColumn, window: Window) -> str:
    """In UTC, which is the session's zone: a date or a timestamp is compared as one there."""
    low, high = (f"{literal(text + '+00')}::timestamptz" for text in (window.low, window.high))
    return f"{column.sql} > {low} AND {column.sql} <= {high}"


def _touching(parts: Sequence[KeyRange]) -> list[list[KeyRange]]:
    """In runs of ranges that touch."""
    runs: list[list[KeyRange]] = []
    for part in parts:
        if runs and part.low is not None and runs[-1][-1].high == part.low:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _bytes(rows: Sequence[tuple[Any, ...]]) -> int:
    return sum(len(str(value)) for row in rows for value in row)


class QueryRefused(ConfigError):
    """What the server says of a statement about one table: others may well be read."""


class _NoSuchValue(QueryRefused):
    """A text that is no value of the type: a key of the other side, or what a condition makes of one."""


class Session:
    """A read-only connection, for statements one after the other. `role`: source or target."""

    def __init__(self, url: str, role: str) -> None:
        self._url = url
        self._role = role
        self._stack = AsyncExitStack()
        self._connection: Connection | None = None
        self.place = ""
        self.read_bytes = 0

    async def open(self) -> None:
        """Raises SourceUnavailable or TargetUnavailable, ConfigError."""
        try:
            connection = await self._stack.enter_async_context(connect(self._url, application=APPLICATION))
            await connection.execute(_SESSION)
        except (SourceUnavailable, psycopg.Error) as error:
            raise self._fault(error) from error
        self._connection = connection
        self.place = f"{self._role} {connection.info.host}:{connection.info.port}/{connection.info.dbname}"

    async def close(self) -> None:
        self._connection = None
        await self._stack.aclose()

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            found = await (await self.connection.execute(query.encode())).fetchall()
        except (psycopg.DataError, psycopg.IntegrityError) as error:  # of a domain, also within a composite
            what = f"the server refuses a value: {error.diag.message_primary or error}"
            raise _NoSuchValue(
                what, where=self.place, fix="look at the row that it names, and at the flow's casts"
            ) from error
        except psycopg.Error as error:
            raise self._fault(error) from error
        self.read_bytes += _bytes(found)
        return found

    async def batches(self, query: str, rows: int) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """The same, with so many rows in memory."""
        try:
            async with self.connection.cursor() as cursor:
                stream = cast("AsyncGenerator[tuple[Any, ...]]", cursor.stream(query.encode()))
                batch: list[tuple[Any, ...]] = []
                async with aclosing(stream):
                    async for row in stream:
                        batch.append(row)
                        if len(batch) == rows:
                            self.read_bytes += _bytes(batch)
                            yield batch
                            batch = []
                self.read_bytes += _bytes(batch)
                if batch:
                    yield batch
        except psycopg.Error as error:
            raise self._fault(error) from error

    async def server(self) -> Server:
        ((major, plain),) = await self.rows(
            f"SELECT current_setting('server_version_num')::int / 10000, ({dialect.PLAIN})"
        )
        return Server(int(major), bool(plain))

    def _fault(self, error: Exception) -> TailraceError:
        kind = SourceUnavailable if self._role == "source" else TargetUnavailable
        if isinstance(error, errors.QueryCanceled):
            return kind(
                f"the server has not read a part of the table within {STATEMENT_TIMEOUT_S} s",
                where=self.place,
                fix="look for what it waits for; a key without an index that is in its order needs a scan",
            )
        if isinstance(error, TailraceError):
            return error if kind is SourceUnavailable else kind(error.what, where=error.where, fix=error.fix)
        assert isinstance(error, psycopg.Error)
        if isinstance(error, errors.ReadOnlySqlTransaction):
            what = f"a query or a condition would write: {error.diag.message_primary}"
            return ConfigError(what, where=self.place, fix="what is compared is only read: leave that out")
        if isinstance(error, psycopg.ProgrammingError) and not isinstance(
            error, errors.InsufficientPrivilege
        ):
            return QueryRefused(
                f"the server refuses a query: {error.diag.message_primary or error}",
                where=self.place,
                fix="a table that was changed in the meantime is compared by the next run",
            )
        translated = translate(error, self.place)
        if isinstance(error, errors.InsufficientPrivilege):
            cure = policies_cure(error, self.connection.info.user)
            return QueryRefused(translated.what, where=translated.where, fix=cure or translated.fix)
        if isinstance(translated, SourceUnavailable):
            return kind(translated.what, where=translated.where, fix=translated.fix)
        return translated

    # A source's log

    async def insert_lsn(self) -> int:
        """Behind every commit that this session could see, and one record of ours behind it, so that the
        capture of an idle source passes it soon."""
        ((lsn,),) = await self.rows("SELECT pg_current_wal_insert_lsn()::text")
        await self.rows(f"SELECT pg_logical_emit_message(false, {literal(HEARTBEAT_PREFIX)}, '')")
        return parse_lsn(str(lsn))

    async def holds_commits(self) -> bool:
        """Whether a commit is in the log that no session sees yet: it waits for a standby (H9)."""
        ((found,),) = await self.rows(
            "SELECT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE wait_event = 'SyncRep' AND datname = current_database())"
        )
        return bool(found)
