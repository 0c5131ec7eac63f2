"""What stands under the captured tables: names, keys, types, places in the publications, partitions.

The stream says little of a table that is renamed, dropped and made again, rewritten, taken out of a
publication and put back, or given another partition; rows would be missing in silence. Facts are
compared with those of the epoch's first look, which are durable (changes.ground), so that it makes no
difference whether a capture ran meanwhile. Each difference is a finding that stays until a reset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from streamer.changes.ground import (
    Columns,
    Facts,
    Ground,
    MissedFacts,
    PublicationFacts,
    TableFacts,
)
from streamer.changes.names import parts, spelt
from streamer.errors import FatalError
from streamer.postgres.connection import Connection
from streamer.postgres.partitions import Cures, NoCures, Partitions, read_leaves
from streamer.postgres.stored import Stored, read_parts
from streamer.resetting import reset_fix

_NUMBERS = ("smallint", "integer", "bigint", "numeric")  # a later one prints every value of an earlier alike
NO_CURES = NoCures()
_TEXT = re.compile(r"text|character varying(\(\d+\))?\Z")


@dataclass(frozen=True, slots=True)
class Seen:
    """The catalogue at one look. `members`: publication -> names of its tables, as they are spelt."""

    ground: Ground
    members: dict[str, set[str]]


def _every(_schema: str, _table: str) -> bool:
    return True


class Drift:
    """What has become different since `before`, which grows by what is seen for the first time.

    `wanted`: whether the config captures a table (schema, table).
    """

    def __init__(self, source: str, before: Ground, wanted: Callable[[str, str], bool] = _every) -> None:
        self._source = source
        self._fix = reset_fix(source)
        self._before = before
        self._rule = wanted
        self.partitions = Partitions(source, before, self._know)
        self._stored = Stored(source, before, self._know)
        self._met: dict[int, str] = {}  # tables that the stream showed before a look did: oid -> name
        self._fresh: list[Facts] = []
        self._findings: dict[str, None] = {}

    def take_fresh(self) -> list[Facts]:
        """Facts that are to be recorded, once."""
        fresh, self._fresh = self._fresh, []
        return fresh

    @property
    def known(self) -> Mapping[int, TableFacts]:
        """Published tables as the epoch first saw them, by oid."""
        return self._before.tables

    def came_with_rows(self, name: str) -> None:
        """A table without a key that somebody published later; its rows of before are not in its topic."""
        self._miss(MissedFacts(name, name))

    def check_publications(self, now: Ground) -> None:
        """Raises FatalError when a publication is another one than at the first look."""
        for name, found in now.publications.items():
            if name not in self._before.publications:
                self._know(found)
        for name, before in self._before.publications.items():
            facts = now.publications.get(name)
            if facts is None or facts.oid != before.oid:
                what = "was dropped or made again"
            elif facts.publishes != before.publishes:
                what = "was told to publish other operations"
            else:
                continue
            raise FatalError(
                f"publication {name} {what} after its capture began: changes in between were not sent",
                where=f"source {self._source}",
                fix=self._fix,
            )

    def leave_out(self, captured: Iterable[str]) -> None:
        """At a start: what the config wants no longer misses changes from here on, seen or not."""
        for name in (*captured, *(facts.name for facts in self._before.tables.values())):
            self._miss_unwanted(name)

    def meet(self, oid: int, name: str) -> None:
        """The name that a table had where the stream is; a later look may find its first one again."""
        facts = self._before.tables.get(oid)
        known = facts.name if facts is not None else self._met.setdefault(oid, name)
        if known != name:
            self._miss(MissedFacts(known, name))

    def _miss_unwanted(self, name: str) -> None:
        if not self._wanted(name):
            self._miss(MissedFacts(name))

    def _miss(self, facts: MissedFacts) -> None:
        if facts not in self._before.missed:
            self._know(facts)

    def _wanted(self, name: str) -> bool:
        return self._rule(*parts(name))

    def compare(
        self,
        now: Ground,
        suspect: frozenset[int] = frozenset(),
        *,
        shown_lsn: int = 0,
        now_us: int = 0,
        cures: Cures = NO_CURES,
    ) -> list[str]:
        """Findings so far, each a sentence with what to do. For `suspect` and what follows see Partitions."""
        names_now = {facts.name for facts in now.tables.values()}
        for name in names_now:
            self._miss_unwanted(name)
        for missed in sorted(self._before.missed):
            if missed.instead == missed.name:
                if self._wanted(missed.name):
                    self._find(
                        f"{missed.name} has no key and was published later: rows that it had were not sent"
                    )
            elif missed.instead:
                if self._wanted(missed.name) or self._wanted(missed.instead):
                    self._find(_renamed(missed.name, missed.instead))
            elif missed.name in names_now and self._wanted(missed.name):
                self._find(
                    f"{missed.name} was left out by `tables:` for a while: changes meanwhile were not sent"
                )
        names = {facts.name: oid for oid, facts in self._before.tables.items()}
        for oid, facts in now.tables.items():
            before = self._before.tables.get(oid)
            if before is not None:
                for what in _differences(before, facts):
                    self._find(what)
                for what in self.partitions.compare(before, facts, now, suspect, now_us):
                    self._find(what)
                self._stored.compare(before, facts, now_us)
                self._grow(self._before.tables[oid], facts)
            elif facts.name in names:
                self._find(f"{facts.name} was dropped and made again, or another table was given its name")
            else:
                self._know(facts)
                self.partitions.learn(facts, now)
        unmended = self.partitions.unmended(now, suspect, shown_lsn, cures)
        stale = self._stored.unmended(names_now, cures, self._wanted)
        return [*self._findings, *unmended, *stale]

    def _know(self, facts: Facts) -> None:
        self._before.add(facts)
        self._fresh.append(facts)

    def _grow(self, before: TableFacts, now: TableFacts) -> None:
        """Columns that came later are compared from then on."""
        numbers = {number for number, _, _ in before.columns}
        names = {name for _, name, _ in before.columns}
        added = tuple(c for c in now.columns if c[0] not in numbers and c[1] not in names)
        if added:
            self._know(replace(before, columns=before.columns + added))

    def _find(self, what: str) -> None:
        self._findings.setdefault(f"{what}: {self._fix}")


def _differences(before: TableFacts, now: TableFacts) -> Iterator[str]:
    name = now.name
    if before.name != name:
        yield _renamed(before.name, name)
    if before.identity != now.identity or before.key != now.key:
        yield (
            f"the key or the replica identity of {name} changed (where it has another key now, drop its copy"
            " in each target before: DROP TABLE)"
        )
    if not set(before.places) <= set(now.places):
        yield f"{name} was taken out of its publication, and changes meanwhile were not sent"
    yield from _column_differences(name, before.columns, now.columns)


def _renamed(before: str, after: str) -> str:
    return f"{before} was renamed to {after}: what came under one name is not under the other"


def _column_differences(table: str, before: Columns, now: Columns) -> Iterator[str]:
    old = {number: (name, type_) for number, name, type_ in before}
    names = {name: number for number, name, _ in before}
    present = {number for number, _, _ in now}
    for number, name, type_ in now:
        was = old.get(number)
        if was is None:
            if names.get(name, number) not in present:
                yield f"column {name} of {table} was dropped and made again, which sends no rows"
            continue
        if was[0] != name:
            yield f"column {was[0]} of {table} was renamed to {name}, which sends no rows"
        if not prints_alike(was[1], type_):
            yield f"column {name} of {table} was {was[1]} and is {type_} now, which sends no rows"


def prints_alike(old: str, new: str) -> bool:
    """Whether ALTER TYPE leaves every value as it was in the events."""
    if old == new or (_TEXT.fullmatch(old) and _TEXT.fullmatch(new)):
        return True
    return old in _NUMBERS and new in _NUMBERS and _NUMBERS.index(old) <= _NUMBERS.index(new)


async def read_ground(connection: Connection, *publications: str) -> Seen:
    """The publications that are there, and the tables that are in them, as the catalogue shows them."""
    cursor = await connection.execute(
        """SELECT oid::bigint, pubname::text, ARRAY[pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot]
           FROM pg_publication WHERE pubname = ANY (%s)""",
        (list(publications),),
    )
    ground = Ground()
    for oid, name, publishes in await cursor.fetchall():
        ground.add(PublicationFacts(oid, name, tuple(publishes)))
    members: dict[str, set[str]] = {name: set() for name in ground.publications}
    cursor = await connection.execute(
        """
        WITH members AS (
            SELECT c.oid, t.schemaname::text AS schema, t.tablename::text AS name, c.relreplident,
                   c.relkind = 'p' AS partitioned, array_agg(t.pubname::text) AS publications
            FROM pg_publication_tables t
            JOIN pg_namespace n ON n.nspname = t.schemaname
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
            WHERE t.pubname = ANY (%(names)s) GROUP BY 1, 2, 3, 4, 5
        )
        SELECT m.publications, m.oid::bigint, m.schema, m.name, m.relreplident::text,
               coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum)
                         FROM pg_index i
                         JOIN pg_attribute a ON a.attrelid = m.oid AND a.attnum = ANY (i.indkey)
                         WHERE i.indrelid = m.oid AND i.indisprimary), '{}'),
               coalesce((SELECT array_agg(r.oid::bigint ORDER BY r.oid) FROM pg_publication_rel r
                         JOIN pg_publication p ON p.oid = r.prpubid
                         WHERE r.prrelid = m.oid AND p.pubname = ANY (%(names)s)), '{}'),
               coalesce((SELECT array_agg(relid::bigint ORDER BY relid) FROM pg_partition_tree(m.oid)
                         WHERE relid <> m.oid), '{}'),
               -- a type of the user's by its bare name: what format_type prints depends on search_path
               (SELECT array_agg(ARRAY[a.attnum::text, a.attname::text,
                                       CASE WHEN t.typnamespace <> 'pg_catalog'::regnamespace THEN t.typname
                                            ELSE format_type(a.atttypid, a.atttypmod) END]
                                 ORDER BY a.attnum)
                FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                WHERE a.attrelid = m.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
               m.partitioned
        FROM members m
        """,
        {"names": list(publications)},
    )
    roots = []
    for (
        within,
        oid,
        schema,
        table,
        identity,
        key,
        places,
        partitions,
        columns,
        root,
    ) in await cursor.fetchall():
        name = spelt(schema, table)
        for publication in within:
            members[publication].add(name)
        numbered = tuple((int(number), column, type_) for number, column, type_ in columns or ())
        ground.add(TableFacts(oid, name, identity, tuple(key), tuple(places), tuple(partitions), numbered))
        if root:
            roots.append(oid)
    await read_parts(connection, ground)
    await read_leaves(connection, ground, roots)
    return Seen(ground, members)
