"""A target table as the catalogue has it: columns, keys, constraints. Reads only; see postgres_tables.

Index columns and the columns of foreign keys are names. What a unique index depends on counts: the
columns of its expressions and of its predicate too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from consumers.targets.postgres_state import Connection
from streamer.errors import ConfigError
from streamer.postgres import live_rows

_NUMERIC = 1700  # the type's oid


@dataclass(frozen=True, slots=True)
class TargetColumn:
    name: str
    type: str  # without typmod, as it may stand in a cast
    full_type: str  # as format_type prints it; of a domain, its base type
    internal: str  # pg_type.typname
    builtin: bool
    not_null: bool
    generated: bool
    identity: str  # a(lways), d(efault) or empty
    default: bool
    sequence: str | None  # owned by the column, as it may stand in a statement


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """Or an exclusion constraint. `whole`: on columns alone, valid, not deferrable: fit for ON CONFLICT."""

    name: str
    whole: bool
    deferrable: bool
    columns: frozenset[str]  # that it is on
    depends: frozenset[str]  # that its entries hang on, or its predicate
    nulls_equal: bool
    versioned: bool  # a history's: partial, over rows of ours
    primary: bool
    predicate: str = ""  # of a partial one
    definition: str = ""  # the statement that makes it
    constraint: str = ""  # u(nique), x(clusion), p(rimary): one that it belongs to


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """`child` refers to `parent`; both as (schema, table)."""

    name: str
    child: tuple[str, str]
    parent: tuple[str, str]
    child_columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    on_delete: str  # a: no action, r: restrict, c: cascade, n: set null, d: set default
    deferrable: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    schema: str
    name: str
    columns: dict[str, TargetColumn]
    unique: tuple[UniqueIndex, ...]
    parents: tuple[ForeignKey, ...]  # this table refers to
    children: tuple[ForeignKey, ...]  # that refer to this table
    partitioned_by: tuple[str, ...]  # empty: not partitioned; '' stands for an expression

    @property
    def text(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def relation(self) -> str:
        return f"{quote(self.schema)}.{quote(self.name)}"


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(quote, names))


_RELATION = """SELECT c.oid::bigint, c.relkind::text FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2"""
_COLUMNS = """SELECT a.attname::text, format_type(a.atttypid, -1),
CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod)
ELSE format_type(a.atttypid, a.atttypmod) END, t.typname::text,
t.typnamespace = 'pg_catalog'::regnamespace, a.attnotnull OR t.typnotnull, a.attgenerated <> '',
a.attidentity::text, a.atthasdef AND a.attgenerated = '' OR t.typdefault IS NOT NULL,
pg_get_serial_sequence(format('%I.%I', $2::text, $3::text), a.attname)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_UNIQUE = f"""SELECT c.relname::text, i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
AND i.indimmediate AND NOT i.indisexclusion, NOT i.indimmediate,
{live_rows.ON_COLUMNS}, {live_rows.HANGS_ON},
coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
coalesce(pg_get_expr(i.indpred, i.indrelid), '') LIKE '%_tailrace_epoch > 0%', i.indisprimary,
{live_rows.MEANING}
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::oid AND (i.indisunique OR i.indisexclusion) ORDER BY c.relname"""
_FOREIGN = """SELECT k.conname::text, cn.nspname::text, cc.relname::text, pn.nspname::text, pc.relname::text,
ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY s (n, i)
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = s.n ORDER BY s.i),
ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY s (n, i)
JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = s.n ORDER BY s.i),
k.confdeltype::text, k.condeferrable, k.conrelid = $1::oid, k.confrelid = $1::oid
FROM pg_constraint k JOIN pg_class cc ON cc.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = cc.relnamespace
JOIN pg_class pc ON pc.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = pc.relnamespace
WHERE k.contype = 'f' AND (k.conrelid = $1::oid OR k.confrelid = $1::oid) AND k.conparentid = 0
AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true) ORDER BY 1, 2, 3"""
_PARTITIONED = """SELECT coalesce(a.attname::text, '') FROM pg_partitioned_table p
CROSS JOIN unnest(p.partattrs) WITH ORDINALITY s (n, i)
LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = s.n
WHERE p.partrelid = $1::oid ORDER BY s.i"""
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "c": "a composite type",
}


async def read_table(connection: Connection, schema: str, name: str) -> TargetTable | None:
    """None when there is no such table. Raises ConfigError for a view or another relation."""
    relation = await (await connection.execute(_RELATION, (schema, name))).fetchone()
    if relation is None:
        return None
    oid, kind = relation
    if kind not in ("r", "p"):
        raise ConfigError(
            f"{schema}.{name} in the target is {_KINDS.get(str(kind), 'no table')}, and not a table",
            fix="send the flow to a table: the one below it, or another",
        )

    async def rows(query: str, *parameters: object) -> list[tuple[object, ...]]:
        return await (await connection.execute(query, (oid, *parameters))).fetchall()

    columns = [TargetColumn(*row) for row in await rows(_COLUMNS, schema, name)]  # type: ignore[arg-type]
    unique = [
        UniqueIndex(
            str(name),
            bool(whole),
            bool(late),
            _names(on),
            _names(depends),
            bool(nulls_equal),
            bool(versioned),
            bool(primary),
            *map(str, texts),
        )
        for name, whole, late, on, depends, nulls_equal, versioned, primary, *texts in await rows(_UNIQUE)
    ]
    parents, children = [], []
    for constraint, child_schema, child, parent_schema, parent, *rest in await rows(_FOREIGN):
        on, to, action, late, outgoing, incoming = rest
        key = ForeignKey(
            str(constraint),
            (str(child_schema), str(child)),
            (str(parent_schema), str(parent)),
            tuple(map(str, on)),  # type: ignore[call-overload]
            tuple(map(str, to)),  # type: ignore[call-overload]
            str(action),
            bool(late),
        )
        parents += [key] if outgoing else []
        children += [key] if incoming else []
    partitioned = [str(part) for (part,) in await rows(_PARTITIONED)] if kind == "p" else []
    return TargetTable(
        schema,
        name,
        {column.name: column for column in columns},
        tuple(unique),
        tuple(parents),
        tuple(children),
        tuple(partitioned),
    )


def _names(found: object) -> frozenset[str]:
    return frozenset(map(str, found)) if isinstance(found, list) else frozenset()


async def casts_directly(connection: Connection, source: str, kind: str, cast: str) -> bool:
    """Whether a flow's cast is the server's own: there is one, and it keeps the digits of a float, which that
    to a numeric rounds to 15, or 6. Else it goes by way of text. `kind`: of the source's type."""
    try:
        cursor = await connection.execute(f"SELECT NULL::{source}::{cast}".encode(), prepare=False)
    except psycopg.errors.CannotCoerce:
        return False
    assert cursor.description is not None
    made = cursor.description[0].type_code  # of a domain that of its base
    return not (kind == "float" and made == _NUMERIC)
