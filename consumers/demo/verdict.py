"""Are two sets of Postgres tables equal, row by row? Serves the demo and the tests.

Owns: one comparison of quiet databases. Both sides are read by COPY in the order of the key's text
(COLLATE "C", which is also Python's order of strings), and merged, so memory does not grow with the
tables. A table without a primary key is compared as a multiset: its whole row is the key.
Every value is compared as Postgres's text under fixed session settings, so that a column which the
target keeps as text equals its source. Generated columns are left out: logical replication does not
carry them. It must not wait, repair or know about positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

SAMPLES_PER_KIND = 3  # enough to start looking, few enough for one screen
VALUE_CHARS = 60  # of a differing value in a sample
CONNECT_TIMEOUT_S = 10

SESSION = (  # the settings under which capture reads, see the design's chapter on Postgres capture
    "SET DateStyle TO ISO, MDY",
    "SET IntervalStyle TO iso_8601",
    "SET TimeZone TO 'UTC'",
    "SET bytea_output TO hex",
    "SET extra_float_digits TO 1",
    "SET lc_monetary TO 'C'",
)

Row = tuple[str | None, ...]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class TableName:
    schema: str
    table: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(slots=True)
class TableVerdict:
    """Counts are rows. `samples` are printable lines that name the key and the columns."""

    source: TableName
    target: TableName
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    problem: str = ""
    samples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (self.problem or self.missing or self.extra or self.different)

    def __str__(self) -> str:
        if self.equal:
            return f"{self.source}: equal, {self.rows} rows"
        counts = f"missing {self.missing}, extra {self.extra}, different {self.different} of {self.rows} rows"
        return "\n  ".join([f"{self.source} -> {self.target}: {self.problem or counts}", *self.samples])


@dataclass(frozen=True, slots=True)
class Verdict:
    tables: tuple[TableVerdict, ...]

    @property
    def equal(self) -> bool:
        """False also when there was nothing to compare: an empty comparison proves nothing."""
        return bool(self.tables) and all(t.equal for t in self.tables)

    @property
    def rows(self) -> int:
        return sum(t.rows for t in self.tables)

    def __str__(self) -> str:
        return "\n".join(str(t) for t in self.tables) or "no table to compare"


def list_tables(url: str, schemas: tuple[str, ...] = ("public",)) -> list[TableName]:
    """The tables that capture would take: ordinary ones and roots of partitions, sorted by name."""
    with _connect(url) as connection:
        found = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
            " AND c.relpersistence = 'p' AND c.relname !~ '^_tailrace' ORDER BY 1, 2",
            [list(schemas)],
        ).fetchall()
    return [TableName(*row) for row in found]


def compare(source_url: str, target_url: str, pairs: list[tuple[TableName, TableName]]) -> Verdict:
    """Compare each (source table, target table); one snapshot a side for all of them."""
    with _connect(source_url) as source, _connect(target_url) as target:
        return Verdict(tuple(_compare_table(source, target, *pair) for pair in pairs))


def compare_schema(source_url: str, target_url: str, target_schema: str, schema: str = "public") -> Verdict:
    """Every table of the source's schema against the table of its name in the target's schema."""
    tables = list_tables(source_url, (schema,))
    return compare(source_url, target_url, [(t, TableName(target_schema, t.table)) for t in tables])


def _connect(url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S, client_encoding="utf8")
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    for statement in SESSION:
        connection.execute(statement)
    return connection


def _columns(connection: psycopg.Connection[Any], table: TableName) -> dict[str, bool]:
    """Column name -> is it of the primary key; empty when there is no such table."""
    found = connection.execute(
        "SELECT a.attname, coalesce(a.attnum = ANY(i.indkey::int2[]), false) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary"
        " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped"
        " AND a.attgenerated = '' ORDER BY a.attnum",
        [table.schema, table.table],
    ).fetchall()
    return dict(found)


def _compare_table(
    source: psycopg.Connection[Any], target: psycopg.Connection[Any], name: TableName, target_name: TableName
) -> TableVerdict:
    verdict = TableVerdict(name, target_name)
    columns, target_columns = _columns(source, name), _columns(target, target_name)
    if not columns:
        verdict.problem = f"the source has no table {name}"
    elif not target_columns:
        verdict.problem = f"the target has no table {target_name}"
    elif absent := [c for c in columns if c not in target_columns]:
        verdict.problem = f"the target's table {target_name} lacks: {', '.join(absent)}"
    if verdict.problem:
        return verdict
    key = [c for c, of_key in columns.items() if of_key]
    ordered = key + [c for c in columns if c not in key]
    width = len(key) or len(ordered)
    _merge(
        verdict,
        _rows(source, name, ordered, width),
        _rows(target, target_name, ordered, width),
        ordered,
        width,
    )
    return verdict


def _rows(
    connection: psycopg.Connection[Any], table: TableName, columns: list[str], width: int
) -> Iterator[Row]:
    """All rows as text, the first `width` columns being the key, in the order of the key's text."""
    texts = [sql.SQL("{}::text").format(sql.Identifier(c)) for c in columns]
    order = [sql.SQL('{}::text COLLATE "C" NULLS FIRST').format(sql.Identifier(c)) for c in columns[:width]]
    query = sql.SQL("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT").format(
        sql.SQL(", ").join(texts), sql.Identifier(table.schema, table.table), sql.SQL(", ").join(order)
    )
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        yield from copy.rows()


def _order(row: Row, width: int) -> Key:
    """Sorts as the server does: null before every text."""
    return tuple((v is not None, v or "") for v in row[:width])


def _merge(
    verdict: TableVerdict, source: Iterator[Row], target: Iterator[Row], columns: list[str], width: int
) -> None:
    left, right = next(source, None), next(target, None)
    while left is not None or right is not None:
        if left is not None and right is not None and left[:width] == right[:width]:
            verdict.rows += 1
            if left != right:
                verdict.different += 1
                if verdict.different <= SAMPLES_PER_KIND:
                    verdict.samples.append(_difference(left, right, columns, width))
            left, right = next(source, None), next(target, None)
        elif right is None or (left is not None and _order(left, width) < _order(right, width)):
            assert left is not None
            verdict.rows += 1
            verdict.missing += 1
            if verdict.missing <= SAMPLES_PER_KIND:
                verdict.samples.append(f"missing in the target: {_named(left, columns, width)}")
            left = next(source, None)
        else:
            verdict.extra += 1
            if verdict.extra <= SAMPLES_PER_KIND:
                verdict.samples.append(f"only in the target: {_named(right, columns, width)}")
            right = next(target, None)


def _named(row: Row, columns: list[str], width: int) -> str:
    return ", ".join(f"{c}={_short(v)}" for c, v in zip(columns[:width], row[:width], strict=True))


def _difference(left: Row, right: Row, columns: list[str], width: int) -> str:
    """Names the columns that differ and shows their texts from shortly before the place they part."""
    changed = [
        f"{c}: {_short(a, skip)} in the source, {_short(b, skip)} in the target"
        for c, a, b in zip(columns, left, right, strict=True)
        if a != b
        for skip in [max(0, _parting(a or "", b or "") - VALUE_CHARS // 4)]
    ]
    return f"different at {_named(left, columns, width)}: {'; '.join(changed)}"


def _parting(one: str, other: str) -> int:
    """The index of the first character in which they differ."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _short(value: str | None, skip: int = 0) -> str:
    if value is None:
        return "NULL"
    if len(value) <= VALUE_CHARS:
        return repr(value)
    return f"{value[skip : skip + VALUE_CHARS]!r} ({len(value)} characters, from {skip})"
