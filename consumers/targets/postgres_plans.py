"""The statements that write one version of one table. SQL text only, nothing is run here.

Rows travel as one array a column. Every write of a table with a key is guarded by the version: what
is in the target at a higher (epoch, lsn, ordinal) stays (H3). Types that have no array form of their
own, or where nested arrays would be flattened, travel as text and are cast row by row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.apply.fold import Write
from consumers.targets.postgres_arrays import encoder_for
from consumers.targets.postgres_catalog import TargetTable, quote
from streamer.changes.kinds import Decoder, decoder_for
from streamer.changes.schema import SchemaRecord

_NUMBERS = ("bool", "int2", "int4", "int8", "oid", "float4", "float8", "numeric")
_TIMES = ("date", "time", "timetz", "timestamp", "timestamptz", "interval")
_NATIVE = frozenset((*_NUMBERS, *_TIMES, "text", "varchar", "bpchar", "uuid", "json", "jsonb", "bytea"))
# Equal bytes when equal, so that a twin may be looked for by the value itself.
_EXACT = frozenset((*_NUMBERS[:5], "uuid", "date", "timestamp", "timestamptz", "bytea"))

_VERSION = ("_tailrace_epoch", "_tailrace_lsn", "_tailrace_ordinal")


def _version(alias: str) -> str:
    return "(" + ", ".join(f"{alias}.{name}" for name in _VERSION) + ")"


STORED, SENT, EXCLUDED = _version("t"), "(s.e, s.l, s.o)", _version("excluded")
Literals = list[str]


@dataclass(frozen=True, slots=True)
class Sent:
    """A column on its way: `transport` is the array's element type, `cast` what makes a value of it."""

    name: str
    transport: str
    cast: str
    encode: Callable[[Sequence[Any]], str]
    decode: Decoder
    exact: bool
    not_null: bool


def versions(writes: Sequence[Write]) -> list[str]:
    """Epochs, commit LSNs and ordinals."""
    numbers = zip(*[write.change[3:6] for write in writes], strict=True)
    return ["{" + ",".join(map(str, part)) + "}" for part in numbers]


class Plan:
    """`table` in the target for rows of one schema record."""

    def __init__(self, table: TargetTable, record: SchemaRecord) -> None:
        self.relation = f"{quote(table.schema)}.{quote(table.name)}"
        self.text = table.text
        self.columns: list[Sent] = []
        for column in record.columns:
            target = table.columns[column.name]
            if target.generated:
                continue
            native = target.builtin and target.internal in _NATIVE
            self.columns.append(
                Sent(
                    column.name,
                    target.type if native else "text",
                    "" if native else f"::{target.type}",
                    encoder_for(column.kind),
                    decoder_for(column.kind),
                    target.builtin and target.internal in _EXACT,
                    target.not_null,
                )
            )
        self.key = [column for column in self.columns if column.name in record.key_columns]
        self.upsert_sql = self._upsert(guarded=True)
        self.insert_sql = self._upsert(guarded=False)
        self.delete_sql = self._delete() if self.key else ""
        self.below_sql = (
            f"DELETE FROM {self.relation} AS t WHERE {STORED} <= ($1::int, $2::bigint, $3::bigint)"
        )
        self.remove_sql = self._remove()
        self._patches: dict[frozenset[str], str] = {}

    # SQL

    def _source(self, columns: Sequence[Sent], *extra: str) -> str:
        """FROM item `s` with the columns c0.. and the version e, l, o."""
        types = [column.transport for column in columns] + ["int", "bigint", "bigint", *extra]
        arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(types, 1))
        names = [f"c{n}" for n in range(len(columns))] + ["e", "l", "o", "i"][: 3 + len(extra)]
        return f"unnest({arrays}) AS s ({', '.join(names)})"

    def _upsert(self, *, guarded: bool) -> str:
        names = ", ".join([*(quote(c.name) for c in self.columns), *_VERSION])
        values = ", ".join([*(f"s.c{n}{c.cast}" for n, c in enumerate(self.columns)), "s.e", "s.l", "s.o"])
        statement = (
            f"INSERT INTO {self.relation} AS t ({names}) OVERRIDING SYSTEM VALUE"
            f" SELECT {values} FROM {self._source(self.columns)}"
        )
        if not guarded or not self.key:
            return statement
        # Keys that are equal may be spelt in two ways (1.0 and 1.00); an identity column may not be set.
        spelt = [c for c in self.columns if c not in self.key or not c.exact]
        rest = [quote(c.name) for c in spelt] + list(_VERSION)
        sets = ", ".join(f"{name} = excluded.{name}" for name in rest)
        key = ", ".join(quote(c.name) for c in self.key)
        return f"{statement} ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE {STORED} <= {EXCLUDED}"

    def _matches(self) -> str:
        return " AND ".join(f"t.{quote(c.name)} = s.k{n}" for n, c in enumerate(self.key))

    def _keys(self) -> str:
        return ", ".join(f"s.c{n}{c.cast} AS k{n}" for n, c in enumerate(self.key))

    def _delete(self) -> str:
        """Gives (rows deleted, rows that a newer version kept)."""
        return (
            f"WITH s AS MATERIALIZED (SELECT {self._keys()}, s.e, s.l, s.o FROM {self._source(self.key)}),"
            f" d AS (DELETE FROM {self.relation} AS t USING s WHERE {self._matches()} AND {STORED} <= {SENT}"
            f" RETURNING 1) SELECT (SELECT count(*) FROM d),"
            f" (SELECT count(*) FROM s JOIN {self.relation} AS t ON {self._matches()} AND {STORED} > {SENT})"
        )

    def patch_sql(self, present: frozenset[str]) -> str:
        """UPDATE of the columns that are present; gives (index, row is there) of what it did not update."""
        if present not in self._patches:
            sent = self.patched(present)
            keys = ", ".join(
                f"s.c{n}{c.cast} AS k{self.key.index(c)}" for n, c in enumerate(sent) if c in self.key
            )
            rest = [(n, c) for n, c in enumerate(sent) if c not in self.key]
            values = "".join(f", s.c{n}{c.cast} AS c{n}" for n, c in rest)
            sets = [f"{quote(c.name)} = s.c{n}" for n, c in rest]
            sets += [f"{name} = s.{short}" for name, short in zip(_VERSION, "elo", strict=True)]
            self._patches[present] = (
                f"WITH s AS MATERIALIZED (SELECT {keys}{values}, s.e, s.l, s.o, s.i"
                f" FROM {self._source(sent, 'int')}),"
                f" u AS (UPDATE {self.relation} AS t SET {', '.join(sets)} FROM s"
                f" WHERE {self._matches()} AND {STORED} <= {SENT} RETURNING s.i)"
                f" SELECT s.i, EXISTS (SELECT 1 FROM {self.relation} AS t WHERE {self._matches()})"
                f" FROM s WHERE s.i NOT IN (SELECT i FROM u)"
            )
        return self._patches[present]

    def _remove(self) -> str:
        """Delete one twin of a row, compared on all columns (H27)."""
        same = " AND ".join(
            f"t.{quote(c.name)} IS NOT DISTINCT FROM ${n}::{c.transport}{c.cast}"
            if c.exact
            else f't.{quote(c.name)}::text COLLATE "C" IS NOT DISTINCT FROM'
            f' (${n}::{c.transport}{c.cast})::text COLLATE "C"'
            for n, c in enumerate(self.columns, 1)
        )
        one = f"SELECT ctid FROM {self.relation} AS t WHERE {same} LIMIT 1"
        return f"DELETE FROM {self.relation} WHERE ctid = ANY (ARRAY({one}))"

    # Parameters

    def literals(self, columns: Sequence[Sent], writes: Sequence[Write]) -> Literals:
        """The arrays of `columns` and of the version, of so many writes."""
        rows = [write.row for write in writes]
        found = []
        for column in columns:
            name = column.name
            try:
                found.append(column.encode([row[name] for row in rows]))
            except KeyError:
                found.append(column.encode([row.get(name) for row in rows]))
        found += versions(writes)
        return found

    async def literals_in_turns(self, columns: Sequence[Sent], writes: Sequence[Write]) -> Literals:
        """The same, with a turn of the event loop after each column: thousands of values take a while."""
        rows = [write.row for write in writes]
        found = []
        for column in columns:
            found.append(column.encode([row.get(column.name) for row in rows]))
            await asyncio.sleep(0)
        found += versions(writes)
        return found

    def patched(self, present: frozenset[str]) -> list[Sent]:
        return [column for column in self.columns if column.name in present]

    def whole_row(self, write: Write) -> list[str | None]:
        """One row's values as text, for `remove_sql`."""
        row = write.row
        values = [row.get(column.name) for column in self.columns]
        return [
            None if value is None else column.decode(value)
            for column, value in zip(self.columns, values, strict=True)
        ]
