"""Values of stored rows that DDL has changed without a row event.

A label of an enum that is renamed, an attribute that a composite type gets or loses, a column that is added
with a default: rows that are there read otherwise from then on, and the stream has nothing of it. This owns
what such values are made of beside the rows (changes.ground.Parts), and what is said when that changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from shlex import quote

from streamer.changes.ground import DEFAULT, Facts, Ground, StaleFacts, TableFacts
from streamer.postgres.connection import Connection
from streamer.postgres.partitions import Cures
from streamer.resetting import reset_fix, reset_steps

_LABEL, _ATTRIBUTE = "e", "a"  # kinds of parts


class Stored:
    """Of one source's tables, against what is known of them. `know`: takes what is to be recorded."""

    def __init__(self, source: str, before: Ground, know: Callable[[Facts], None]) -> None:
        self._source = source
        self._before = before
        self._know = know

    def compare(self, before: TableFacts, now: TableFacts, now_us: int) -> None:
        """To be called before columns that came later are taken for known."""
        has_key = bool(now.key) or now.identity == "i"
        keyed = set(now.key) or {name for _, name, _ in now.columns}
        for column, how in _changes(before, now):
            what = f"column {column} of {now.name} {how}, which sends no rows"
            keys = not has_key or (column in keyed and how != _ADDED)
            self._know(StaleFacts(now.oid, what, now_us, keys))
        if before.parts != now.parts:
            self._know(replace(self._before.tables[now.oid], parts=now.parts))

    def unmended(self, there: Collection[str], cures: Cures, wanted: Callable[[str], bool]) -> Iterator[str]:
        """`there`: names of tables as they are."""
        for stale in list(self._before.stale.values()):
            table = self._before.tables[stale.stale].name
            if not stale.since_us or table not in there or not wanted(table):
                continue
            if stale.keys:
                yield f"{stale.what}: {reset_fix(self._source)}"
                continue
            if cures.refilled(table, stale.since_us):
                self._know(replace(stale, since_us=0))
                continue
            yield (
                f"{stale.what}: rows that were there have the values of before in the targets."
                f" `tailrace backfill {self._source} {quote(table)}` sends them again; so does a reset:"
                f" {reset_steps(self._source)}"
            )


_ADDED = "was added with a default"


def _changes(before: TableFacts, now: TableFacts) -> Iterator[tuple[str, str]]:
    """(column, what became of its values)."""
    known = {number: type_ for number, _, type_ in before.columns}
    names = {name for _, name, _ in before.columns}
    old = {(number, part): text for number, part, text in before.parts}
    new = {(number, part): text for number, part, text in now.parts}
    composites = {(number, _composite(part)) for number, part in old if part.startswith(_ATTRIBUTE)}
    for number, column, type_ in now.columns:
        if number not in known:
            if (number, DEFAULT) in new and column not in names:
                yield column, _ADDED
            continue
        if known[number] != type_:
            continue  # a finding of its own
        for (of, part), text in old.items():
            if of != number or part == DEFAULT:
                continue
            found = new.get((of, part))
            if part.startswith(_LABEL) and found not in (None, text):
                yield column, f"has the value {found!r} where it had {text!r} (ALTER TYPE ... RENAME VALUE)"
            elif part.startswith(_ATTRIBUTE) and found is None:
                yield column, "has lost an attribute of its composite type"
            elif part.startswith(_ATTRIBUTE) and found != text:
                yield column, f"has an attribute that was {text} and is {found} now"
        for of, part in new.keys() - old.keys():
            if of == number and part.startswith(_ATTRIBUTE) and (of, _composite(part)) in composites:
                yield column, "has got an attribute of its composite type"


def _composite(part: str) -> str:
    return part.partition(".")[0]


async def read_parts(connection: Connection, ground: Ground) -> None:
    """Of the tables in `ground`, into them: labels and attributes, within domains, arrays and ranges, too."""
    cursor = await connection.execute(
        """
        WITH RECURSIVE columns AS (
            SELECT a.attrelid, a.attnum, a.attname, a.atttypid
            FROM pg_attribute a
            WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ), uses AS (
            SELECT c.attrelid, c.attnum, c.atttypid AS type
            FROM columns c JOIN pg_type t ON t.oid = c.atttypid
            WHERE t.typnamespace <> 'pg_catalog'::regnamespace
            UNION
            SELECT u.attrelid, u.attnum, inner_.type
            FROM uses u JOIN pg_type t ON t.oid = u.type CROSS JOIN LATERAL (
                SELECT t.typbasetype WHERE t.typtype = 'd'
                UNION ALL SELECT t.typelem WHERE t.typelem <> 0 AND t.typlen = -1
                UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
                UNION ALL SELECT a.atttypid FROM pg_attribute a
                          WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                                AND NOT a.attisdropped
            ) inner_ (type)
        )
        SELECT u.attrelid::bigint, u.attnum::int, 'e' || e.oid::text, e.enumlabel::text
        FROM uses u JOIN pg_enum e ON e.enumtypid = u.type
        UNION ALL
        SELECT u.attrelid::bigint, u.attnum::int, 'a' || a.attrelid::text || '.' || a.attnum::text,
               CASE WHEN i.typnamespace <> 'pg_catalog'::regnamespace THEN i.typname::text
                    ELSE format_type(a.atttypid, a.atttypmod) END
        FROM uses u JOIN pg_type t ON t.oid = u.type AND t.typtype = 'c'
        JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type i ON i.oid = a.atttypid
        UNION ALL
        SELECT c.attrelid::bigint, c.attnum::int, 'default', ''
        FROM columns c JOIN pg_type t ON t.oid = c.atttypid
        WHERE EXISTS (
            SELECT FROM (  -- of a partitioned table its partitions have the rows
                SELECT c.attrelid UNION SELECT tree.relid::oid FROM pg_partition_tree(c.attrelid) tree
            ) holder (oid)
            JOIN pg_attribute a ON a.attrelid = holder.oid AND a.attname = c.attname
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            LEFT JOIN pg_depend i ON i.classid = 'pg_class'::regclass AND i.refclassid = 'pg_class'::regclass
                 AND i.refobjid = c.attrelid AND i.refobjsubid = c.attnum AND i.deptype = 'i'
            WHERE (a.atthasmissing OR (d.oid IS NULL AND t.typdefault IS NOT NULL)
                   -- one that is not constant is written into every row, into a file that is younger than it
                   OR pg_relation_filenode(holder.oid) > coalesce(d.oid, i.objid))
                  AND pg_relation_size(holder.oid) > 0)
        ORDER BY 1, 2, 3
        """,
        (list(ground.tables),),
    )
    found: dict[int, list[tuple[int, str, str]]] = {}
    for oid, number, part, text in await cursor.fetchall():
        found.setdefault(oid, []).append((number, part, text))
    for oid, parts in found.items():
        ground.add(replace(ground.tables[oid], parts=tuple(parts)))
