"""The statements that write one version of one table, as SQL text. Nothing is run here.

Rows travel as one array a column: `s` has the columns c0.. (as sent) and the version e, l, o. Guarded
writes leave alone what is in the target at a higher version (H3), which stands in three columns of the
row, in a side table, or nowhere. Types that have no array form of their own, or where nested arrays
would be flattened, travel as text and are cast row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.targets import postgres_versions as side
from consumers.targets.postgres_catalog import quote
from streamer.changes.envelope import Change
from streamer.changes.kinds import Decoder

VERSION = ("_tailrace_epoch", "_tailrace_lsn", "_tailrace_ordinal")
SENT = "(s.e, s.l, s.o)"
FLOOR = "($1::int, $2::bigint, $3::bigint)"
STAND_IN = "tailrace-"  # in place of a text that another row is to have
STAND_IN_LENGTH = len(STAND_IN) + 36
REFUSE = "_tailrace.refuse_delete"  # a function that raises foreign_key_violation with the words given


def _version(alias: str) -> str:
    return "(" + ", ".join(f"{alias}.{name}" for name in VERSION) + ")"


STORED, EXCLUDED = _version("t"), _version("excluded")


@dataclass(frozen=True, slots=True)
class Sent:
    """A column on its way: `transport` is the array's element type, `cast` what makes a value of it."""

    name: str  # in the target
    source: str  # in the event's row
    transport: str
    cast: str
    encode: Callable[[Sequence[Any]], str]
    decode: Decoder
    exact: bool
    not_null: bool
    key: bool
    settable: bool  # by an UPDATE: not GENERATED ALWAYS AS IDENTITY
    text: bool
    of_change: Callable[[Change], Any] | None = None  # a column that holds what the event itself is


@dataclass(frozen=True, slots=True)
class Shape:
    """What the statements are made of. `constants`: column -> expression."""

    relation: str
    columns: tuple[Sent, ...]
    constants: dict[str, str]
    conflict: tuple[str, ...]  # columns of the index that finds a row
    soft: str | None  # the column that a delete writes its time to
    write: str
    version: str
    number: int | None  # in the side table
    partitioned: bool
    kept: tuple[str, ...]  # columns that the flow does not send, and that are stored
    moving: tuple[str, ...]  # sent columns that other unique indexes hang on
    vacated: tuple[str, ...] | None  # of those, the columns whose stand-in frees each index; None: no way
    refusals: tuple[tuple[str, str], ...]  # (condition on a row `t` that must stay, the error's words)

    @property
    def key(self) -> list[Sent]:
        return [column for column in self.columns if column.key]

    # Pieces

    def source(self, columns: Sequence[Sent], *extra: tuple[str, str]) -> str:
        """FROM item `s`; `extra`: (name, type) of arrays after the version."""
        types = [column.transport for column in columns] + ["int", "bigint", "bigint"]
        types += [kind for _, kind in extra]
        arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(types, 1))
        names = [f"c{n}" for n in range(len(columns))] + ["e", "l", "o", *(name for name, _ in extra)]
        return f"unnest({arrays}) AS s ({', '.join(names)})"

    def keys(self, columns: Sequence[Sent]) -> list[str]:
        """Expressions of the key's values, in the key's order."""
        key = self.key
        found = sorted((key.index(c), f"s.c{n}{c.cast}") for n, c in enumerate(columns) if c.key)
        return [expression for _, expression in found]

    def named_keys(self, columns: Sequence[Sent]) -> str:
        return ", ".join(f"{expression} AS k{n}" for n, expression in enumerate(self.keys(columns)))

    def matches(self) -> str:
        """Row `t` is that of the keys k0.. of `s`."""
        same = [f"t.{quote(c.name)} = s.k{n}" for n, c in enumerate(self.key)]
        return " AND ".join(same + self._fixed())

    def _fixed(self) -> list[str]:
        """Rows of the flow's own part of the table, where constants are part of the key."""
        return [f"t.{quote(n)} = {self.constants[n]}" for n in self.conflict if n in self.constants]

    def guard(self) -> str:
        """Row `t` may be written by `s`, which has the keys k0.. and the version."""
        if self.version == "columns":
            return f" AND {STORED} <= {SENT}"
        if self.number is None:
            return ""
        keys = [f"s.k{n}" for n in range(len(self.key))]
        return f" AND NOT {side.is_newer(self.number, side.hashes(keys), SENT)}"

    def _and_version(self) -> list[str]:
        return list(VERSION) if self.version == "columns" else []

    def _version_values(self) -> list[str]:
        return ["s.e", "s.l", "s.o"] if self.version == "columns" else []

    def _own(self) -> tuple[list[str], list[str]]:
        """Names and expressions of what is written beside the sent columns, the version apart."""
        names, values = list(self.constants), list(self.constants.values())
        if self.soft is not None and self.write != "append":
            names.append(self.soft)
            values.append("NULL")
        return names, values

    # Rows

    def rows(self) -> tuple[str, ...]:
        """One after the other, each with the arrays of every column and of the version."""
        statements = [self.upsert()]
        if self.write == "upsert" and self.moving and self.key:
            statements.insert(0, self.move())
        if self.number is not None:
            key = side.hashes(self.keys(self.columns))
            statements.insert(0, side.note(self.number, key, self.source(self.columns)))
        return tuple(statements)

    def insert(self) -> str:
        names, values = self._own()
        columns = [c.name for c in self.columns] + names
        wanted = ", ".join([*map(quote, columns), *self._and_version()])
        expressions = [f"s.c{n}{c.cast}" for n, c in enumerate(self.columns)]
        expressions += [*values, *self._version_values()]
        return (
            f"INSERT INTO {self.relation} AS t ({wanted}) OVERRIDING SYSTEM VALUE"
            f" SELECT {', '.join(expressions)} FROM {self.source(self.columns)}"
        )

    def upsert(self) -> str:
        statement = self.insert()
        if self.write == "append":
            if self.version == "none":
                return statement
            where = "_tailrace_epoch > 0" + ("" if self.key else " AND _tailrace_op <> 'r'")
            key = ", ".join(map(quote, self.conflict))
            return f"{statement} ON CONFLICT ({key}) WHERE {where} DO NOTHING"
        if not self.key:
            return statement
        if self.number is not None:
            key_hashes = side.hashes(self.keys(self.columns))
            statement += f" WHERE NOT {side.is_newer(self.number, key_hashes, SENT)}"
        conflict = ", ".join(map(quote, self.conflict))
        sets = self._sets()
        if not sets:
            return f"{statement} ON CONFLICT ({conflict}) DO NOTHING"
        where = f" WHERE {STORED} <= {EXCLUDED}" if self.version == "columns" else ""
        if self.write == "insert_only" and self.version != "columns":
            where = f" WHERE t.{quote(self.soft)} IS NOT NULL" if self.soft else ""
        return f"{statement} ON CONFLICT ({conflict}) DO UPDATE SET {sets}{where}"

    def _sets(self) -> str:
        """What an upsert changes in a row that is there. Rows of `insert_only` change only when they
        come back after a soft delete; their version moves on with what was seen."""
        versions = [f"{name} = excluded.{name}" for name in self._and_version()]
        # Keys that are equal may be spelt in two ways (1.0 and 1.00).
        spelt = [c.name for c in self.columns if c.settable and not (c.key and c.exact)]
        names = spelt + [name for name in self._own()[0] if name not in self.conflict]
        if self.write == "insert_only":
            if self.soft is None:
                return ", ".join(versions)
            gone = f"t.{quote(self.soft)} IS NOT NULL"
            values = [
                f"{quote(n)} = CASE WHEN {gone} THEN excluded.{quote(n)} ELSE t.{quote(n)} END" for n in names
            ]
            return ", ".join(values + versions)
        return ", ".join([f"{quote(name)} = excluded.{quote(name)}" for name in names] + versions)

    # Rows that give unique values to each other (H23)

    def _differs(self) -> str:
        at = {c.name: n for n, c in enumerate(self.columns)}
        stored = ", ".join(f"t.{quote(name)}" for name in self.moving)
        sent = ", ".join(f"s.v{at[name]}" for name in self.moving)
        return f"ROW({stored}) IS DISTINCT FROM ROW({sent})"

    def _values(self) -> str:
        """A CTE `s` of typed values v0.., keys k0.. and the version."""
        values = ", ".join(f"s.c{n}{c.cast} AS v{n}" for n, c in enumerate(self.columns))
        return (
            f"WITH s AS MATERIALIZED (SELECT {self.named_keys(self.columns)}, {values}, s.e, s.l, s.o"
            f" FROM {self.source(self.columns)})"
        )

    def move(self) -> str:
        """Rows whose unique values change leave their place before any takes another's.

        They are deleted and made again in one statement, with the columns that the flow does not send;
        where a delete would reach other tables, stand-ins take the values' place.
        """
        if self.refusals:
            return self.vacate() if self.vacated else f"{self._values()} SELECT 1 FROM s LIMIT 0"
        names, values = self._own()
        columns = [c.name for c in self.columns] + names
        wanted = ", ".join([*map(quote, [*columns, *self.kept]), *self._and_version()])
        sent = [f"s.v{n}" for n in range(len(self.columns))] + values
        sent += [f"s.w{n}" for n in range(len(self.kept))] + self._version_values()
        kept = "".join(f", t.{quote(name)} AS w{n}" for n, name in enumerate(self.kept))
        return (
            f"{self._values()}, old AS (DELETE FROM {self.relation} AS t USING s WHERE {self.matches()}"
            f"{self.guard()} AND {self._differs()} RETURNING s.*{kept})"
            f" INSERT INTO {self.relation} ({wanted}) OVERRIDING SYSTEM VALUE SELECT {', '.join(sent)}"
            " FROM (SELECT * FROM old ORDER BY e, l, o) s"  # sorted: every row is gone before one comes
        )

    def vacate(self) -> str:
        """Stand-ins for the unique values of stored rows that are to have others."""
        by_name = {c.name: c for c in self.columns}
        sets = ", ".join(
            f"{quote(name)} = NULL"
            if not by_name[name].not_null
            else f"{quote(name)} = '{STAND_IN}' || gen_random_uuid()"
            for name in self.vacated or ()
        )
        return (
            f"{self._values()} UPDATE {self.relation} AS t SET {sets} FROM s WHERE {self.matches()}"
            f"{self.guard()} AND {self._differs()}"
        )

    def leave(self) -> str | None:
        """Delete stored rows that are to have other unique values; None where something would be lost."""
        if self.kept or self.refusals:
            return None
        return (
            f"{self._values()} DELETE FROM {self.relation} AS t USING s WHERE {self.matches()}"
            f"{self.guard()} AND {self._differs()}"
        )

    # Deletes

    def delete(self) -> str:
        """Arrays of the key, the version and, for a soft delete, of the commit's microseconds.

        Gives (rows deleted, rows that a newer version kept).
        """
        extra = [("at", "bigint")] if self.soft is not None else []
        sent = ", ".join(["s.e", "s.l", "s.o", *(f"s.{name}" for name, _ in extra)])
        source = f"s AS MATERIALIZED (SELECT {self.named_keys(self.key)}, {sent}"
        source += f" FROM {self.source(self.key, *extra)})"
        if self.number is not None:
            return self._delete_beside(source)
        act = self._deleting("s", f"{self.matches()}{self.guard()}")
        kept = "0"
        if self.version == "columns":
            newer = f"SELECT FROM {self.relation} AS t WHERE {self.matches()} AND {STORED} > {SENT}"
            kept = f"SELECT count(*) FROM s WHERE EXISTS ({newer})"
        return f"WITH {source}, d AS ({act} RETURNING 1) SELECT (SELECT count(*) FROM d), ({kept})"

    def versions(self) -> str:
        """Arrays of the key, the version and numbers; gives (number, epoch, LSN, ordinal) of rows there."""
        keys = f"SELECT {self.named_keys(self.key)}, s.n FROM {self.source(self.key, ('n', 'int'))}"
        if self.number is None:
            stored = ", ".join(f"t.{name}" for name in VERSION)
            return f"SELECT s.n, {stored} FROM ({keys}) s JOIN {self.relation} AS t ON {self.matches()}"
        one, two = side.hashes([f"s.k{n}" for n in range(len(self.key))])
        at_key = f"v.table_id = {self.number} AND v.key_1 = {one} AND v.key_2 = {two}"
        stored = "v.epoch, v.lsn, v.ordinal"
        return f"SELECT s.n, {stored} FROM ({keys}) s JOIN _tailrace.versions v ON {at_key}"

    def _delete_beside(self, source: str) -> str:
        assert self.number is not None
        key = side.hashes([f"s.k{n}" for n in range(len(self.key))])
        free = f"g AS MATERIALIZED (SELECT * FROM s WHERE NOT {side.is_newer(self.number, key, SENT)})"
        act = self._deleting("g AS s", self.matches())
        if self.soft is not None:
            noted = side.note(self.number, key, "g AS s")
        else:
            noted = side.forget(self.number, key, "g AS s")
        return (
            f"WITH {source}, {free}, d AS ({act} RETURNING 1), v AS ({noted})"
            " SELECT (SELECT count(*) FROM d), (SELECT count(*) FROM s) - (SELECT count(*) FROM g)"
        )

    def _deleting(self, using: str, where: str) -> str:
        if self.soft is None:
            return f"DELETE FROM {self.relation} AS t USING {using} WHERE {where}{self._refusing(where)}"
        sets = [f"{quote(self.soft)} = 'epoch'::timestamptz + s.at * interval '1 microsecond'"]
        names = zip(self._and_version(), self._version_values(), strict=True)
        sets += [f"{name} = {value}" for name, value in names]
        return f"UPDATE {self.relation} AS t SET {', '.join(sets)} FROM {using} WHERE {where}"

    def _refusing(self, where: str) -> str:
        """Raises where a foreign key of another table would be followed to its rows. `where` stands again
        inside, as conditions have no order."""
        return "".join(
            f" AND CASE WHEN {where} AND {condition} THEN {REFUSE}('{words}') ELSE true END"
            for condition, words in self.refusals
        )

    def below(self) -> tuple[str, ...]:
        """Rows at or below the floor $1, $2, $3, which was raised at the microsecond $4; the arrays behind
        them are keys of rows that stay. Each statement has all of them."""
        unused = f"$4::bigint IS NOT NULL AND {self._arrays_are_there(5)}"
        where = [unused, *self._not_above(), self._stays_not(5)]
        after = []
        if self.number is not None:
            after.append(f"{side.forget_to(self.number, FLOOR)} AND {unused}")
        if self.soft is None:
            condition = " AND ".join(where)
            condition += self._refusing(condition)
            return f"DELETE FROM {self.relation} AS t WHERE {condition}", *after
        sets = [f"{quote(self.soft)} = 'epoch'::timestamptz + $4::bigint * interval '1 microsecond'"]
        if self.version == "columns":
            sets += [f"{name} = ${n}" for n, name in enumerate(VERSION, 1)]
        where.append(f"t.{quote(self.soft)} IS NULL")
        return f"UPDATE {self.relation} AS t SET {', '.join(sets)} WHERE {' AND '.join(where)}", *after

    def _not_above(self) -> list[str]:
        """Rows `t` at or below the floor $1, $2, $3; where no version is kept, all of them."""
        if self.version == "columns":
            where = f"{STORED} <= {FLOOR}"
        elif self.number is not None:
            key = side.hashes([f"t.{quote(c.name)}" for c in self.key])
            where = f"NOT {side.is_newer(self.number, key, FLOOR)}"
        else:
            where = f"{FLOOR} IS NOT NULL"
        return [where, *self._fixed()]

    def _stays_not(self, first: int) -> str:
        """Rows `t` whose keys are not in the arrays from `first` on. A hashed subplan needs no join."""
        if not self.key:
            return "true"
        return f"({', '.join(f't.{quote(c.name)}' for c in self.key)}) NOT IN ({self.given_keys(first)})"

    def given_keys(self, first: int) -> str:
        """A query of the keys in the arrays from `first` on."""
        arrays = ", ".join(f"${n}::{c.transport}[]" for n, c in enumerate(self.key, first))
        names = ", ".join(f"c{n}" for n in range(len(self.key)))
        values = ", ".join(f"s.c{n}{c.cast}" for n, c in enumerate(self.key))
        return f"SELECT {values} FROM unnest({arrays}) AS s ({names})"

    def _arrays_are_there(self, first: int) -> str:
        """True; a statement has to name each of its parameters."""
        named = [f"${n}::{c.transport}[] IS NOT NULL" for n, c in enumerate(self.key, first)]
        return " AND ".join(named) or "true"

    def count_below(self, *conditions: str) -> str:
        """How many rows the floor $1, $2, $3 would take, counted up to $4, without those whose keys are in
        the arrays behind it."""
        where = [*self._not_above(), *conditions, self._stays_not(5)]
        if self.soft is not None:
            where.append(f"t.{quote(self.soft)} IS NULL")
        some = f"SELECT FROM {self.relation} AS t WHERE {' AND '.join(where)} LIMIT $4::bigint"
        return f"SELECT count(*) FROM ({some}) s"

    # Patches

    def patch(self, sent: Sequence[Sent]) -> str:
        """UPDATE of the columns that are sent; gives (index, row is there) of what it did not update."""
        rest = [(n, c) for n, c in enumerate(sent) if not c.key]
        values = "".join(f", s.c{n}{c.cast} AS c{n}" for n, c in rest)
        sets = [f"{quote(c.name)} = s.c{n}" for n, c in rest if c.settable]
        sets += [f"{quote(name)} = {value}" for name, value in zip(*self._own(), strict=True)]
        names = zip(self._and_version(), self._version_values(), strict=True)
        sets += [f"{name} = {value}" for name, value in names]
        sets = sets or [f"{quote(self.key[0].name)} = t.{quote(self.key[0].name)}"]
        keys = "".join(f", s.k{n}" for n in range(len(self.key)))
        noted = ""
        if self.number is not None:
            key = side.hashes([f"u.k{n}" for n in range(len(self.key))])
            noted = f", v AS ({side.note(self.number, key, 'u', 'u')})"
        return (
            f"WITH s AS MATERIALIZED (SELECT {self.named_keys(sent)}{values}, s.e, s.l, s.o, s.i"
            f" FROM {self.source(sent, ('i', 'int'))}),"
            f" u AS (UPDATE {self.relation} AS t SET {', '.join(sets)} FROM s"
            f" WHERE {self.matches()}{self.guard()} RETURNING s.i, s.e, s.l, s.o{keys}){noted}"
            f" SELECT s.i, EXISTS (SELECT 1 FROM {self.relation} AS t WHERE {self.matches()})"
            " FROM s WHERE s.i NOT IN (SELECT i FROM u)"
        )

    # Tables without a key

    def remove(self) -> str:
        """Delete one twin of a row, compared on all columns (H27)."""
        same = [
            f"t.{quote(c.name)} IS NOT DISTINCT FROM ${n}::{c.transport}{c.cast}"
            if c.exact
            else f't.{quote(c.name)}::text COLLATE "C" IS NOT DISTINCT FROM'
            f' (${n}::{c.transport}{c.cast})::text COLLATE "C"'
            for n, c in enumerate(self.columns, 1)
        ]
        same += [f"t.{quote(n)}::text IS NOT DISTINCT FROM ({v})::text" for n, v in self.constants.items()]
        twin = f"FROM {self.relation} AS t WHERE {' AND '.join(same)} LIMIT 1"
        if self.partitioned:  # a ctid is one partition's
            place = f"(SELECT tableoid, ctid {twin})"
            return f"DELETE FROM {self.relation} WHERE (tableoid, ctid) = {place}"
        return f"DELETE FROM {self.relation} WHERE ctid = ANY (ARRAY(SELECT ctid {twin}))"
