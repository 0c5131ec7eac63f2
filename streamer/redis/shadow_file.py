"""The SQLite file of a shadow: its tables, its settings, and the few statements on it.

    scopes  number | entity db single key       where a run of rows lives (see streamer.redis.shadow)
    rows    scope name | number digest          WITHOUT ROWID: the primary key is the table, once on disk
    stamp   what the file is a copy of, and how far it goes

Settings: WAL with synchronous NORMAL, so that a kill or a power cut leaves an older, whole copy and its
stamp; what it lacks is read again from the topic. Locked for one process, which also spares WAL's shared
memory. A file that cannot be read is thrown away: it is a cache.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from streamer.errors import FatalError

FORMAT = 1
CACHE_KIB = 65_536  # pages kept by SQLite; more are in the system's cache
PAGE_BYTES = 8192  # fewer, larger pages: a lookup reads one less
WAL_PAGES = 4096  # 32 MiB of log before it is worked into the file
LOOKUP_ROWS = 500  # names in one SELECT: its text is made, and compiled, once
LOCK_WAIT_S = 2.0  # for a process that is just ending

Known = tuple[int, int]  # a row's number and digest
Staged = Mapping[int, Mapping[bytes, Known | None]]  # scope -> name -> what it becomes; None: gone

_TABLES = (
    "CREATE TABLE IF NOT EXISTS stamp (one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER,"
    " cluster TEXT, fingerprint TEXT, topic_offset INTEGER, flush INTEGER, next_number INTEGER)",
    "CREATE TABLE IF NOT EXISTS scopes (number INTEGER PRIMARY KEY, entity TEXT, db INTEGER,"
    " single INTEGER, key BLOB, UNIQUE (entity, db, single, key))",
    "CREATE TABLE IF NOT EXISTS rows (scope INTEGER, name BLOB, number INTEGER, digest INTEGER,"
    " PRIMARY KEY (scope, name)) WITHOUT ROWID",
)
_KNOWN = "SELECT name, number, digest FROM rows WHERE scope = ? AND name IN ({})"
_KNOWN_FULL = _KNOWN.format(",".join("?" * LOOKUP_ROWS))
_UPSERT = (
    "INSERT INTO rows VALUES (?, ?, ?, ?)"
    " ON CONFLICT (scope, name) DO UPDATE SET number = excluded.number, digest = excluded.digest"
)


class Stamp(NamedTuple):
    """`topic_offset`: the next record of the shadow topic; `flush`: the last one that is in the copy."""

    topic_offset: int
    flush: int


class ScopeName(NamedTuple):
    """`key` is empty when `single`: then all keys of the entity are in it."""

    entity: str
    db: int
    single: bool
    key: bytes


class _Header(NamedTuple):
    format: int
    cluster: str
    fingerprint: str
    topic_offset: int
    flush: int
    next_number: int


class ShadowFile:
    """`stamp` None: the file has just been made, and is empty. `next_number`: above every row's."""

    def __init__(self, path: Path, *, cluster: str, fingerprint: str) -> None:
        """Raises FatalError: another program has it open, or it cannot be written."""
        self._path = path
        self._identity = (FORMAT, cluster, fingerprint)
        with self._border():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection, header = self._open_or_make()
        self.stamp = None if header is None else Stamp(header.topic_offset, header.flush)
        self.next_number = 0 if header is None else header.next_number

    def _open_or_make(self) -> tuple[sqlite3.Connection, _Header | None]:
        try:
            connection, header = self._connect()
            if header is None or header[:3] == self._identity:
                return connection, header
            connection.close()
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, TypeError):  # not a database, torn, or of another format
            pass
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return self._connect()

    def _connect(self) -> tuple[sqlite3.Connection, _Header | None]:
        """Takes the lock, and makes what is missing."""
        connection = sqlite3.connect(
            self._path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False
        )
        execute = connection.execute
        try:
            execute(f"PRAGMA page_size = {PAGE_BYTES}")
            execute("PRAGMA locking_mode = EXCLUSIVE")
            execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            execute("PRAGMA synchronous = NORMAL")
            execute("PRAGMA journal_mode = WAL")
            execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                execute(table)
            execute("COMMIT")
            found = execute("SELECT * FROM stamp").fetchone()
            return connection, None if found is None else _Header(*found[1:])
        except (sqlite3.Error, TypeError):
            connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def known(self, scope: int, names: Sequence[bytes]) -> dict[bytes, Known]:
        """Of these rows, those that are there."""
        found: dict[bytes, Known] = {}
        execute = self._connection.execute
        with self._border():
            for start in range(0, len(names), LOOKUP_ROWS):
                chunk = names[start : start + LOOKUP_ROWS]
                full = len(chunk) == LOOKUP_ROWS
                text = _KNOWN_FULL if full else _KNOWN.format(",".join("?" * len(chunk)))
                found.update((n, (number, digest)) for n, number, digest in execute(text, (scope, *chunk)))
        return found

    def all(self, scope: int) -> dict[bytes, Known]:
        text = "SELECT name, number, digest FROM rows WHERE scope = ?"
        with self._border():
            rows = self._connection.execute(text, (scope,))
            return {name: (number, digest) for name, number, digest in rows}

    def after(self, scope: int, name: bytes | None, limit: int) -> list[tuple[bytes, Known]]:
        """The next rows of a scope by name; None: from the first."""
        text = "SELECT name, number, digest FROM rows WHERE scope = ?"
        text += " ORDER BY name LIMIT ?" if name is None else " AND name > ? ORDER BY name LIMIT ?"
        given = (scope, limit) if name is None else (scope, name, limit)
        with self._border():
            return [(n, (number, digest)) for n, number, digest in self._connection.execute(text, given)]

    def scope(self, name: ScopeName) -> int | None:
        text = "SELECT number FROM scopes WHERE entity = ? AND db = ? AND single = ? AND key = ?"
        with self._border():
            found = self._connection.execute(text, name).fetchone()
        return None if found is None else found[0]

    def scopes_after(self, number: int, limit: int) -> list[tuple[int, ScopeName]]:
        text = "SELECT number, entity, db, single, key FROM scopes WHERE number > ? ORDER BY number LIMIT ?"
        with self._border():
            rows = self._connection.execute(text, (number, limit))
            return [(n, ScopeName(entity, db, bool(single), key)) for n, entity, db, single, key in rows]

    def last_scope(self) -> int:
        with self._border():
            (last,) = self._connection.execute("SELECT coalesce(max(number), 0) FROM scopes").fetchone()
        return int(last)

    def forget_scope(self, number: int) -> None:
        with self._border():
            self._connection.execute("DELETE FROM scopes WHERE number = ?", (number,))

    def count(self) -> int:
        """Rows; walks the whole file."""
        with self._border():
            (count,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(count)

    def write(self, staged: Staged, scopes: Mapping[ScopeName, int], stamp: Stamp, next_number: int) -> None:
        """Rows, scopes and the stamp in one transaction."""
        rows, gone = [], []
        for scope, names in staged.items():
            for name, known in names.items():
                if known is None:
                    gone.append((scope, name))
                else:
                    rows.append((scope, name, *known))
        rows.sort()  # the table's order: neighbours share a page
        gone.sort()
        header = (*self._identity, *stamp, next_number)
        execute, many = self._connection.execute, self._connection.executemany
        with self._border():
            execute("BEGIN IMMEDIATE")
            try:
                many("INSERT INTO scopes VALUES (?, ?, ?, ?, ?)", [(n, *s) for s, n in scopes.items()])
                many(_UPSERT, rows)
                many("DELETE FROM rows WHERE scope = ? AND name = ?", gone)
                execute("INSERT OR REPLACE INTO stamp VALUES (1, ?, ?, ?, ?, ?, ?)", header)
                execute("COMMIT")
            except sqlite3.Error:
                if self._connection.in_transaction:
                    execute("ROLLBACK")
                raise
        self.stamp, self.next_number = stamp, next_number

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                fix = "close what looks into it; captures have a file each, and wait for nobody's"
                raise FatalError(
                    "another program has the shadow's file open", where=str(self._path), fix=fix
                ) from None
            fix = "make room or mend its rights; the file is a cache, deleted it is made anew from the topic"
            raise FatalError(
                f"the shadow's file cannot be used: {error}", where=str(self._path), fix=fix
            ) from error
