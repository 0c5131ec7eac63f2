"""Replica identities: what tells rows apart in the stream, where that is missing, and what mends it.

Owns the findings and the exact SQL of their cures, so that capture, `status` and `doctor` say the same.
Changes nothing. A partitioned root's setting does not reach its partitions, and it is their own that the
server writes WAL by: every cure of a root names each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from streamer.changes.names import own_column, spelt
from streamer.postgres.catalog import Table, identifier
from streamer.postgres.connection import Connection

NAME_LIMIT_BYTES = 63  # of a name in PostgreSQL
NAMED_LIMIT = 5  # partitions in a sentence; the statements have all

PLAIN_KEY = (
    "give it a primary key, or a unique index as its replica identity, of columns that are not generated"
    " (while it has generated columns, the server takes no identity FULL)"
)

Name = tuple[str, str]  # schema, table


def _identify(place: Name, by: str) -> str:
    return f"ALTER TABLE {identifier(*place)} REPLICA IDENTITY {by};"


def checked_at_once(place: Name, constraint: str, columns: Sequence[str], *, primary: bool) -> str:
    """A deferrable key made again as one that an upsert can use; nothing can refer to it meanwhile."""
    names, kind = ", ".join(map(identifier, columns)), "PRIMARY KEY" if primary else "UNIQUE"
    again = (
        f"DROP CONSTRAINT {identifier(constraint)}, ADD CONSTRAINT {identifier(constraint)} {kind} ({names})"
    )
    return f"ALTER TABLE {identifier(*place)} {again};"


# ---- tables without one ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unidentified:
    """A table of which only inserts can be published. `fix`: words; `statements`: as the table's owner."""

    table: Table
    why: str
    fix: str
    statements: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """Both, to be followed by what comes then."""
        if not self.statements:
            return f"{self.fix};"
        return f"{self.fix}: as the table's owner run {' '.join(self.statements)}"


async def unidentified(connection: Connection, tables: Iterable[Table]) -> list[Unidentified]:
    """Of tables that are captured with inserts only: the reason, and the cheapest cure that works."""
    wanted = [table for table in tables if table.insert_only]
    if not wanted:
        return []
    leaves = await _leaves(connection, [table.oid for table in wanted])
    indexes = await _usable_indexes(connection, [table.oid for table in wanted])
    taken = await _index_names(connection, [table.schema for table in wanted])
    return [_cure(t, leaves.get(t.oid, ()), indexes.get(t.oid), taken) for t in wanted]


def _cure(table: Table, leaves: Sequence[Name], index: str | None, taken: set[Name]) -> Unidentified:
    places = [(table.schema, table.name), *leaves]
    if table.unsent:
        return _uncomputed(table, places, index)
    if table.primary_key:
        why = "its replica identity is NOTHING, or its index is gone"
        default = tuple(_identify(place, "DEFAULT") for place in places)
        return Unidentified(table, why, "let its primary key identify the rows", default)
    full = tuple(_identify(place, "FULL") for place in places)
    costs = "more WAL for each update and delete, and no backfills"
    why = "it has no primary key and no replica identity"
    if table.deferred_key:
        key = ", ".join(table.deferred_key)
        why = f"its primary key ({key}) is DEFERRABLE, which no replica identity can be"
    if index is not None and not table.partitioned:
        by = (_identify(places[0], f"USING INDEX {identifier(index)}"),)
        return Unidentified(table, why, f"let its unique index {index} identify the rows", by)
    if table.deferred_key and not table.partitioned:
        name = _free_name(table, taken)
        columns = ", ".join(identifier(column) for column in table.deferred_key)
        made = f"CREATE UNIQUE INDEX {identifier(name)} ON {identifier(*places[0])} ({columns});"
        fix = (
            "add a unique index that is checked at once (a statement that counts on a later check of the key"
            " fails then)"
        )
        if not table.not_whole:
            fix = f"either let whole rows identify them ({costs}) with {full[0][:-1]}, or {fix}"
        return Unidentified(table, why, fix, (made, _identify(places[0], f"USING INDEX {identifier(name)}")))
    if table.not_whole:
        return Unidentified(table, why, PLAIN_KEY)
    key = "let whole rows" if table.deferred_key else "add a primary key; or let whole rows"
    later = "; partitions that are made later need the same" if table.partitioned else ""
    return Unidentified(table, why, f"{key} identify them ({costs}){later}", full)


def _uncomputed(table: Table, places: Sequence[Name], index: str | None) -> Unidentified:
    """The replica identity has columns that do not travel: the server publishes no generated ones."""
    ours = [name for name in table.unsent if own_column(name)]
    columns = f"column{'s' if len(table.unsent) > 1 else ''} {', '.join(table.unsent)}"
    why = f"its replica identity has the generated {columns}, which no publication carries"
    if ours:
        why = f"its replica identity has the {columns}, and what Tailrace adds to a target is never captured"
    if table.primary_key:
        default = tuple(_identify(place, "DEFAULT") for place in places)
        return Unidentified(table, why, "let its primary key identify the rows", default)
    if index is not None and not table.partitioned:
        by = (_identify(places[0], f"USING INDEX {identifier(index)}"),)
        return Unidentified(table, why, f"let its unique index {index} identify the rows", by)
    if not table.not_whole:
        full = tuple(_identify(place, "FULL") for place in places)
        return Unidentified(table, why, "let whole rows identify them (no backfills)", full)
    return Unidentified(table, why, PLAIN_KEY)


def _free_name(table: Table, taken: set[Name]) -> str:
    name, ending = table.name, "_identity"
    for number in range(1, len(taken) + 2):
        stem = name.encode()[: NAME_LIMIT_BYTES - len(ending)].decode(errors="ignore")
        if (table.schema, stem + ending) not in taken:
            break
        ending = f"_identity{number}"
    taken.add((table.schema, stem + ending))
    return stem + ending


async def _leaves(connection: Connection, roots: Sequence[int]) -> dict[int, list[Name]]:
    cursor = await connection.execute(
        """SELECT root::bigint, n.nspname::text, l.relname::text
           FROM unnest(%s::bigint[]) root CROSS JOIN LATERAL pg_partition_tree(root::oid) tree
           JOIN pg_class l ON l.oid = tree.relid JOIN pg_namespace n ON n.oid = l.relnamespace
           WHERE tree.isleaf AND tree.level > 0 ORDER BY 1, 2, 3""",
        (list(roots),),
    )
    found: dict[int, list[Name]] = defaultdict(list)
    for root, schema, name in await cursor.fetchall():
        found[root].append((schema, name))
    return found


async def _usable_indexes(connection: Connection, tables: Sequence[int]) -> dict[int, str]:
    """By table, a unique index that may be its replica identity as it is; the narrowest."""
    cursor = await connection.execute(
        """SELECT DISTINCT ON (i.indrelid) i.indrelid::bigint, x.relname::text
           FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
           WHERE i.indrelid = ANY (%s::bigint[]::oid[]) AND i.indisunique AND i.indimmediate AND i.indisvalid
             AND i.indpred IS NULL AND i.indexprs IS NULL
             AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid
                             AND (NOT a.attnotnull OR a.attgenerated <> ''
                                  OR starts_with(a.attname::text, '_tailrace'))
                             AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
           ORDER BY i.indrelid, i.indnkeyatts, x.relname""",
        (list(tables),),
    )
    return dict(await cursor.fetchall())


async def _index_names(connection: Connection, schemas: Iterable[str]) -> set[Name]:
    cursor = await connection.execute(
        r"""SELECT n.nspname::text, c.relname::text
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = ANY (%s) AND c.relname ~ '_identity[0-9]*$'""",
        (sorted(set(schemas)),),
    )
    return set(await cursor.fetchall())


# ---- tables that a publication harms ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Harmed:
    """A table whose UPDATE and DELETE fail in the application, because `publication` carries them."""

    publication: str
    schema: str
    name: str
    by_name: bool  # not by FOR ALL TABLES or TABLES IN SCHEMA, which let none of them go
    leaves: tuple[Name, ...] = ()
    computed: bool = False  # there is one, with generated columns, which the publication does not carry
    may_carry: bool = False  # but could

    @property
    def what(self) -> str:
        if self.computed:
            return (
                f"UPDATE and DELETE of {spelt(self.schema, self.name)} fail in the application, or come "
                f"without their key: publication {self.publication} publishes them, and not the generated "
                "columns of the table's replica identity"
            )
        return (
            f"UPDATE and DELETE of {spelt(self.schema, self.name)} fail in the application: publication "
            f"{self.publication} publishes them, and the table has no replica identity"
        )

    @property
    def statements(self) -> tuple[str, ...]:
        publication, table = identifier(self.publication), identifier(self.schema, self.name)
        if self.carries:
            return (f"ALTER PUBLICATION {publication} SET (publish_generated_columns = stored);",)
        if not self.by_name:
            return tuple(_identify(place, "FULL") for place in ((self.schema, self.name), *self.leaves))
        return (f"ALTER PUBLICATION {publication} DROP TABLE ONLY {table};",)

    @property
    def carries(self) -> bool:
        """Whether the publication is to carry generated columns, as it does not let the table go."""
        return self.computed and self.may_carry and not self.by_name

    @property
    def runner(self) -> str:
        return "the publication's owner" if self.by_name or self.carries else "the table's owner"

    @property
    def fix(self) -> str:
        return f"as {self.runner} run {' '.join(self.statements)}"


async def harmed_tables(connection: Connection, *publications: str) -> list[Harmed]:
    """Of these publications, whether the config wants the tables or not: FOR TABLE takes along children."""
    cursor = await connection.execute(
        """SELECT c.oid::bigint, p.pubname::text, t.schemaname::text, t.tablename::text,
                  EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid),
                  found.computed, carried IS NOT NULL
           FROM pg_publication p JOIN pg_publication_tables t USING (pubname)
           JOIN pg_namespace n ON n.nspname = t.schemaname
           JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
           CROSS JOIN LATERAL (SELECT to_jsonb(p) ->> 'pubgencols') version (carried)  -- 18 and later
           CROSS JOIN LATERAL (
             WITH identity AS (
               SELECT i.indkey, i.indnkeyatts FROM pg_index i WHERE i.indrelid = c.oid
               AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                                       WHEN 'i' THEN i.indisreplident END)
             SELECT c.relreplident <> 'f' AND NOT EXISTS (SELECT FROM identity) AS absent,
                    CASE c.relreplident WHEN 'f' THEN carried = 'n' ELSE coalesce(carried, 'n') = 'n' END
                    AND EXISTS (SELECT FROM pg_attribute a
                                WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped
                                  AND (c.relreplident = 'f' OR EXISTS (SELECT FROM identity
                                       WHERE a.attnum = ANY (indkey[0:indnkeyatts - 1])))) AS computed
           ) found
           WHERE p.pubname = ANY (%s) AND (p.pubupdate OR p.pubdelete) AND (found.absent OR found.computed)
           ORDER BY 2, 3, 4""",
        (list(publications),),
    )
    found = await cursor.fetchall()
    leaves = await _leaves(connection, [row[0] for row in found]) if found else {}
    return [
        Harmed(publication, schema, name, by_name, tuple(leaves.get(oid, ())), bool(computed), may_carry)
        for oid, publication, schema, name, by_name, computed, may_carry in found
    ]


# ---- partitions that differ from their root --------------------------------------------------


@dataclass(frozen=True, slots=True)
class OddPartitions:
    """Partitions whose changes do not tell the key of their root: the server goes by their own identity.

    `leaves`: each with the index that is its part of the root's identity, where the root goes by one.
    """

    root: str
    identity: str  # of the root: d f i n
    leaves: Mapping[Name, str | None]

    @property
    def what(self) -> str:
        names = [spelt(*leaf) for leaf in self.leaves]
        shown, more = ", ".join(names[:NAMED_LIMIT]), len(names) - NAMED_LIMIT
        noun, has, their = ("partitions", "have", "their") if len(names) > 1 else ("partition", "has", "its")
        return (
            f"{noun} {shown}{f' and {more} more' if more > 0 else ''} {has} another replica identity than "
            f"{self.root} (a root's does not reach partitions): {their} UPDATEs and DELETEs come without the "
            "key, or fail in the application"
        )

    @property
    def statements(self) -> tuple[str, ...]:
        return tuple(_identify(leaf, self._by(index)) for leaf, index in self.leaves.items())

    def _by(self, index: str | None) -> str:
        if index is not None:
            return f"USING INDEX {identifier(index)}"
        return "DEFAULT" if self.identity == "d" else "FULL"

    @property
    def fix(self) -> str:
        return f"as the partitions' owner run {' '.join(self.statements)} (and for each that is made later)"


async def odd_partitions(
    connection: Connection, *publications: str, tables: Iterable[Table] = ()
) -> list[OddPartitions]:
    """Of roots in publications that carry updates or deletes, and of `tables` that one is to carry."""
    cursor = await connection.execute(
        """SELECT rn.nspname || '.' || r.relname, r.relreplident::text, ln.nspname::text, l.relname::text,
                  (SELECT x.relname::text
                   FROM pg_index i CROSS JOIN LATERAL pg_partition_tree(i.indexrelid) it
                   JOIN pg_index li ON li.indexrelid = it.relid JOIN pg_class x ON x.oid = it.relid
                   WHERE i.indrelid = r.oid AND i.indisreplident AND li.indrelid = l.oid)
           FROM pg_class r JOIN pg_namespace rn ON rn.oid = r.relnamespace
           CROSS JOIN LATERAL pg_partition_tree(r.oid) tree
           JOIN pg_class l ON l.oid = tree.relid JOIN pg_namespace ln ON ln.oid = l.relnamespace
           WHERE r.relkind = 'p' AND tree.isleaf AND tree.level > 0
             AND l.relreplident <> 'f' AND l.relreplident <> r.relreplident
             AND (r.oid = ANY (%s::bigint[]::oid[])
                  OR EXISTS (SELECT FROM pg_publication p JOIN pg_publication_tables t USING (pubname)
                             WHERE p.pubname = ANY (%s) AND (p.pubupdate OR p.pubdelete)
                               AND t.schemaname = rn.nspname AND t.tablename = r.relname))
           ORDER BY 1, 3, 4""",
        ([t.oid for t in tables if t.partitioned and not t.insert_only], list(publications)),
    )
    return [
        OddPartitions(root, identity, {(schema, name): index for _, _, schema, name, index in rows})
        for (root, identity), rows in groupby(await cursor.fetchall(), lambda row: (row[0], row[1]))
    ]
