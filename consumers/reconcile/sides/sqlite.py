"""A SQLite table as a side: its rows are read and hashed in this process, in a thread of their own.

The file may be written meanwhile: each statement sees one state of it, which is all that is needed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from consumers.reconcile.dialects.sqlite import FETCH_ROWS, STRANGE, RowHasher, row_texts
from consumers.reconcile.digest import EMPTY, RangeDigest, RowHash
from consumers.reconcile.expressions import bracketed
from consumers.reconcile.forms import Form
from consumers.reconcile.groups import GROUPS_LIMIT, Counts, Grouping
from consumers.reconcile.sides.base import Bucket, Key, KeyRange, Part, Row, by_key, key_hash, ranges_between
from streamer.errors import TargetUnavailable

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
STEPS_BETWEEN_LOOKS = 100_000  # of SQLite's machine, some milliseconds: between two looks for the end
_NUMBER = "_tailrace_number"  # beside columns, which may have any other name
KEYS_A_STATEMENT = 1_000  # a statement takes 32,766 values, and a key has 32 columns at most


@dataclass(frozen=True, slots=True)
class Reading:
    """As of a Postgres side. `forms`: of the compared columns, in the order of `expressions`."""

    table: str
    expressions: Mapping[str, str]
    forms: Sequence[Form]
    key: Sequence[int]  # places of the key among the columns
    stamp: str
    live: str = ""
    where: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [quote(name) for name in self.expressions]

    def rows(self, condition: str = "", *, all_: bool = False) -> str:
        where = "" if all_ else self.where
        named = {**self.beside, **self.expressions} if where else self.expressions
        listed = ", ".join(f"{expression} AS {quote(name)}" for name, expression in named.items())
        live = f" WHERE {self.live}" if self.live else ""
        conditions = [bracketed(c) for c in (condition, where) if c]
        inner = f"(SELECT {listed}, {self.stamp} AS _tailrace_stamp FROM {quote(self.table)}{live})"
        return inner + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class SqliteSide:
    read_bytes = 0

    def __init__(self, session: Session, reading: Reading) -> None:
        self._session = session
        self._reading = reading
        self._hasher = RowHasher(reading.forms)
        self._key_forms = [reading.forms[at] for at in reading.key]
        names = [
            name if form.kind == "number" else f"{name} COLLATE BINARY"
            for name, form in zip([reading.names[at] for at in reading.key], self._key_forms, strict=True)
        ]
        self._names = ", ".join(names)
        self._key = names[0] if len(names) == 1 else f"({self._names})"

    @property
    def place(self) -> str:
        return f"{self._reading.table} in {self._session.place}"

    async def close(self) -> None:
        await self._session.close()

    async def estimate(self) -> int:
        ((rows,),) = await self._session.run(
            lambda line: line.execute(f"SELECT count(*) FROM {quote(self._reading.table)}").fetchall()
        )
        return int(rows)

    # Parts

    async def digest(self, parts: Sequence[Part]) -> list[RangeDigest]:
        ranges = [part for part in parts if isinstance(part, KeyRange)]
        if ranges:
            return await self._session.run(lambda line: [self._digest(line, part) for part in ranges])
        return await self._session.run(
            lambda line: self._digest_buckets(line, [part for part in parts if isinstance(part, Bucket)])
        )

    def _digest(self, line: sqlite3.Connection, part: KeyRange) -> RangeDigest:
        total = EMPTY
        for rows in self._read(line, part):
            total += self._hasher.digest(rows)
        return total

    def _digest_buckets(self, line: sqlite3.Connection, parts: Sequence[Bucket]) -> list[RangeDigest]:
        of = parts[0].of
        sums = {part.at: [0, 0, 0] for part in parts}
        for rows in self._read(line, KeyRange()):
            for key, (a, b) in zip(self._keys_of(rows), self._hasher.hashes(rows), strict=True):
                found = sums.get(key_hash(key) % of)
                if found is not None:
                    found[0] += 1
                    found[1] += a
                    found[2] += b
        return [RangeDigest.of_sums(*sums[part.at]) for part in parts]

    async def split(self, part: KeyRange, parts: int, rows: int) -> list[KeyRange]:
        def every(line: sqlite3.Connection) -> list[Key]:
            condition, values = self._within(part)
            step = max(1, -(-rows // parts))
            number = f"row_number() OVER (ORDER BY {self._names}) AS {_NUMBER}"
            numbered = f"SELECT {self._names}, {number} FROM {self._reading.rows(condition)}"
            found = line.execute(
                f"SELECT {self._names} FROM ({numbered})"
                f" WHERE {_NUMBER} > 1 AND ({_NUMBER} - 1) % {step} = 0 ORDER BY {_NUMBER}",
                values,
            ).fetchall()
            return [_whole(key) for key in row_texts(found, self._key_forms)]

        # What is no value of the kind has no place among the other side's keys.
        bounds = [key for key in await self._session.run(every) if not _is_strange(key)]
        return ranges_between(bounds, part)

    async def hashes(self, parts: Sequence[Part]) -> dict[Key, RowHash]:
        def read(line: sqlite3.Connection) -> dict[Key, RowHash]:
            found: list[tuple[Key, RowHash]] = []
            ranges = [part for part in parts if isinstance(part, KeyRange)]
            wanted = {part.at: part.of for part in parts if isinstance(part, Bucket)}
            of = next(iter(wanted.values()), 1)
            for part in ranges or [KeyRange()]:
                for rows in self._read(line, part):
                    for key, row_hash in zip(self._keys_of(rows), self._hasher.hashes(rows), strict=True):
                        if not wanted or key_hash(key) % of in wanted:
                            found.append((key, row_hash))
            return by_key(found, self.place)

        return await self._session.run(read)

    def _read(self, line: sqlite3.Connection, part: KeyRange) -> Iterator[list[tuple[Any, ...]]]:
        condition, values = self._within(part)
        names = ", ".join(self._reading.names)
        cursor = line.execute(f"SELECT {names} FROM {self._reading.rows(condition)}", values)
        while rows := cursor.fetchmany(FETCH_ROWS):
            yield rows

    def _keys_of(self, rows: Sequence[Sequence[Any]]) -> list[Key]:
        places = self._reading.key
        found = row_texts([[row[at] for at in places] for row in rows], self._key_forms)
        return [_whole(key) for key in found]

    def _within(self, part: KeyRange) -> tuple[str, list[Any]]:
        conditions, values = [], []
        for sign, key in ((">=", part.low), ("<", part.high)):
            if key is not None:
                conditions.append(f"{self._key} {sign} ({', '.join('?' * len(key))})")
                values += self._kept(key)
        return " AND ".join(conditions), values

    def _kept(self, key: Key) -> list[Any]:
        """As SQLite holds it, of the kinds that are ordered alike or found by their value."""
        return [_kept(text, form) for text, form in zip(key, self._key_forms, strict=True)]

    # Groups

    async def groups(self, grouping: Grouping) -> Counts:
        """By what is stored, and then by its canonical text, which several stored values may have."""
        forms = dict(zip(self._reading.expressions, self._reading.forms, strict=True))
        names = [quote(name) for name in grouping.by]
        by = [term for name in names for term in (f"{name} COLLATE BINARY", f"typeof({name})")]
        counts = ["count(*)", *[f"sum({_WITHIN.format(quote(grouping.column))})" for _ in grouping.windows]]
        ends = [end for window in grouping.windows for end in (window.low, window.high)]
        query = f"SELECT {', '.join([*names, *counts])} FROM {self._reading.rows()}"
        query += f" GROUP BY {', '.join(by)} LIMIT {GROUPS_LIMIT + 1}" if by else ""

        def read(line: sqlite3.Connection) -> Counts:
            width, found = len(names), Counts()
            rows = line.execute(query, ends).fetchall()
            groups = row_texts([row[:width] for row in rows], [forms[name] for name in grouping.by])
            for group, row in zip(map(tuple, groups), rows, strict=True):
                before = found.get(group, [0] * (1 + len(grouping.windows)))
                found[group] = [a + (b or 0) for a, b in zip(before, row[width:], strict=True)]
            return found

        return await self._session.run(read)

    # Rows

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Row]:
        by_value = all(form.kind in _FOUND_BY_VALUE for form in self._key_forms)
        plain = [key for key in keys if by_value and not _is_strange(key)]
        scanned = set(keys) - set(plain)

        def read(line: sqlite3.Connection) -> dict[Key, Row]:
            found: dict[Key, Row] = {}
            for at in range(0, len(plain), KEYS_A_STATEMENT):
                found |= self._rows_of(line, plain[at : at + KEYS_A_STATEMENT])
            cursor = line.execute(self._select("")) if scanned else None
            while cursor is not None and (rows := cursor.fetchmany(FETCH_ROWS)):
                found |= {key: row for key, row in self._made(rows).items() if key in scanned}
            return found

        return await self._session.run(read)

    def _rows_of(self, line: sqlite3.Connection, keys: Sequence[Key]) -> dict[Key, Row]:
        group = f"({', '.join('?' * len(self._key_forms))})"
        condition = f"({self._names}) IN (VALUES {', '.join([group] * len(keys))})"
        values = [value for key in keys for value in self._kept(key)]
        return self._made(line.execute(self._select(condition), values).fetchall())

    def _select(self, condition: str) -> str:
        rows = self._reading.rows(condition, all_=True)
        return f"SELECT {', '.join(self._reading.names)}, _tailrace_stamp FROM {rows}"

    def _made(self, rows: Sequence[Sequence[Any]]) -> dict[Key, Row]:
        values = [row[:-1] for row in rows]
        texts = row_texts(values, self._reading.forms)
        return {
            key: Row(tuple(text), str(row[-1]))
            for key, text, row in zip(self._keys_of(values), texts, rows, strict=True)
        }


# Window.has, over what apply writes of a time: 2016-11-04T13:51:30.5Z, or a date.
_WITHIN = "typeof({0}) = 'text' AND substr({0}, 5, 1) = '-' AND rtrim(replace({0}, 'T', ' '), 'Z') > ?"
_WITHIN += " AND rtrim(replace({0}, 'T', ' '), 'Z') <= ?"
_FOUND_BY_VALUE = frozenset({"number", "text", "numeric", "date", "time", "interval", "bits", "json"})


def _kept(text: str, form: Form) -> Any:
    if form.kind == "number":
        try:
            return int(text)
        except ValueError:
            return text
    return text


def _whole(texts: Sequence[str | None]) -> Key:
    """A null in a key is of a table that SQLite lets have it: seen as a strange value."""
    return tuple(STRANGE if text is None else text for text in texts)


def _is_strange(key: Key) -> bool:
    return any(text.startswith(STRANGE) for text in key)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"{STRANGE}bytes:{raw.hex()}"


class Session:
    """A connection that never writes, and its thread."""

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self.place = place
        self._executor: ThreadPoolExecutor | None = None
        self._line: sqlite3.Connection | None = None
        self._ended = False

    async def open(self) -> None:
        """Raises TargetUnavailable."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tailrace-reconcile")

        def connect() -> sqlite3.Connection:
            line = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
            )
            line.execute("PRAGMA query_only = ON")
            line.text_factory = _decoded
            line.set_progress_handler(lambda: self._ended, STEPS_BETWEEN_LOOKS)
            return line

        try:
            self._line = await asyncio.get_running_loop().run_in_executor(self._executor, connect)
        except sqlite3.Error as error:
            await self.close()
            raise self._fault(error) from error

    async def close(self) -> None:
        """What the thread is doing is broken off."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        self._ended = True

        def end() -> None:
            line, self._line = self._line, None
            if line is not None:
                line.close()

        ended = asyncio.get_running_loop().run_in_executor(executor, end)
        executor.shutdown(wait=False)
        await asyncio.shield(ended)

    async def run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        executor, line = self._executor, self._line
        assert executor is not None
        assert line is not None
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, call, line)
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: sqlite3.Error) -> TargetUnavailable:
        return TargetUnavailable(
            f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})",
            where=self.place,
            fix="see that the file is there and that this user may read and write it and its folder",
        )
