"""Unique indexes of a target's table that hold rows which a soft delete has marked, and the SQL that makes
them indexes of live rows. What apply refuses and what the doctor says are one."""

from __future__ import annotations

from psycopg import sql

EXCLUSION = "x"  # of pg_constraint.contype

# Of a table: name, columns that it is on, columns that its entries hang on, predicate, definition, the kind
# of constraint that it belongs to.
INDEXES = """SELECT c.relname::text,
ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k),
ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum > 0
AND (a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) OR EXISTS (SELECT FROM pg_depend d
WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass
AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))),
coalesce(pg_get_expr(i.indpred, i.indrelid), ''), pg_get_indexdef(i.indexrelid),
coalesce((SELECT k.contype::text FROM pg_constraint k WHERE k.conindid = i.indexrelid
AND k.conrelid = i.indrelid AND k.contype IN ('u', 'x', 'p')), '')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %s::bigint::oid AND (i.indisunique OR i.indisexclusion) ORDER BY c.relname"""


def of_live_rows(
    place: tuple[str, str], index: str, definition: str, predicate: str, constraint: str, soft: str
) -> list[str]:
    """Statements; of an exclusion constraint the last one is a person's to write."""
    table, live = _quoted(*place), f"{_quoted(soft)} IS NULL"
    drop = f"DROP INDEX {_quoted(place[0], index)};"
    if constraint:
        drop = f"ALTER TABLE {table} DROP CONSTRAINT {_quoted(index)};"
    if constraint == EXCLUSION:
        return [drop, f"-- and make it again with WHERE ({live})"]
    return [drop, f"{definition} {'AND' if predicate else 'WHERE'} {live};"]


def _quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string()
