"""One chunk of a table on its connection: open mark, lock, snapshot, rows, close mark.

Owns the SQL and the order of the steps (H8, H9, H11): the open mark's commit comes before the table's lock,
the lock before the transaction's snapshot, and the close mark after the rows; all of it on the primary. The
lock is ACCESS SHARE, held while a chunk is read and no longer. What becomes of the rows is decided in
windows, which chunk comes next in backfill.

A chunk is a range of the key's index, or the rows of given keys:

    range   SELECT columns FROM t WHERE (key) > (after) [AND (key) <= (high) AND (where)] ORDER BY key LIMIT n
    keys    SELECT n, found, columns FROM (VALUES (0, 'key'::type), ...) LEFT JOIN t ON key ORDER BY n

Keys that are equal may be spelt in two ways (1.0 and 1.00, citext, padding): a given key that the table holds
spelt otherwise is read as the row, and as a key that is not there. So is one that is no value of its type.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from streamer.changes.backfill import Key
from streamer.changes.kinds import decoder_for
from streamer.changes.schema import Column
from streamer.errors import BadRecordError, SourceUnavailable
from streamer.postgres import refused_keys
from streamer.postgres.catalog import TRAVELS, Table
from streamer.postgres.connection import Connection, start_copy
from streamer.postgres.relations import Described
from streamer.postgres.rows import RowEncoder, copy_unescape
from streamer.postgres.windows import MARK_PREFIX, Snapshot, Window, mark_content

LOCK_TIMEOUT = "2s"  # behind an ALTER TABLE that waits itself; then the chunk is tried again
STATEMENT_TIMEOUT = "60s"  # a chunk takes milliseconds; one without a usable index must not hold its lock
ROWS_BETWEEN_PAUSES = 100  # a millisecond: the stream has its turn meanwhile
WHERE_ROWS = 20_000  # rows that one chunk looks at, where most of them do not fit the condition

# Marks are not to wait for standbys: they change nothing, and a standby that is away would stop every chunk.
_SESSION = (
    f"SET synchronous_commit = local; SET lock_timeout = '{LOCK_TIMEOUT}';"
    f" SET statement_timeout = '{STATEMENT_TIMEOUT}'"
)
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_LOOK = (
    """SELECT pg_current_snapshot()::text, pg_is_in_recovery(), {table}::regclass::oid::bigint,
    ARRAY(SELECT concat_ws(' ', attname, atttypid, atttypmod) FROM pg_attribute
          WHERE attrelid = {table}::regclass AND """
    + TRAVELS
    + " ORDER BY attnum)"
)


class TableChanged(Exception):
    """The catalogue is not what the chunk was prepared for; it is described again."""


@dataclass(frozen=True, slots=True)
class Walk:
    """A table as it is read. `key`: its columns in the order of the index; `types`: theirs, to cast to."""

    described: Described
    key: tuple[str, ...]
    types: tuple[str, ...]
    facts: tuple[str, ...]  # what _LOOK says of the columns

    @property
    def table(self) -> Table:
        return self.described.table

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """In the order of the schema record, which is that of keys in requests."""
        return tuple(c for c in self.described.record.columns if c.key)


@dataclass(slots=True)
class Chunk:
    """What one chunk has read. `rows`: key -> the row as JSON."""

    window: Window
    rows: dict[bytes, bytes] = field(default_factory=dict)
    missing: dict[bytes, bytes] = field(default_factory=dict)  # requested keys without a row -> `before`
    respelt: dict[bytes, bytes] = field(default_factory=dict)  # of `missing`, those whose row has another key
    cursor: tuple[str, ...] | None = None  # of the last row looked at
    taken: int = 0  # of the given keys
    whole: bool = False  # nothing is left behind it
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """Rows behind `after`, at most `rows` of them and not many more than `limit_bytes`."""

    after: tuple[str, ...] | None
    where: str | None
    rows: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Given:
    """The rows of these keys (as SQL values, in the order of the walk's key). `strict`: one that is no value
    of its type is a mistake, else a key that is not there."""

    keys: Sequence[tuple[str, ...]]
    limit_bytes: int
    strict: bool = False


async def prepare(connection: Connection) -> None:
    """The session's settings, once a connection."""
    await connection.execute(_SESSION)


async def describe_walk(connection: Connection, described: Described) -> Walk:
    """How the table's key is walked; TableChanged when no index of the catalogue is that key."""
    table = described.table
    which = "i.indisreplident" if table.identity == "i" else "i.indisprimary"
    cursor = await connection.execute(
        sql.SQL(
            """SELECT a.attname::text, format_type(a.atttypid, -1)
               FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(attnum, place), pg_attribute a
               WHERE i.indrelid = %s AND {} AND k.place <= i.indnkeyatts
                 AND a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.place"""
        ).format(sql.SQL(which)),
        (table.oid,),
    )
    found = await cursor.fetchall()
    names = tuple(str(name) for name, _ in found)
    if set(names) != {c.name for c in described.record.columns if c.key}:
        raise TableChanged
    facts = tuple(f"{name} {oid} {typmod}" for name, oid, typmod in described.columns)
    return Walk(described, names, tuple(str(type_) for _, type_ in found), facts)


def key_texts(walk: Walk, key: Key) -> tuple[str, ...]:
    """A key of a request -> SQL values in the walk's order. Raises BadRecordError."""
    columns = walk.key_columns
    if len(key) != len(columns):
        names = ", ".join(c.name for c in columns)
        raise BadRecordError(
            f"key {list(key)!r} has {len(key)} values, the key of {walk.table.qualified} is ({names})",
            fix="give each key as its values in this order",
        )
    texts = {}
    for column, value in zip(columns, key, strict=True):
        try:
            texts[column.name] = decoder_for(column.kind)(value)
        except BadRecordError as error:
            raise BadRecordError(
                f"key {list(key)!r} of {walk.table.qualified}: {column.name} is {column.type}, "
                f"and {error.what}",
                fix="write each value as the table's events have it",
            ) from None
    return tuple(texts[name] for name in walk.key)


async def read_chunk(
    connection: Connection, walk: Walk, window: Window, run: str, part: Range | Given
) -> Chunk:
    """From the open mark to the last row; the window is registered. `close_chunk` is to follow.

    Raises TableChanged and psycopg.Error, after which the connection can be used again; SourceUnavailable on
    a standby, and BadRecordError for a row or a key that cannot be encoded or used, after which it is to be
    closed. The caller then forgets the window.
    """
    await connection.execute(_mark(run, window.chunk, opens=True))
    name = sql.Literal(walk.table.identifier.as_string(connection))
    try:
        # Nothing that takes the snapshot comes before the lock: what a rewrite leaves, older ones do not see.
        # Partitions at once or not at all: to wait for one with another in hand could be half of a deadlock.
        cursor = await connection.execute(
            sql.SQL(
                "{}; LOCK TABLE ONLY {} IN ACCESS SHARE MODE; LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT; {}"
            ).format(
                sql.SQL(_BEGIN),
                walk.table.identifier,
                walk.table.alone,
                sql.SQL(_LOOK).format(table=name),
            )
        )
        while cursor.nextset():
            pass
        row = await cursor.fetchone()
        assert row is not None
        snapshot, standby, oid, facts = row
        if standby:
            raise SourceUnavailable(
                "the server became a standby, whose snapshots do not show what runs on the primary",
                fix="point `url` at the primary",
            )
        window.see(Snapshot.parse(snapshot))
        if oid != walk.table.oid or tuple(facts) != walk.facts:
            raise TableChanged
        chunk = Chunk(window)
        if isinstance(part, Range):
            await _read_range(connection, walk, chunk, part)
        else:
            await _read_keys(connection, walk, chunk, part)
    except (psycopg.Error, TableChanged):
        if not connection.closed:
            await connection.rollback()
        raise
    window.keys = chunk.rows.keys()
    return chunk


async def close_chunk(connection: Connection, window: Window, run: str) -> None:
    """End the transaction, and with it the lock; the close mark is a transaction of its own after it.

    The stream may show the mark before this returns.
    """
    await connection.execute(sql.SQL("COMMIT; {}").format(_mark(run, window.chunk, opens=False)))


def _mark(run: str, chunk: str, *, opens: bool) -> sql.Composed:
    return sql.SQL("SELECT pg_logical_emit_message(true, {}, {})").format(
        sql.Literal(MARK_PREFIX), sql.Literal(mark_content(run, chunk, opens=opens))
    )


async def _read_range(connection: Connection, walk: Walk, chunk: Chunk, part: Range) -> None:
    key = sql.SQL(", ").join(map(sql.Identifier, walk.key))
    conditions: list[sql.Composable] = [sql.SQL("true")]
    if part.after is not None:
        conditions.append(sql.SQL("({}) > ({})").format(key, _literals(part.after)))
    high: tuple[str, ...] | None = None
    if part.where is not None:
        high = await _high(connection, walk, conditions, key)
        if high is not None:
            conditions.append(sql.SQL("({}) <= ({})").format(key, _literals(high)))
        conditions.append(sql.SQL("(\n{}\n)").format(sql.SQL(part.where)))
    columns = sql.SQL(", ").join(sql.Identifier(name) for name, _, _ in walk.described.columns)
    query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}").format(
        columns, walk.table.alone, sql.SQL(" AND ").join(conditions), key, sql.Literal(part.rows)
    )
    encoder = walk.described.encoder
    names = [name for name, _, _ in walk.described.columns]
    places = [names.index(name) for name in walk.key]
    last = b""

    def take(line: bytes) -> bool:
        nonlocal last
        if chunk.bytes >= part.limit_bytes:
            return False
        _add(chunk, encoder, line)
        last = line
        return True

    seen, kept = await _copy(connection, query, take)
    chunk.taken = kept
    if seen == part.rows or kept < seen:
        fields = last.removesuffix(b"\n").split(b"\t")
        chunk.cursor = tuple(copy_unescape(fields[place]).decode() for place in places)
    else:
        chunk.cursor = high or part.after
        chunk.whole = high is None


async def _high(
    connection: Connection, walk: Walk, conditions: list[sql.Composable], key: sql.Composable
) -> tuple[str, ...] | None:
    """Where a chunk that looks at WHERE_ROWS rows ends; None: at the table's end."""
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in walk.key)
    cursor = await connection.execute(
        sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1").format(
            texts,
            walk.table.alone,
            sql.SQL(" AND ").join(conditions),
            sql.SQL(", ").join(sql.SQL("{}.{}").format(_bare(walk), sql.Identifier(n)) for n in walk.key),
            sql.Literal(WHERE_ROWS - 1),
        )
    )
    row = await cursor.fetchone()
    return None if row is None else tuple(str(text) for text in row)


def _bare(walk: Walk) -> sql.Identifier:
    """The table as its columns are named by: ORDER BY a bare name would be the text of the SELECT list."""
    return sql.Identifier(walk.table.name)


async def _read_keys(connection: Connection, walk: Walk, chunk: Chunk, part: Given) -> None:
    """Rows of given keys, and those without one."""
    try:
        async with connection.transaction():  # a savepoint
            await _read_values(connection, walk, chunk, part)
    except psycopg.Error as error:
        if not refused_keys.is_of_a_value(error):
            raise
        found = await refused_keys.sort_out(connection, part.keys, walk.types)
        if not found.refused and found.settled == len(part.keys):
            raise  # what the server refuses is no key
    else:
        chunk.whole = chunk.taken == len(part.keys)
        return
    if found.refused and part.strict:
        place, why = next(iter(found.refused.items()))
        named = ", ".join(map("{}: {}".format, walk.key, part.keys[place]))
        raise BadRecordError(
            f"key ({named}) of {walk.table.qualified}: {why}",
            fix="correct the key; or have keys deleted that are not there: --delete-missing",
        )
    values = [place for place in range(found.settled) if place not in found.refused]
    await _read_values(connection, walk, chunk, replace(part, keys=[part.keys[place] for place in values]))
    chunk.taken = found.settled if chunk.taken == len(values) else values[chunk.taken]
    chunk.whole = chunk.taken == len(part.keys)
    for place in found.refused:
        if place < chunk.taken:
            texts = dict(zip(walk.key, (text.encode() for text in part.keys[place]), strict=True))
            key, before = walk.described.encoder.key_alone(texts)
            chunk.missing[key] = before
            chunk.bytes += len(key) + len(before)


async def _read_values(connection: Connection, walk: Walk, chunk: Chunk, part: Given) -> None:
    """Where there is no row of the same spelling, the key as the server prints it. All of them are values."""
    if not part.keys:
        return
    places = range(len(walk.key))
    values = sql.SQL(", ").join(
        sql.SQL("({}, {})").format(sql.Literal(number), refused_keys.typed(key, walk.types))
        for number, key in enumerate(part.keys)
    )
    wanted = [sql.Identifier(f"k{place}") for place in places]
    held = [sql.Identifier(name) for name in walk.key]
    columns = [
        sql.SQL("CASE WHEN e.found THEN t.{} ELSE v.{} END").format(
            sql.Identifier(name), wanted[walk.key.index(name)]
        )
        if name in walk.key
        else sql.SQL("CASE WHEN e.found THEN t.{} END").format(sql.Identifier(name))
        for name, _, _ in walk.described.columns
    ]
    # concat() prints as COPY does, where a cast to text takes the padding off.
    query = sql.SQL(
        "SELECT v.number, e.found, {columns} FROM (VALUES {values}) v (number, {wanted}) "
        "LEFT JOIN {table} t ON {equal} "
        "CROSS JOIN LATERAL (SELECT true WHERE t.{first} IS NOT NULL UNION ALL "
        "SELECT false WHERE t.{first} IS NULL OR {respelt}) e (found) ORDER BY v.number, e.found DESC"
    ).format(
        first=held[0],
        columns=sql.SQL(", ").join(columns),
        values=values,
        wanted=sql.SQL(", ").join(wanted),
        table=walk.table.alone,
        equal=sql.SQL(" AND ").join(map(sql.SQL("t.{} = v.{}").format, held, wanted)),
        respelt=sql.SQL(" OR ").join(
            map(sql.SQL('concat(t.{}) COLLATE "C" <> concat(v.{}) COLLATE "C"').format, held, wanted)
        ),
    )
    encoder = walk.described.encoder
    number, there = b"", b""

    def take(line: bytes) -> bool:
        nonlocal number, there
        at, found, row = line.split(b"\t", 2)
        if at != number and chunk.bytes >= part.limit_bytes:
            return False
        if found == b"t":
            there = _add(chunk, encoder, row)
        else:
            key, before = encoder.copy_row(row)
            assert key is not None  # tables without a key are refused
            chunk.missing[key] = before
            chunk.bytes += len(key) + len(before)
            if at == number:
                chunk.respelt[key] = there
        chunk.taken += at != number
        number = at
        return True

    await _copy(connection, query, take)


def _add(chunk: Chunk, encoder: RowEncoder, line: bytes) -> bytes:
    """-> its key."""
    key, after = encoder.copy_row(line)
    assert key is not None  # tables without a key are refused
    chunk.rows[key] = after
    chunk.bytes += len(key) + len(after)
    return key


async def _copy(
    connection: Connection, query: sql.Composed, take: Callable[[bytes], bool]
) -> tuple[int, int]:
    """-> rows sent, rows taken. Once `take` has refused one, the rest is read and thrown away."""
    command = sql.SQL("COPY ({}) TO STDOUT").format(query)
    stream = await start_copy(connection, command.as_bytes(connection))
    seen = kept = 0
    taking = True
    try:
        while True:
            data = stream.take()
            if data is None:
                await stream.readable()
                continue
            seen += 1
            if taking:
                taking = take(bytes(data))
                kept += taking
            if seen % ROWS_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
    except EOFError:
        pass
    await stream.result()
    return seen, kept


def _literals(values: Sequence[str]) -> sql.Composed:
    """Untyped: each takes the type of the column that it is compared with."""
    return sql.SQL(", ").join(map(sql.Literal, values))
