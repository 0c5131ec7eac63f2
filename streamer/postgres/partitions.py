"""Partitions of captured tables: what the stream, which knows only their root, does not tell of them.

The server sends neither the TRUNCATE of one partition, nor that one is detached or dropped with its rows, nor
the rows that one is attached with. The first shows as another file of its rows, which VACUUM FULL, CLUSTER
and ALTER TABLE make too, and which a TRUNCATE of the root, that the stream shows, makes of every partition.
Owns telling these apart, and what is said of them.

Looks take the oldest evidence there is: a TRUNCATE leaves no count of rows, a rewrite of columns is of the
transaction that wrote the columns, and rows that were kept are older than the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import Protocol

from psycopg import errors, sql

from streamer.changes.ground import Facts, Ground, LeafFacts, TableFacts, TruncateFacts
from streamer.changes.lsn import parse_lsn
from streamer.changes.names import spelt
from streamer.postgres.connection import Connection
from streamer.resetting import reset_steps

ROWS_LOOKED_AT = 1000  # the first of a partition: what it was filled with before is in front
LOOK_TIMEOUT = "1s"  # then nothing is known, which counts as the worse
_UNKNOWN = (
    errors.InsufficientPrivilege,
    errors.QueryCanceled,
    errors.LockNotAvailable,
    errors.UndefinedTable,
)


@dataclass(frozen=True, slots=True)
class Strange:
    """A partition that is new, or whose rows are in another file than before."""

    leaf: LeafFacts
    attached: bool


class Cures(Protocol):
    """What was done about a table (schema.table), as far as the backfills tell."""

    def repaired(self, table: str, lsn: int) -> bool:
        """Whether a repair has taken rows out of the targets that the table has no more, by a comparison of
        all of it that began at an LSN or behind it."""

    def refilled(self, table: str, since_us: int) -> bool:
        """Whether all of its rows were published again by a run that has begun since."""


class NoCures:
    def repaired(self, _table: str, _lsn: int) -> bool:
        return False

    def refilled(self, _table: str, _since_us: int) -> bool:
        return False


class Partitions:
    """Of one source's tables, against what is known of them. `know`: takes what is to be recorded."""

    def __init__(self, source: str, before: Ground, know: Callable[[Facts], None]) -> None:
        self._source = source
        self._before = before
        self._know = know
        self._emptied: dict[
            int, int
        ] = {}  # partition -> LSN that the stream must have shown before we say so

    def truncated(self, root: int, commit_lsn: int) -> None:
        """The stream has shown a TRUNCATE of the root: what its partitions held is gone everywhere."""
        if any(leaf.root == root for leaf in self._before.leaves.values()):
            self._know(TruncateFacts(root, commit_lsn))

    def strange(self, now: Ground) -> list[Strange]:
        """What is to be looked at before `compare`."""
        found = []
        for leaf in now.leaves.values():
            root, known = self._before.tables.get(leaf.root), self._before.leaves.get(leaf.oid)
            if root is None or leaf.oid in self._emptied:
                continue
            if leaf.oid not in root.partitions:
                found.append(Strange(leaf, attached=True))
            elif known is not None and known.file != leaf.file:
                found.append(Strange(leaf, attached=False))
        return found

    def learn(self, table: TableFacts, now: Ground) -> None:
        """The table is known from this look on, and its partitions with it."""
        for leaf in now.leaves.values():
            if leaf.root == table.oid and leaf.oid not in self._before.leaves:
                self._know(leaf)

    def compare(
        self,
        before: TableFacts,
        now: TableFacts,
        look: Ground,
        suspect: frozenset[int],
        now_us: int,
    ) -> Iterator[str]:
        """Which partitions came and went; gives what stays until a reset. `suspect`: of the strange ones,
        those not found harmless."""
        leaves, known = look.leaves, self._before.leaves
        gone = set(before.partitions) - set(now.partitions)
        added = set(now.partitions) - set(before.partitions)
        moved = gone & leaves.keys()
        if moved:
            yield f"partitions of {now.name} were moved to another captured table: its copy keeps their rows"
        for oid in (gone & known.keys()) - moved:  # those that are partitioned themselves hold no rows
            self._emptied.pop(oid, None)
            self._know(replace(known[oid], emptied_lsn=look.lsn, attached_us=0))
        for oid in added & leaves.keys():
            emptied_lsn = known[oid].emptied_lsn if oid in known else 0
            attached_us = now_us if oid in suspect else 0
            self._know(replace(leaves[oid], emptied_lsn=emptied_lsn, attached_us=attached_us))
        if added or gone - moved:
            self._know(replace(before, partitions=tuple(sorted({*now.partitions, *moved}))))

    def unmended(self, now: Ground, suspect: frozenset[int], shown_lsn: int, cures: Cures) -> Iterator[str]:
        """What is said until it is mended. `shown_lsn`: how far the stream is."""
        before = self._before
        for recorded in list(before.leaves.values()):
            if recorded.root not in now.tables:
                continue  # a finding of its own
            known, leaf = recorded, now.leaves.get(recorded.oid)
            if leaf is not None and known.file != leaf.file:
                known = self._other_file(known, leaf, leaf.oid in suspect, now.lsn, shown_lsn)
            table, truncated_lsn = before.tables[known.root], before.truncated.get(known.root, 0)
            root = table.name
            if known.emptied_lsn:
                if truncated_lsn > known.emptied_lsn or cures.repaired(root, known.emptied_lsn):
                    self._know(known := replace(known, emptied_lsn=0))
                else:
                    yield _lost_rows(known, table, self._source, is_gone=leaf is None)
            if known.attached_us and leaf is not None:
                if truncated_lsn > known.lsn or cures.refilled(root, known.attached_us):
                    self._know(replace(known, attached_us=0))
                else:
                    yield _came_with_rows(known.name, root, self._source)

    def _other_file(
        self, known: LeafFacts, leaf: LeafFacts, suspect: bool, looked_lsn: int, shown_lsn: int
    ) -> LeafFacts:
        """-> what is known now."""
        if self._before.truncated.get(leaf.root, 0) > known.lsn:
            found = leaf
        elif not suspect and leaf.oid not in self._emptied:
            found = replace(leaf, emptied_lsn=known.emptied_lsn, attached_us=known.attached_us)
        else:
            after_lsn = self._emptied.setdefault(leaf.oid, looked_lsn)
            if shown_lsn < after_lsn:
                return known  # the stream may still show that it was the root
            found = replace(leaf, emptied_lsn=after_lsn, attached_us=known.attached_us)
        self._emptied.pop(leaf.oid, None)
        self._know(found)
        return found


def _lost_rows(leaf: LeafFacts, table: TableFacts, source: str, *, is_gone: bool) -> str:
    how = "detached or dropped" if is_gone else "truncated by itself"
    if leaf.attached_us:
        how = "truncated by itself, or detached for a while"
    repair = "`tailrace reconcile FLOW --repair --delete-extra` takes them out; so does "
    has_key = table.key or table.identity == "i"
    return (
        f"partition {leaf.name} of {table.name} was {how}, which the server does not send: rows that it had"
        f" are still in the targets. {repair if has_key else 'They go with '}a TRUNCATE of {table.name}, or a"
        f" reset: {reset_steps(source)}"
    )


def _came_with_rows(leaf: str, root: str, source: str) -> str:
    return (
        f"partition {leaf} of {root} was attached with rows, which are not sent."
        f" `tailrace backfill {source} {quote(root)}` copies them; so does a reset: {reset_steps(source)}"
    )


# ---- the catalogue ---------------------------------------------------------------------------


async def read_leaves(connection: Connection, ground: Ground, roots: Sequence[int]) -> None:
    """The partitions of these, into `ground`: their `lsn` is of before the look, its own of after."""
    if not roots:
        return
    began_lsn = await _written_lsn(connection)
    cursor = await connection.execute(
        """SELECT c.oid::bigint, n.nspname::text, c.relname::text, root, c.relfilenode::bigint
           FROM unnest(%s::bigint[]) root CROSS JOIN LATERAL pg_partition_tree(root::oid::regclass) tree
           JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind = 'r'""",
        (list(roots),),
    )
    for oid, schema, name, root, file in await cursor.fetchall():
        ground.add(LeafFacts(oid, spelt(schema, name), root, file, began_lsn))
    ground.lsn = await _written_lsn(connection)


async def _written_lsn(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
    assert row is not None
    return parse_lsn(row[0])


async def not_harmless(connection: Connection, strange: Iterable[Strange]) -> frozenset[int]:
    """Those that rows have left, or come with, without the stream's knowing; and those that do not tell."""
    found = set()
    for each in strange:
        look = _came_empty if each.attached else _kept_rows
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = '{LOOK_TIMEOUT}'")
                await connection.execute(f"SET LOCAL lock_timeout = '{LOOK_TIMEOUT}'")
                await connection.execute("SET LOCAL synchronize_seqscans = off")
                harmless = await look(connection, each.leaf.oid)
        except _UNKNOWN:
            harmless = False
        if not harmless:
            found.add(each.leaf.oid)
    return frozenset(found)


async def _kept_rows(connection: Connection, leaf: int) -> bool:
    cursor = await connection.execute(
        """SELECT c.reltuples,
                  EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.xmin = c.xmin),
                  pg_stat_get_tuples_inserted(c.oid) - pg_stat_get_tuples_deleted(c.oid)
           FROM pg_class c WHERE c.oid = %s""",
        (leaf,),
    )
    row = await cursor.fetchone()
    if row is None:
        return True  # dropped meanwhile, which is a finding of its own
    counted, columns_written, expected = row
    if columns_written or counted < 0:
        return bool(columns_written)
    query = sql.SQL(
        "SELECT max(age(r.xmin)) > (SELECT age(c.xmin) FROM pg_class c WHERE c.oid = {}) FROM ({}) r"
    ).format(sql.Literal(leaf), await _first_rows(connection, leaf))
    found = await (await connection.execute(query)).fetchone()
    assert found is not None
    return expected <= 0 if found[0] is None else bool(found[0])


async def _came_empty(connection: Connection, leaf: int) -> bool:
    query = sql.SQL(
        """SELECT bool_or(age(r.xmin) > age(i.xmin) OR (r.xmin = i.xmin
                          AND r.cmin::text::bigint < i.cmin::text::bigint))
           FROM (SELECT xmin, cmin FROM pg_inherits WHERE inhrelid IN (SELECT pg_partition_ancestors({}))
                 ORDER BY age(xmin), cmin::text::bigint DESC LIMIT 1) i, ({}) r"""
    ).format(sql.Literal(leaf), await _first_rows(connection, leaf))
    row = await (await connection.execute(query)).fetchone()
    return row is None or not row[0]


async def _first_rows(connection: Connection, leaf: int) -> sql.Composed:
    """Of a partition that the role may read only by its root, by the root."""
    cursor = await connection.execute(
        """SELECT c.oid::regclass::text, pg_partition_root(c.oid)::text,
                  pg_get_partition_constraintdef(c.oid), has_table_privilege(c.oid, 'SELECT')
           FROM pg_class c WHERE c.oid = %s""",
        (leaf,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise errors.UndefinedTable
    name, root, constraint, readable = row
    if readable:
        return sql.SQL("SELECT xmin, cmin FROM ONLY {} LIMIT {}").format(
            sql.SQL(name), sql.Literal(ROWS_LOOKED_AT)
        )
    return sql.SQL("SELECT xmin, cmin FROM {} WHERE tableoid = {} AND ({}) LIMIT {}").format(
        sql.SQL(root), sql.Literal(leaf), sql.SQL(constraint or "true"), sql.Literal(ROWS_LOOKED_AT)
    )
