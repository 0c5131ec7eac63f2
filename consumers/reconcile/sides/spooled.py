"""A store without a query language as a side: read once into a file of hashes, which then serves the parts.

Owns the file: SQLite's own temporary database, which has no name in its folder once it is open and so is gone
with the process however that ends. It has the key's text and the two lanes of each row; so memory is bounded
whatever the store holds. Rows that a fence asks for come from the store itself, as they are then. Keys come
in no order, so the parts are buckets.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Protocol, TypeVar

from orjson import dumps, loads

from consumers.reconcile.canonical import row_digest
from consumers.reconcile.digest import RangeDigest, RowHash
from consumers.reconcile.groups import Counts, Grouping, Tally
from consumers.reconcile.sides.base import WHOLE, Bucket, Key, KeyRange, Part, Plan, Row, key_hash
from streamer.errors import RetryableError

T = TypeVar("T")

CACHE_KIB = 32 * 1024
STEPS_BETWEEN_LOOKS = 100_000  # of SQLite's machine, some milliseconds: between two looks for the end
BATCH_ROWS = 2_000  # handed to the file's thread at once
# Sums of signed 64-bit lanes do not fit SQLite's integers: each lane is summed as two halves.
_HALVES = "sum(a >> 32), sum(a & 4294967295), sum(b >> 32), sum(b & 4294967295)"
_SIGN = 1 << 63

Texts = tuple[str | None, ...]
Found = tuple[Key, Texts]  # a row: its key, and the canonical texts of the compared columns


class Reader(Protocol):
    """The store, for one table."""

    @property
    def place(self) -> str: ...

    @property
    def read_bytes(self) -> int: ...

    def names(self) -> Sequence[str]:
        """Of the compared columns, in the order of the texts."""

    def all_rows(self) -> AsyncGenerator[list[Found], None]:
        """Every row that is there throughout, once at least; the last of the same key counts."""

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        """As they are now."""


class SpooledSide:
    """`close` removes the file; the reader is its owner's to close."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._file: HashFile | None = None
        self._filling = asyncio.Lock()

    @property
    def place(self) -> str:
        return self._reader.place

    @property
    def read_bytes(self) -> int:
        return self._reader.read_bytes

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    async def _filled(self) -> HashFile:
        """The store is read at the first question."""
        async with self._filling:
            if self._file is None:
                file = HashFile()
                try:
                    await self._fill(file)
                except BaseException:
                    await file.close()
                    raise
                self._file = file
            return self._file

    async def _fill(self, file: HashFile) -> None:
        await file.open()
        async with aclosing(self._reader.all_rows()) as batches:
            async for found in batches:
                for at in range(0, len(found), BATCH_ROWS):
                    await file.add(found[at : at + BATCH_ROWS])
        await file.sort()

    # Parts

    async def estimate(self) -> int:
        return await (await self._filled()).count()

    async def plan(self, range_rows: int) -> Plan:
        raise AssertionError("what has no order is cut into buckets")

    async def digest(self, parts: Sequence[Part]) -> list[RangeDigest]:
        wanted = _buckets(parts)
        return await (await self._filled()).digests(wanted)

    async def split(self, part: KeyRange, parts: int, rows: int) -> list[KeyRange]:
        return [part]

    async def hashes(self, parts: Sequence[Part]) -> dict[Key, RowHash]:
        wanted = _buckets(parts)
        return await (await self._filled()).hashes(wanted)

    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]:
        return await self._reader.rows(keys)

    async def groups(self, grouping: Grouping) -> Counts:
        """The store is read once more: what rows are grouped by is not in the file."""
        tally = Tally(grouping, self._reader.names())
        seen = HashFile()  # a row may come twice
        try:
            await seen.open()
            async with aclosing(self._reader.all_rows()) as batches:
                async for rows in batches:
                    for _, texts in await seen.fresh(rows):
                        tally.add(texts)
                    if tally.full:
                        break
        finally:
            await seen.close()
        return tally.counts


def _buckets(parts: Sequence[Part]) -> list[Bucket]:
    found = [part for part in parts if isinstance(part, Bucket)]
    if len(found) == len(parts):
        return found
    assert list(parts) == [WHOLE], "what has no order is cut into buckets"
    return [Bucket(1, 0)]


class HashFile:
    """Keys and lanes of rows, in a thread of its own. `add` all, `sort` once, then ask."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tailrace-spool")
        self._line: sqlite3.Connection | None = None
        self._ended = False

    async def open(self) -> None:
        """Raises RetryableError, as every other call: there is no room."""

        def make() -> None:
            line = sqlite3.connect("", isolation_level=None)
            line.execute("PRAGMA journal_mode = OFF")
            line.execute("PRAGMA synchronous = OFF")
            line.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            line.execute("CREATE TABLE came (h INTEGER, key BLOB, a INTEGER, b INTEGER)")
            line.execute("CREATE TABLE known (key BLOB PRIMARY KEY) WITHOUT ROWID")
            line.set_progress_handler(lambda: self._ended, STEPS_BETWEEN_LOOKS)
            line.execute("BEGIN")
            self._line = line

        await self._in_thread(make)

    async def close(self) -> None:
        """What the thread is doing is broken off."""
        self._ended = True

        def end() -> None:
            line, self._line = self._line, None
            if line is not None:
                line.close()

        loop = asyncio.get_running_loop()
        ended = loop.run_in_executor(self._executor, end)
        self._executor.shutdown(wait=False)
        await asyncio.shield(ended)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except sqlite3.Error as error:
            raise RetryableError(
                f"the hashes of rows cannot be kept: {error}",
                where="the folder for temporary files: TMPDIR, or else /var/tmp",
                fix="make room there, 100 bytes a row, or name another folder in TMPDIR",
            ) from error

    def _open(self) -> sqlite3.Connection:
        assert self._line is not None
        return self._line

    async def add(self, rows: Sequence[Found]) -> None:
        def insert() -> None:
            made = [(key_hash(key), dumps(key), *map(_signed, row_digest(texts))) for key, texts in rows]
            self._open().executemany("INSERT INTO came VALUES (?, ?, ?, ?)", made)

        await self._in_thread(insert)

    async def fresh(self, rows: Sequence[Found]) -> list[Found]:
        """Those whose keys have not come before."""

        def insert() -> list[Found]:
            line = self._open()
            query = "INSERT OR IGNORE INTO known VALUES (?)"
            return [row for row in rows if line.execute(query, (dumps(row[0]),)).rowcount]

        return await self._in_thread(insert)

    async def sort(self) -> None:
        """In the order of the keys' hashes, each key once: the last that came."""

        def sorted_() -> None:
            line = self._open()
            columns = "h INTEGER, key BLOB, a INTEGER, b INTEGER, PRIMARY KEY (h, key)"
            line.execute(f"CREATE TABLE rows ({columns}) WITHOUT ROWID")
            line.execute("INSERT OR REPLACE INTO rows SELECT h, key, a, b FROM came ORDER BY h, key, rowid")
            line.execute("DROP TABLE came")
            line.execute("COMMIT")

        await self._in_thread(sorted_)

    async def count(self) -> int:
        query = "SELECT count(*) FROM rows"
        return int(await self._in_thread(lambda: self._open().execute(query).fetchone()[0]))

    async def digests(self, parts: Sequence[Bucket]) -> list[RangeDigest]:
        query = f"SELECT h % ?, count(*), {_HALVES} FROM rows{_of(parts)} GROUP BY 1"

        def read() -> list[RangeDigest]:
            found = {}
            for at, count, a_high, a_low, b_high, b_low in self._open().execute(query, (parts[0].of,)):
                found[at] = RangeDigest.of_sums(count, (a_high << 32) + a_low, (b_high << 32) + b_low)
            return [found.get(part.at, RangeDigest()) for part in parts]

        return await self._in_thread(read)

    async def hashes(self, parts: Sequence[Bucket]) -> dict[Key, RowHash]:
        query = f"SELECT key, a, b FROM rows{_of(parts)}"

        def read() -> dict[Key, RowHash]:
            found = self._open().execute(query).fetchall()
            return {tuple(loads(key)): RowHash.of(a, b) for key, a, b in found}

        return await self._in_thread(read)


def _of(parts: Sequence[Bucket]) -> str:
    """The condition for these buckets, which are of one size."""
    of = parts[0].of
    if len(parts) == of:
        return ""
    return f" WHERE h % {of} IN ({', '.join(str(part.at) for part in parts)})"


def _signed(lane: int) -> int:
    return lane - (1 << 64) if lane & _SIGN else lane
