"""A table made beside another one of a Postgres target, in its likeness, that is to take its place.

What stands in the way of that is found here and said by name; nothing is carried over that hangs on the old
table itself (views, triggers, foreign keys that point at it). Writes nothing of the schema _tailrace.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import errors

from consumers.targets.postgres_catalog import quote
from consumers.targets.postgres_state import Connection
from streamer.errors import ConfigError, TargetUnavailable

NAME_BYTES = 63  # what PostgreSQL keeps of a name
LOCK_TIMEOUT = "5s"  # of a foreign key's other table: its writers must not queue behind a long one

_LIVE = """SELECT c.oid::bigint, c.relkind::text, c.relispartition, c.relpersistence = 'u',
pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(n.oid, 'CREATE'),
c.relrowsecurity OR c.relforcerowsecurity, c.relreplident::text, s.spcname::text, m.amname::text,
coalesce(array_to_string(c.reloptions, ', '), ''), obj_description(c.oid, 'pg_class')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace LEFT JOIN pg_am m ON m.oid = c.relam
WHERE n.nspname = $1 AND c.relname = $2"""

# What names the table by its oid, or hangs on it: after the exchange it would go on with the old one.
_OBSTACLES = """WITH t AS (SELECT c.oid, c.reltype, y.typarray FROM pg_class c
LEFT JOIN pg_type y ON y.oid = c.reltype WHERE c.oid = $1::oid)
SELECT 'trigger ' || quote_ident(tgname) FROM pg_trigger WHERE tgrelid = $1::oid AND NOT tgisinternal
UNION ALL SELECT 'rule ' || quote_ident(rulename) FROM pg_rewrite WHERE ev_class = $1::oid
UNION ALL SELECT 'row security policy ' || quote_ident(polname) FROM pg_policy WHERE polrelid = $1::oid
UNION ALL SELECT 'publication ' || quote_ident(p.pubname) FROM pg_publication_rel r
JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1::oid
UNION ALL SELECT 'a subscription to it' FROM pg_subscription_rel WHERE srrelid = $1::oid
UNION ALL SELECT 'foreign key ' || quote_ident(conname) || ' of ' || conrelid::regclass::text
FROM pg_constraint WHERE contype = 'f' AND confrelid = $1::oid
UNION ALL SELECT 'inheritance with ' || CASE inhparent WHEN $1::oid THEN inhrelid ELSE inhparent END::regclass
FROM pg_inherits WHERE $1::oid IN (inhparent, inhrelid)
UNION ALL SELECT 'extension ' || quote_ident(e.extname) FROM pg_depend d JOIN pg_extension e
ON e.oid = d.refobjid WHERE d.classid = 'pg_class'::regclass AND d.objid = $1::oid AND d.deptype = 'e'
UNION ALL SELECT DISTINCT CASE WHEN r.oid IS NULL THEN pg_describe_object(d.classid, d.objid, d.objsubid)
ELSE pg_describe_object('pg_class'::regclass, r.ev_class, 0) END
FROM t, pg_depend d LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
WHERE d.deptype = 'n' AND ((d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
AND (d.classid = 'pg_proc'::regclass OR r.ev_class <> t.oid OR p.polrelid <> t.oid))
OR (d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.reltype, t.typarray)))"""

_COLUMNS = """SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid), a.attcollation::bigint,
pg_get_serial_sequence(format('%I.%I', n.nspname, c.relname), a.attname)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname"""

_INDEXES = """SELECT i.indexrelid::bigint, x.relname::text, i.indisunique OR i.indisexclusion,
i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL,
ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k), pg_get_constraintdef(k.oid),
substr(pg_get_indexdef(i.indexrelid), 1 + length(format('CREATE %sINDEX %I ON %I.%I',
CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, x.relname, n.nspname, c.relname))), i.indisreplident
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
AND k.contype IN ('p', 'u', 'x') WHERE i.indrelid = $1::oid AND i.indisvalid ORDER BY 1"""

_PARENTS = """SELECT conname::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE conrelid = $1::oid AND contype = 'f' ORDER BY conname"""
_HAS_CONSTRAINT = "SELECT FROM pg_constraint WHERE conrelid = $1::oid AND conname = $2"


@dataclass(frozen=True, slots=True)
class Live:
    """The table whose place another one is to take, as the catalogue has it."""

    schema: str
    name: str
    oid: int
    unlogged: bool
    owner: str
    identity: str  # replica identity: d, f, n or i
    tablespace: str | None
    method: str
    options: str
    comment: str | None

    @property
    def relation(self) -> str:
        return f"{quote(self.schema)}.{quote(self.name)}"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    not_null: bool
    identity: str
    generated: str
    default: str | None
    collation: int
    sequence: str | None  # owned by it, as it may stand in a statement


@dataclass(frozen=True, slots=True)
class Index:
    """`forbids`: it may refuse rows. `finds`: on columns alone, at once: fit to find a row by. `constraint`:
    the definition of the constraint that it is of."""

    oid: int
    name: str
    forbids: bool
    finds: bool
    columns: frozenset[str]
    constraint: str | None
    tail: str  # what stands behind the table's name in CREATE INDEX
    identity: bool


def fitting(name: str, end: str) -> str:
    """The name with that end, cut to what PostgreSQL keeps of it."""
    return name.encode()[: NAME_BYTES - len(end.encode())].decode(errors="ignore") + end


async def find(connection: Connection, schema: str, name: str) -> Live:
    """Raises ConfigError for what is no plain table, or is not this role's."""
    row = await (await connection.execute(_LIVE, (schema, name))).fetchone()
    where = f"target table {schema}.{name}"
    if row is None:
        raise ConfigError("it is not there, so that nothing is to be rebuilt", where=where)
    oid, kind, part, unlogged, owner, owns, makes, secured, *rest = row
    if kind != "r" or part:
        raise ConfigError(
            "it is no table of its own (partitioned, a partition or a view), which cannot be exchanged",
            where=where,
            fix="rebuild it by hand: a second flow into another table, then rename the tables",
        )
    user = connection.info.user
    if not owns or not makes:
        raise ConfigError(
            f"the role {user} may not rename it, or may make no table in {schema}",
            where=where,
            fix=f'GRANT {quote(str(owner))} TO "{user}"; GRANT CREATE ON SCHEMA {quote(schema)} TO "{user}";',
        )
    if secured:
        raise ConfigError(
            "it has row level security, which is not carried over",
            where=where,
            fix="rebuild it by hand: a second flow into another table, then rename the tables",
        )
    return Live(schema, name, int(str(oid)), bool(unlogged), str(owner), *rest)  # type: ignore[arg-type]


async def obstacles(connection: Connection, live: Live) -> None:
    """Raises ConfigError for what would go on with the old table, or be lost with it."""
    found = [str(name) for (name,) in await _rows(connection, _OBSTACLES, live.oid)]
    if found:
        raise ConfigError(
            f"an exchange would break what hangs on it: {', '.join(sorted(set(found)))}",
            where=f"target table {live.schema}.{live.name}",
            fix="drop them before, and make them again after it; a replay without --into needs no exchange",
        )


async def columns(connection: Connection, oid: int) -> dict[str, Column]:
    return {str(row[0]): Column(*row) for row in await _rows(connection, _COLUMNS, oid)}


async def indexes(connection: Connection, oid: int) -> list[Index]:
    return [
        Index(index, name, forbids, finds, frozenset(on), constraint, tail, identity)
        for index, name, forbids, finds, on, constraint, tail, identity in await _rows(
            connection, _INDEXES, oid
        )
    ]


async def keeps_own(connection: Connection, live: Live, sent: Collection[str]) -> None:
    """Raises ConfigError for values that the flow does not send: the log does not have them."""
    for column in (await columns(connection, live.oid)).values():
        if column.name in sent or column.generated:
            continue
        name = quote(column.name)
        query = (
            f"SELECT EXISTS (SELECT FROM {live.relation}"
            f" WHERE {name}::text IS DISTINCT FROM ({column.default or 'NULL'})::text)"
        )
        own = bool(column.identity or column.sequence)
        if not own:
            ((own,),) = await (await connection.execute(query, prepare=False)).fetchall()  # type: ignore[assignment]
        if own:
            raise ConfigError(
                f"column {column.name!r} has values of the target's own, which the log does not have",
                where=f"target table {live.schema}.{live.name}",
                fix="replay without --into, which leaves them; or keep them in a table of their own",
            )


# Making


async def make(connection: Connection, live: Live, name: str, key: Collection[str]) -> int:
    """The empty table, with the indexes that rows are found by; its oid. In the caller's transaction."""
    relation = f"{quote(live.schema)}.{quote(name)}"
    more = f" USING {quote(live.method)}" if live.method else ""
    more += f" WITH ({live.options})" if live.options else ""
    more += f" TABLESPACE {quote(live.tablespace)}" if live.tablespace else ""
    await _do(
        connection,
        f"CREATE {'UNLOGGED ' if live.unlogged else ''}TABLE {relation}"
        f" (LIKE {live.relation} INCLUDING ALL EXCLUDING INDEXES){more}",
    )
    if live.comment is not None:
        text = live.comment.replace("'", "''")
        await _do(connection, f"COMMENT ON TABLE {relation} IS '{text}'")
    await _do(connection, f"ALTER TABLE {relation} OWNER TO {quote(live.owner)}")
    for index in await indexes(connection, live.oid):
        if _comes_first(index, key):
            await _index(connection, live, name, index)
    ((oid,),) = await _rows(connection, "SELECT to_regclass($1)::oid::bigint", relation)
    return int(oid)


def _comes_first(index: Index, key: Collection[str]) -> bool:
    """Whether it may be there while rows come in any order: it only says again that a key has one row."""
    return index.finds and index.columns >= set(key)


def index_name(table: str, index: Index) -> str:
    """Of the index beside, until it takes the other's name."""
    return fitting(table, f"_{index.oid}")


async def _index(connection: Connection, live: Live, name: str, index: Index) -> None:
    relation, given = f"{quote(live.schema)}.{quote(name)}", quote(index_name(name, index))
    if index.constraint is not None:
        await _do(connection, f"ALTER TABLE {relation} ADD CONSTRAINT {given} {index.constraint}")
    else:
        unique = "UNIQUE " if index.forbids else ""
        await _do(connection, f"CREATE {unique}INDEX {given} ON {relation}{index.tail}")


async def add_indexes(connection: Connection, live: Live, name: str, *, forbidding: bool) -> None:
    """Those that are missing: rows are there. `forbidding`: also those that may refuse rows on the way."""
    relation = f"{quote(live.schema)}.{quote(name)}"
    query = "SELECT relname::text FROM pg_class x JOIN pg_index i ON i.indexrelid = x.oid"
    there = {
        row[0] for row in await _rows(connection, f"{query} WHERE i.indrelid = $1::text::regclass", relation)
    }
    for index in await indexes(connection, live.oid):
        if index_name(name, index) not in there and (forbidding or not index.forbids):
            await _index(connection, live, name, index)


async def add_parents(connection: Connection, live: Live, name: str, oid: int) -> None:
    """Foreign keys to other tables, checked as they are there. Raises ConfigError, TargetUnavailable."""
    relation = f"{quote(live.schema)}.{quote(name)}"
    for constraint, known, checked in await _rows(connection, _PARENTS, live.oid):
        if await _rows(connection, _HAS_CONSTRAINT, oid, constraint):
            continue
        text = f"{known.removesuffix(' NOT VALID')} NOT VALID"
        try:
            async with connection.transaction():
                await _do(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                await _do(connection, f"ALTER TABLE {relation} ADD CONSTRAINT {quote(constraint)} {text}")
            if checked:
                await _do(connection, f"ALTER TABLE {relation} VALIDATE CONSTRAINT {quote(constraint)}")
        except errors.LockNotAvailable as error:
            raise TargetUnavailable(
                f"foreign key {constraint} of {live.name} waits for a lock on the other table",
                fix="run it again: it goes on where it is",
            ) from error
        except errors.ForeignKeyViolation as error:
            raise ConfigError(
                f"rows of the rebuilt table break foreign key {constraint}: {error.diag.message_detail}",
                where=f"target table {live.schema}.{name}",
                fix="see that the other table's flow has come as far, then run it again",
            ) from error


async def same_columns(connection: Connection, one: int, other: int) -> bool:
    """But for the sequences behind identities."""
    found = []
    for oid in (one, other):
        here = await columns(connection, oid)
        found.append(
            [(c.name, c.type, c.not_null, c.identity, c.generated, c.default) for c in here.values()]
        )
    return found[0] == found[1]


async def _rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, parameters, prepare=False)).fetchall()


async def _do(connection: Connection, statement: str) -> None:
    await connection.execute(statement, prepare=False)
