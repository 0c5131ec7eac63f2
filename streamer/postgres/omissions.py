"""What is left out of the tables that are to be captured, so that changes would be lost without a word.

Owns the findings and the exact SQL of their cures, so that capture, `status` and `doctor` say the same: a
publication made by hand may carry fewer operations, rows or columns, and a partition may have no WAL at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.changes.names import spelt
from streamer.config import PostgresSource
from streamer.postgres.catalog import Publications, identifier, unlogged, why_unlogged
from streamer.postgres.connection import Connection
from streamer.postgres.publishing import hands

FILTERS_SINCE = 150000  # row filters and column lists of publications


@dataclass(frozen=True, slots=True)
class Omission:
    """`doing`: who is to run the statements, and what comes before."""

    kind: str
    what: str
    doing: str
    statements: tuple[str, ...]

    @property
    def fix(self) -> str:
        return f"{self.doing} {' '.join(self.statements)}"


async def omissions(connection: Connection, wanted: Publications) -> list[Omission]:
    """Of the publications that are there."""
    return [
        *await _operations(connection, wanted),
        *await _filters(connection, wanted),
        *await _unlogged(connection, wanted),
    ]


async def unlogged_tables(connection: Connection, source: PostgresSource) -> list[Omission]:
    """Tables that a pattern of the config fits; one that it names is an error (catalog.list_tables)."""
    found = []
    for schema, name in await unlogged(connection):
        if source.rule_for(schema, name) is not None:
            what, statement = why_unlogged(schema, name)
            doing = f'write `"{schema}.{name}": exclude` above its pattern in `tables:`, or as its owner run'
            found.append(Omission("tables", what, doing, (statement,)))
    return found


async def _operations(connection: Connection, wanted: Publications) -> list[Omission]:
    cursor = await connection.execute(
        """SELECT pubname::text, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
           FROM pg_publication WHERE pubname = ANY (%s) ORDER BY 1""",
        ([wanted.name, wanted.inserts_name],),
    )
    found = []
    flat = not any(table.partitioned for table in wanted.tables)
    for name, inserts, updates, deletes, truncates, via_root in await cursor.fetchall():
        full = name == wanted.name
        if inserts and truncates and updates == deletes == full and (via_root or flat):
            continue
        operations = "insert, update, delete, truncate" if full else "insert, truncate"
        options = f"publish = '{operations}', publish_via_partition_root = true"
        what = f"the publication {name} does not publish what capture needs ({options})"
        sql = f"ALTER PUBLICATION {identifier(name)} SET ({options});"
        found.append(Omission("publication", what, "as the publication's owner run", (sql,)))
    return found


async def _filters(connection: Connection, wanted: Publications) -> list[Omission]:
    if connection.info.server_version < FILTERS_SINCE:
        return []
    by_oid = {table.oid: table for table in wanted.tables}
    cursor = await connection.execute(
        """SELECT p.pubname::text, r.prrelid::bigint FROM pg_publication p
           JOIN pg_publication_rel r ON r.prpubid = p.oid
           WHERE p.pubname = ANY (%s) AND r.prrelid = ANY (%s::bigint[]::oid[])
             AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL) ORDER BY 1, 2""",
        ([wanted.name, wanted.inserts_name], list(by_oid)),
    )
    found = []
    for name, oid in await cursor.fetchall():
        table, publication = by_oid[oid], identifier(name)
        place = table.alone.as_string(None)
        what = f"the publication {name} filters rows or columns of {table.qualified}: changes would be lost"
        drop, add = (f"ALTER PUBLICATION {publication} {verb} TABLE {place};" for verb in ("DROP", "ADD"))
        may = await hands(connection, [table], [name], makes=False)
        doing = f"stop capture, and {may.who} run"
        found.append(Omission("publication", what, doing, (f"BEGIN; {drop} {add} COMMIT;",)))
    return found


async def _unlogged(connection: Connection, wanted: Publications) -> list[Omission]:
    roots = {table.oid: table for table in wanted.tables if table.partitioned}
    if not roots:
        return []
    cursor = await connection.execute(
        """SELECT root, n.nspname::text, c.relname::text, c.relkind = 'f'
           FROM unnest(%s::bigint[]) root CROSS JOIN LATERAL pg_partition_tree(root::oid::regclass) tree
           JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE tree.isleaf AND (c.relpersistence <> 'p' OR c.relkind = 'f') ORDER BY 1, 2, 3""",
        (list(roots),),
    )
    found = []
    for root, schema, name, foreign in await cursor.fetchall():
        kind = "a foreign table" if foreign else "UNLOGGED"
        what = (
            f"partition {spelt(schema, name)} of {roots[root].qualified} is {kind}: its changes are not in"
            " the server's log, and cannot be captured"
        )
        place = identifier(schema, name)
        logged = f"ALTER TABLE {place} SET LOGGED;"
        detach = f"ALTER TABLE {roots[root].identifier.as_string(None)} DETACH PARTITION {place};"
        sql = detach if foreign else logged
        found.append(Omission("partitions", what, "stop capture, and as its owner run", (sql,)))
    return found
