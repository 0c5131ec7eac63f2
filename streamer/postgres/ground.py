"""What stands under the captured tables: names, keys, places in the publications, partitions.

The stream says nothing of a table that is renamed, dropped and made again, taken out of a
publication and put back, or given another partition; rows would be missing in silence. Facts are
compared with those of the session's first look, and each difference is a finding that stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streamer.postgres.connection import Connection
from streamer.postgres.history import reset_fix


@dataclass(frozen=True, slots=True)
class Facts:
    """One published table. `places`: its entries in our publications; `partitions`: below it."""

    oid: int
    name: str
    identity: str
    key: tuple[str, ...]
    places: tuple[int, ...]
    partitions: tuple[int, ...]


class Ground:
    """The facts of the first look, and what has become different since."""

    def __init__(self, source: str) -> None:
        self._fix = reset_fix(source)
        self._before: dict[int, Facts] = {}
        self._findings: dict[str, None] = {}

    def compare(self, now: Iterable[Facts]) -> list[str]:
        """Findings so far, each a sentence with what to do."""
        present = {facts.oid: facts for facts in now}
        names = {facts.name: oid for oid, facts in self._before.items()}
        for oid, facts in present.items():
            before = self._before.setdefault(oid, facts)
            if before is facts and names.get(facts.name, oid) != oid:
                self._find(f"{facts.name} was dropped and made again, or another table was given its name")
            if before.name != facts.name:
                self._find(f"{before.name} was renamed to {facts.name}: rows from before keep the old name")
            if before.identity != facts.identity or before.key != facts.key:
                self._find(f"the key or the replica identity of {facts.name} changed")
            if not set(before.places) <= set(facts.places):
                self._find(
                    f"{facts.name} was taken out of its publication, and changes meanwhile were not sent"
                )
            if before.partitions != facts.partitions:
                self._find(
                    f"partitions of {facts.name} were attached, detached or dropped, which sends no rows"
                )
        return list(self._findings)

    def _find(self, what: str) -> None:
        self._findings.setdefault(f"{what}: {self._fix}")


async def read_facts(connection: Connection, *publications: str) -> list[Facts]:
    """The tables that are members of the publications, as the catalogue shows them now."""
    cursor = await connection.execute(
        """
        SELECT c.oid::bigint, n.nspname || '.' || c.relname, c.relreplident::text,
               coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum)
                         FROM pg_index i
                         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
                         WHERE i.indrelid = c.oid AND i.indisprimary), '{}'),
               (SELECT array_agg(r.oid::bigint ORDER BY r.oid) FROM pg_publication_rel r
                JOIN pg_publication p ON p.oid = r.prpubid
                WHERE r.prrelid = c.oid AND p.pubname = ANY (%(names)s)),
               coalesce((SELECT array_agg(relid::bigint ORDER BY relid) FROM pg_partition_tree(c.oid)
                         WHERE relid <> c.oid), '{}')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid IN (SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                        WHERE p.pubname = ANY (%(names)s))
        """,
        {"names": list(publications)},
    )
    return [
        Facts(oid, name, identity, tuple(key), tuple(places or ()), tuple(partitions))
        for oid, name, identity, key, places, partitions in await cursor.fetchall()
    ]
