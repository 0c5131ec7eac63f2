"""What the source's catalogue says: tables that fit the config, keys, types, publications.

Owns the queries; the decisions about positions are in history, the encoders in rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

from streamer.changes.kinds import TypeFacts, kind_of
from streamer.changes.names import own_column, spelt
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import PostgresSource
from streamer.config.built import unbuilt_table
from streamer.config.patterns import is_pattern
from streamer.errors import ConfigError
from streamer.postgres.connection import Connection
from streamer.postgres.pgoutput import Relation

INSERT_ONLY_SUFFIX = "_inserts"


@dataclass(frozen=True, slots=True)
class Table:
    """One table (or partitioned root) of the source, as its catalogue shows it now."""

    schema: str
    name: str
    oid: int
    identity: str  # d(efault) n(othing) f(ull) i(ndex)
    primary_key: tuple[str, ...]  # in the index's order
    has_index_identity: bool
    partitioned: bool = False
    deferred_key: tuple[str, ...] = ()  # a primary key that is DEFERRABLE, which identifies nothing
    # Columns that do not travel, generated ones and Tailrace's own: those of the replica identity, and the
    # generated ones for which the server takes no identity FULL (18 and later). A primary key with one of
    # them is none.
    unsent: tuple[str, ...] = ()
    not_whole: tuple[str, ...] = ()

    @property
    def qualified(self) -> str:
        return spelt(self.schema, self.name)

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def alone(self) -> sql.Composed:
        """The table without those that inherit from it; a partitioned root is its partitions."""
        return sql.SQL("{}" if self.partitioned else "ONLY {}").format(self.identifier)

    @property
    def has_key(self) -> bool:
        """Whether its events tell rows apart, so that a row can be published again."""
        return not self.insert_only and (self.identity != "f" or bool(self.primary_key))

    @property
    def insert_only(self) -> bool:
        """UPDATE and DELETE would fail in the application, or tell no row, if they were published (H27)."""
        if self.unsent:
            return True
        if self.identity == "d":
            return not self.primary_key
        if self.identity == "i":
            return not self.has_index_identity
        return self.identity == "n"


# Of a table that was dropped or renamed, or its schema, after it was looked up.
GONE = (errors.UndefinedTable, errors.InvalidSchemaName)


def is_gone(error: psycopg.Error) -> bool:
    """The same of a query that reads the catalogue."""
    if isinstance(error, GONE):
        return True
    # Functions of the catalogue look up their relations themselves.
    return isinstance(error, errors.InternalError_) and error.diag.source_function == "relation_open"


def check_named(rules: Iterable[str], present: Sequence[str]) -> None:
    """Every table that the config names without a wildcard must be there; `present`: as it names them."""
    for pattern in rules:
        if is_pattern(pattern) or pattern in present:
            continue
        near = difflib.get_close_matches(pattern, present, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"table {pattern} is named in `tables:` but is not in the source (or this role may not see it)",
            fix=f"{hint}Create it, or correct the name in the config",
        )


# Of pg_attribute. What Tailrace added to a table that was a target means nothing in the next one.
WRITTEN: LiteralString = "attnum > 0 AND NOT attisdropped AND attgenerated = ''"
TRAVELS: LiteralString = WRITTEN + " AND NOT starts_with(attname::text, '_tailrace')"

_TABLES = """
        SELECT n.nspname, c.relname, c.oid::bigint, c.relreplident::text,
               CASE WHEN key.immediate AND NOT key.computed THEN key.names ELSE '{}' END,
               EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident), c.relkind = 'p',
               CASE WHEN key.immediate THEN '{}' ELSE coalesce(key.names, '{}') END,
               computed.of_identity, computed.of_whole
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN LATERAL (
          SELECT i.indimmediate AS immediate, array_agg(a.attname::text ORDER BY k.place) AS names,
                 bool_or(a.attgenerated <> '' OR starts_with(a.attname::text, '_tailrace')) AS computed
          FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(attnum, place), pg_attribute a
          WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
            AND a.attrelid = c.oid AND a.attnum = k.attnum
          GROUP BY 1) key ON true
        CROSS JOIN LATERAL (
          SELECT coalesce(array_agg(a.attname::text) FILTER (WHERE CASE c.relreplident
                   WHEN 'f' THEN s.refused AND a.attgenerated <> ''
                   ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid
                                AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
                                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                                        WHEN 'i' THEN i.indisreplident END) END), '{}')
                   AS of_identity,
                 coalesce(array_agg(a.attname::text) FILTER (WHERE s.refused AND a.attgenerated <> ''), '{}')
                   AS of_whole
          FROM pg_attribute a, (SELECT current_setting('server_version_num')::int >= 180000 AS refused) s
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND (a.attgenerated <> '' OR starts_with(a.attname::text, '_tailrace'))) computed
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
          AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
    """


def identifier(*parts: str) -> str:
    """A name as SQL has it, for statements that are printed."""
    return sql.Identifier(*parts).as_string(None)


async def find_table(connection: Connection, schema: str, name: str) -> Table | None:
    """One table that may be captured, or None."""
    query = _TABLES.replace("%", "%%") + " AND n.nspname = %s AND c.relname = %s"
    row = await (await connection.execute(query, (schema, name))).fetchone()
    return None if row is None else _table(row)


def _table(row: tuple[Any, ...]) -> Table:
    schema, name, oid, identity, key, has_index, partitioned, *lists = row
    return Table(schema, name, oid, identity, tuple(key), has_index, partitioned, *map(tuple, lists))


async def list_tables(connection: Connection, source: PostgresSource) -> list[Table]:
    """The tables that the config wants, by name. Partitions are left to their root."""
    cursor = await connection.execute(_TABLES + " ORDER BY 1, 2")
    tables = [_table(row) for row in await cursor.fetchall()]
    named = [pattern for pattern, rule in source.tables.items() if rule != "exclude"]
    present = [f"{t.schema}.{t.name}" for t in tables]
    if not set(present).issuperset(named):
        await _check_logged(connection, named)
    check_named(named, present)
    return [t for t in tables if source.rule_for(t.schema, t.name) is not None]


async def unlogged(connection: Connection) -> list[tuple[str, str]]:
    """(schema, table) of those whose changes are not in the server's log; partitions are their root's."""
    cursor = await connection.execute(
        """SELECT n.nspname::text, c.relname::text
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND NOT c.relispartition ORDER BY 1, 2"""
    )
    return [(row[0], row[1]) for row in await cursor.fetchall()]


def why_unlogged(schema: str, name: str) -> tuple[str, str]:
    """What it is, and the SQL that mends it."""
    what = (
        f"{spelt(schema, name)} is UNLOGGED: its changes are not in the server's log, and cannot be captured"
    )
    return what, f"ALTER TABLE {identifier(schema, name)} SET LOGGED;"


async def _check_logged(connection: Connection, named: Collection[str]) -> None:
    for schema, name in await unlogged(connection):
        if f"{schema}.{name}" in named:
            what, statement = why_unlogged(schema, name)
            raise ConfigError(f"table {what}", fix=f"as its owner run {statement}")


def left_out(source: PostgresSource, tables: Iterable[Table]) -> list[str]:
    """Why tables that the config wants are not captured: their rule asks for what is not built yet."""
    return [
        f"{table.qualified} is not captured: {unbuilt}"
        for table in tables
        for unbuilt in unbuilt_table(source, table.schema, table.name)
    ]


async def published_columns(
    connection: Connection, table: Table, *, as_target: bool = False
) -> list[tuple[str, int, int]]:
    """(name, type oid, typmod) in the order of the stream; generated columns and our own never travel.
    `as_target`: what a target's table has, ours too."""
    which = WRITTEN if as_target else TRAVELS
    cursor = await connection.execute(
        f"""SELECT attname, atttypid::bigint, atttypmod FROM pg_attribute
            WHERE attrelid = %s AND {which} ORDER BY attnum""",
        (table.oid,),
    )
    return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


async def identity_columns(connection: Connection, table: Table) -> tuple[str, ...]:
    """The columns the stream's Relation message will flag for this table's replica identity."""
    if table.identity == "f":
        return tuple(name for name, _, _ in await published_columns(connection, table))
    which = {"d": "i.indisprimary AND i.indimmediate", "i": "i.indisreplident"}.get(table.identity)
    if which is None:
        return ()
    cursor = await connection.execute(
        sql.SQL(
            """SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
               AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
               WHERE i.indrelid = %s AND {} ORDER BY a.attnum"""
        ).format(sql.SQL(which)),
        (table.oid,),
    )
    return tuple(row[0] for row in await cursor.fetchall())


async def describe(
    connection: Connection,
    source: str,
    relation: Relation,
    frozen_key: tuple[str, ...] | None,
    primary_key: tuple[str, ...],
    *,
    as_target: bool = False,
) -> SchemaRecord:
    """The schema record of a Relation message, without columns of ours unless `as_target`.

    The key is the Relation's flagged columns; under identity full (which flags all of them) it is
    the frozen key, or for a table seen for the first time the catalogue's primary key, if the
    Relation has these columns (H22). Types that the catalogue no longer knows are kind "text".
    """
    identity = relation.identity
    sent = [c for c in relation.columns if as_target or not own_column(c.name)]
    flagged = tuple(c.name for c in sent if c.key)
    if identity == "f":
        names = {c.name for c in sent}
        wanted = primary_key if frozen_key is None else frozen_key
        key = wanted if set(wanted) <= names else ()
    else:
        key = () if flagged and await _is_cut(connection, relation) else flagged
    facts = await _type_facts(connection, [(c.type_oid, c.typmod) for c in sent])
    columns = tuple(
        Column(
            c.name, facts[c.type_oid, c.typmod][0], c.typmod, facts[c.type_oid, c.typmod][1], c.name in key
        )
        for c in sent
    )
    return SchemaRecord(source, relation.schema, relation.name, identity, columns)


async def _is_cut(connection: Connection, relation: Relation) -> bool:
    """Whether the replica identity has columns that do not travel, generated or ours: the rest is no key."""
    cursor = await connection.execute(
        """SELECT EXISTS (
             SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
                                    AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
             WHERE i.indrelid = %s::oid AND CASE %s WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
               AND (a.attgenerated <> '' OR starts_with(a.attname::text, '_tailrace'))
               AND a.attname <> ALL (%s))""",
        (relation.oid, relation.identity, [c.name for c in relation.columns if not own_column(c.name)]),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def primary_key(connection: Connection, schema: str, table: str) -> tuple[str, ...]:
    """Today's primary key, () when there is none or the table is gone."""
    cursor = await connection.execute(
        """SELECT a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
           JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
           WHERE i.indisprimary AND i.indimmediate AND n.nspname = %s AND c.relname = %s ORDER BY a.attnum""",
        (schema, table),
    )
    return tuple(row[0] for row in await cursor.fetchall())


async def _type_facts(
    connection: Connection, wanted: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], tuple[str, str]]:
    """(oid, typmod) -> (type as printed, JSON kind). Domains are resolved to their base."""
    pairs = sorted(set(wanted))
    cursor = await connection.execute(
        """
        WITH RECURSIVE needed(oid) AS (
            SELECT unnest(%s::bigint[])::oid
            UNION
            SELECT linked
            FROM needed JOIN pg_type t USING (oid), unnest(ARRAY[t.typbasetype, t.typelem]) linked
            WHERE linked <> 0
        )
        SELECT t.oid::bigint, t.typname::text, t.typtype::text, t.typbasetype::bigint, t.typtypmod,
               CASE WHEN t.typinput = 'array_in'::regproc THEN t.typelem ELSE 0 END::bigint, t.typdelim::text
        FROM needed JOIN pg_type t USING (oid)
        """,
        ([oid for oid, _ in pairs],),
    )
    types = {row[0]: TypeFacts(*row) for row in await cursor.fetchall()}
    bases = {pair: _base(*pair, types) for pair in pairs}
    known = [pair for pair in pairs if bases[pair][0] in types]
    cursor = await connection.execute(
        """SELECT format_type(oid, typmod)
           FROM unnest(%s::oid[], %s::int[]) WITH ORDINALITY AS u(oid, typmod, n) ORDER BY n""",
        ([bases[pair][0] for pair in known], [bases[pair][1] for pair in known]),
    )
    printed = dict(zip(known, [row[0] for row in await cursor.fetchall()], strict=True))
    return {pair: (printed.get(pair, "text"), kind_of(*pair, types)) for pair in pairs}


def _base(oid: int, typmod: int, types: Mapping[int, TypeFacts]) -> tuple[int, int]:
    while (facts := types.get(oid)) is not None and facts.typtype == "d":
        oid, typmod = facts.base, facts.base_typmod if typmod < 0 else typmod
    return oid, typmod


# ---- publications ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publications:
    """Two, because `publish` is a property of a publication, not of a table in it (H27)."""

    name: str
    tables: tuple[Table, ...]

    @property
    def inserts_name(self) -> str:
        return self.name + INSERT_ONLY_SUFFIX

    @property
    def full(self) -> tuple[Table, ...]:
        return tuple(t for t in self.tables if not t.insert_only)

    @property
    def insert_only(self) -> tuple[Table, ...]:
        return tuple(t for t in self.tables if t.insert_only)

    def home(self, table: Table) -> str:
        """The publication that carries this table."""
        return self.inserts_name if table.insert_only else self.name

    def missing(self, present: Mapping[str, set[str]]) -> tuple[Table, ...]:
        """Tables that are in no publication yet; `present` as for `statements`."""
        return tuple(t for t in self.tables if t.qualified not in present.get(self.home(t), ()))

    def statements(self, present: Mapping[str, set[str]], *, both: bool) -> list[sql.Composed]:
        """The SQL that makes what is missing. `present`: publication -> qualified tables in it.

        `both`: make the second publication even while nothing needs it, so that a table without
        a key that comes later has its place in the running stream.
        """
        found: list[sql.Composed] = []
        plan = [(self.name, self.full, "insert, update, delete, truncate")]
        if self.insert_only or both:
            plan.append((self.inserts_name, self.insert_only, "insert, truncate"))
        for name, tables, publish in plan:
            has = present.get(name)
            missing = [t.alone for t in tables if has is None or t.qualified not in has]
            names = sql.SQL(", ").join(missing)
            if has is None:
                of = sql.SQL(" FOR TABLE ") + names if missing else sql.SQL("")
                found.append(
                    sql.SQL(
                        "CREATE PUBLICATION {}{} WITH (publish = {}, publish_via_partition_root = true)"
                    ).format(sql.Identifier(name), of, sql.Literal(publish))
                )
            elif missing:
                found.append(sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(name), names))
        return found


async def publication_tables(connection: Connection, *names: str) -> dict[str, set[str]]:
    """Publication -> qualified names of its tables; publications that do not exist are left out."""
    cursor = await connection.execute(
        """SELECT p.pubname, t.schemaname, t.tablename FROM pg_publication p
           LEFT JOIN pg_publication_tables t USING (pubname) WHERE p.pubname = ANY (%s)""",
        (list(names),),
    )
    found: dict[str, set[str]] = {}
    for publication, schema, table in await cursor.fetchall():
        tables = found.setdefault(publication, set())
        if table is not None:
            tables.add(spelt(schema, table))
    return found


async def writers(connection: Connection, table: Table) -> set[str]:
    """Transactions that may have written to the table and are not over, by their names in pg_locks."""
    cursor = await connection.execute(
        """SELECT virtualtransaction FROM pg_locks
           WHERE locktype = 'relation' AND granted AND mode LIKE '%%Exclusive%%'
             AND mode <> 'ShareUpdateExclusiveLock'
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND (relation = %(oid)s OR relation IN (SELECT relid FROM pg_partition_tree(%(oid)s::oid)))""",
        {"oid": table.oid},
    )
    return {row[0] for row in await cursor.fetchall()}
