"""Unique indexes of a target's table that hold rows which a soft delete has marked, and the SQL that makes
them indexes of live rows. What apply refuses and what the doctor says are one."""

from __future__ import annotations

from streamer.postgres.catalog import identifier

EXCLUSION = "x"  # of pg_constraint.contype

# Of an index i: the columns that it is on; and those that its entries hang on, of which a generated column is
# what it is made of, and an expression or predicate what it reads.
ON_COLUMNS = """ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k)"""
HANGS_ON = """ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum > 0
AND (a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) OR EXISTS (SELECT FROM pg_depend d
WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass
AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum)))"""
# Its predicate, its definition, and the kind of constraint that it belongs to.
MEANING = """coalesce(pg_get_expr(i.indpred, i.indrelid), ''), pg_get_indexdef(i.indexrelid),
coalesce((SELECT k.contype::text FROM pg_constraint k WHERE k.conindid = i.indexrelid
AND k.conrelid = i.indrelid AND k.contype IN ('u', 'x', 'p')), '')"""

INDEXES = f"""SELECT c.relname::text, {ON_COLUMNS}, {HANGS_ON}, {MEANING}
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %s::bigint::oid AND (i.indisunique OR i.indisexclusion) ORDER BY c.relname"""


def of_live_rows(
    place: tuple[str, str], index: str, definition: str, predicate: str, constraint: str, soft: str
) -> list[str]:
    """Statements; of an exclusion constraint the last one is a person's to write."""
    table, live = identifier(*place), f"{identifier(soft)} IS NULL"
    drop = f"DROP INDEX {identifier(place[0], index)};"
    if constraint:
        drop = f"ALTER TABLE {table} DROP CONSTRAINT {identifier(index)};"
    if constraint == EXCLUSION:
        return [drop, f"-- and make it again with WHERE ({live})"]
    return [drop, f"{definition} {'AND' if predicate else 'WHERE'} {live};"]
