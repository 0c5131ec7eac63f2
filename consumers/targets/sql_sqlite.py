"""SQLite as a sql target: one file, one writer at a time.

Write-ahead log, so that readers go on while a batch is written; BEGIN IMMEDIATE, so that two processes
take turns at the start of a transaction and not in the middle of it. `synchronous = NORMAL`: a power cut
may take the last transactions, rows and checkpoints alike, and they are applied again from Kafka.
Foreign keys stay off in the session, as SQLite has it by itself: rows arrive in no order of theirs.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

from sqlalchemy import URL, Connection, Engine, case, column, create_engine, table, text, tuple_
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.dialects.sqlite import dialect as core_dialect
from sqlalchemy.dialects.sqlite.base import SQLiteIdentifierPreparer
from sqlalchemy.engine import Dialect as CoreDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from consumers.targets.sql_dialect import Refusal, Row, Shape, TableColumn, UniqueIndex
from consumers.targets.sql_sqlite_file import OpenFile, identity_of
from consumers.targets.sql_types import Stored, why_unfit
from streamer.config import SqlTarget, sqlite_path
from streamer.errors import ConfigError, FatalError, TailraceError, TargetUnavailable

MINIMUM = (3, 26, 0)  # ON CONFLICT DO UPDATE, PRAGMA table_xinfo
BUSY_TIMEOUT_S = 5.0  # for the transaction of another process: a batch takes a tenth of a second
CACHE_KIB = 32 * 1024  # pages in memory: the upper levels of the keys' tree
ROWS_A_STATEMENT = 100  # a call into SQLite for so many rows: each gives up Python's lock and takes it again
VARIABLES = 32_000  # SQLITE_MAX_VARIABLE_NUMBER is 32,766

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA cache_size = -{CACHE_KIB}",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA temp_store = MEMORY",
)
_UNIQUE = ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_ROWID")
_PASSES = (*_UNIQUE, "SQLITE_CONSTRAINT_FOREIGNKEY")
_ROWS_FAULT = ("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH")
_WHERE = re.compile(r"\)\s*where\b", re.IGNORECASE)  # in the statement of a partial index
_PRIMARY = 0xFF  # of an extended result code
_MENDS = {
    sqlite3.SQLITE_BUSY: "another program holds the file's write lock: end its transaction",
    sqlite3.SQLITE_LOCKED: "another program holds a lock: end its transaction",
    sqlite3.SQLITE_FULL: "make room on the file's disk, or move the file; it goes on by itself",
    sqlite3.SQLITE_READONLY: "let this user write the file and its folder; it goes on by itself",
    sqlite3.SQLITE_PERM: "let this user write the file and its folder; it goes on by itself",
    sqlite3.SQLITE_CANTOPEN: "let this user open the file and write its folder; it goes on by itself",
    sqlite3.SQLITE_IOERR: "look after the file's disk; it goes on by itself",
    sqlite3.SQLITE_CORRUPT: "restore the file from a backup, or move it away: all of it is then copied anew",
    sqlite3.SQLITE_SCHEMA: "another program is changing the tables; it goes on by itself",
}
_GO_ON = "it goes on by itself"


# Of https://sqlite.org/lang_keywords.html, those that the package does not quote.
_MORE_KEYWORDS = (
    "abort action always current do exclude except filter first following generated groups last materialized"
    " no nothing nulls others over partition preceding range recursive regexp release returning rows"
    " savepoint ties unbounded window with without"
)


class _Preparer(SQLiteIdentifierPreparer):
    reserved_words = SQLiteIdentifierPreparer.reserved_words | set(_MORE_KEYWORDS.split())


class SqliteDialect:
    errors: tuple[type[Exception], ...] = (DBAPIError, sqlite3.Error, OverflowError)

    def __init__(self, target: SqlTarget, place: str) -> None:
        self.path = sqlite_path(target.url)
        self.core: CoreDialect = core_dialect()
        self.core.identifier_preparer = _Preparer(self.core)
        self._place = place
        self._engine: Engine | None = None
        self._statements: dict[tuple[Shape, int], str] = {}
        self._was_open = False
        self._file: OpenFile | None = None

    # Session

    def connect(self) -> Connection:
        if sqlite3.sqlite_version_info < MINIMUM:
            wanted = ".".join(map(str, MINIMUM))
            raise ConfigError(
                f"this Python has SQLite {sqlite3.sqlite_version}, and {wanted} is the first that will do",
                where=self._place,
                fix="run it with a Python that brings a newer SQLite",
            )
        self._check_place()
        if self._engine is None:
            # A pool would keep a second session behind our back; autocommit: BEGIN is ours.
            self._engine = create_engine(
                URL.create("sqlite", database=str(self.path)),
                poolclass=NullPool,
                isolation_level="AUTOCOMMIT",
                connect_args={"timeout": BUSY_TIMEOUT_S, "cached_statements": 512},
            )
        before = identity_of(self.path)
        connection = self._engine.connect()
        try:
            for pragma in _PRAGMAS:
                connection.exec_driver_sql(pragma)
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").all()
            self._file = OpenFile(self.path)
            if before not in (None, self._file.identity):
                raise self._moved()  # which of the two was opened is not known
        except BaseException:
            self.disconnect(connection)
            raise
        self._was_open = True
        return connection

    def disconnect(self, connection: Connection) -> None:
        connection.close()
        file, self._file = self._file, None
        if file is not None:
            file.leave()

    def check(self) -> None:
        if self._file is not None and not self._file.is_in_place:
            raise self._moved()

    def _moved(self) -> TargetUnavailable:
        return TargetUnavailable(
            f"the file {self.path} was moved away, deleted or replaced while it was open",
            where=self._place,
            fix="it is opened again by itself; what it does not hold is applied again from Kafka's log",
        )

    def _check_place(self) -> None:
        """SQLite says "unable to open database file" for all of these."""
        folder = self.path.parent
        error: type[TailraceError] = TargetUnavailable if self._was_open else ConfigError
        if not folder.is_dir():
            raise error(
                f"there is no folder {folder} for the database's file",
                where=self._place,
                fix=f"mkdir -p {folder}",
            )
        if self.path.is_dir():
            raise error(
                f"{self.path} is a folder", where=self._place, fix=f"name a file: {self.path / 'copy.db'}"
            )

    def begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def end(self, connection: Connection, *, commit: bool) -> None:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        if commit:
            connection.exec_driver_sql("COMMIT")
        elif raw.in_transaction:  # some errors have rolled it back already
            connection.exec_driver_sql("ROLLBACK")

    # Rows

    def put(self, connection: Connection, shape: Shape, rows: Sequence[Row]) -> int:
        width = len(shape.columns)
        step = max(1, min(ROWS_A_STATEMENT, VARIABLES // width))
        cursor = connection.connection.cursor()
        whole = len(rows) - len(rows) % step
        written = 0
        if whole:
            statement = self._insert(shape, step)
            for at in range(0, whole, step):
                cursor.execute(statement, tuple(chain.from_iterable(rows[at : at + step])))
                written += cursor.rowcount
        if whole < len(rows):
            cursor.executemany(self._insert(shape, 1), rows[whole:])
            written += cursor.rowcount
        cursor.close()
        return written

    def _insert(self, shape: Shape, rows: int) -> str:
        known = self._statements.get((shape, rows))
        if known is None:
            group = f"({', '.join('?' * len(shape.columns))})"
            one = str(_insert_one(shape).compile(dialect=self.core))
            assert f"VALUES {group}" in one
            known = one.replace(f"VALUES {group}", f"VALUES {', '.join([group] * rows)}", 1)
            self._statements[shape, rows] = known
        return known

    # The catalogue

    def columns(self, connection: Connection, table: str) -> dict[str, TableColumn]:
        quoted = self.core.identifier_preparer.quote_identifier(table)
        found = connection.exec_driver_sql(f"PRAGMA table_xinfo({quoted})").all()
        # Columns 0 cid, 1 name, 2 type, 3 notnull, 4 default, 5 place in the key, 6 hidden (2, 3: generated)
        strict_key = [row for row in found if row[5]]
        by_itself = len(strict_key) == 1 and str(strict_key[0][2]).upper() == "INTEGER"
        return {
            str(row[1]): TableColumn(
                str(row[1]),
                str(row[2]),
                bool(row[3]),
                row[4] is not None or (by_itself and bool(row[5])),
                row[6] in (2, 3),
            )
            for row in found
            if row[6] != 1
        }

    def unique_indexes(self, connection: Connection, table: str) -> list[UniqueIndex]:
        # By hand: SQLAlchemy leaves out indexes of expressions.
        quote = self.core.identifier_preparer.quote_identifier
        columns = connection.exec_driver_sql(f"PRAGMA table_xinfo({quote(table)})").all()
        source = "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?"
        found = []
        primary = frozenset(str(row[1]).lower() for row in columns if row[5])
        for row in connection.exec_driver_sql(f"PRAGMA index_list({quote(table)})").all():
            _, name, unique, origin, partial = row
            if origin == "pk":
                primary = frozenset()
            if not unique:
                continue
            parts = connection.exec_driver_sql(f"PRAGMA index_xinfo({quote(name)})").all()
            keys = [(part[2], part[4]) for part in parts if part[5]]  # name and collation
            names = {str(column).lower() for column, _ in keys if column is not None}
            # NOCASE takes keys for one that are two in the source.
            whole = not partial and all(c is not None and how == "BINARY" for c, how in keys)
            sql = str(connection.exec_driver_sql(source, (name,)).scalar() or "")
            if any(column is None for column, _ in keys):
                names |= set(re.findall(r"\w+", sql.lower())) & {str(column[1]).lower() for column in columns}
            where = _WHERE.split(sql, maxsplit=1)[1] if partial and _WHERE.search(sql) else ""
            found.append(UniqueIndex(str(name), frozenset(names), whole, where, sql))
        return [*found, UniqueIndex("", primary, whole=True)] if primary else found

    def why_unfit(self, stored: Stored, column: TableColumn) -> str | None:
        return why_unfit(stored, column.declared)

    # Errors

    def schema_changed(self, error: Exception) -> bool:
        return _code(error) in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)

    def refusal(self, error: Exception) -> Refusal | None:
        raw = _raw(error)
        if not isinstance(raw, sqlite3.Error):
            return Refusal("OVERFLOW", str(raw), transient=False, unique=False)
        name = getattr(raw, "sqlite_errorname", None)
        if name is None:  # the driver's own, of a value that it cannot bind
            fits = isinstance(raw, sqlite3.DataError | sqlite3.InterfaceError)
            return Refusal("UNFIT", str(raw), transient=False, unique=False) if fits else None
        if not name.startswith(_ROWS_FAULT):
            return None
        return Refusal(name, " ".join(str(raw).split()), name in _PASSES, name in _UNIQUE)

    def fault(self, error: Exception) -> TailraceError:
        raw, code = _raw(error), _code(error)
        what = f"{raw} ({getattr(raw, 'sqlite_errorname', type(raw).__name__)})"
        if code == sqlite3.SQLITE_NOTADB:
            return FatalError(
                f"{self.path} is no SQLite database, or an encrypted one",
                where=self._place,
                fix="name another file in the target's url, or move this one away",
            )
        return TargetUnavailable(what, where=self._place, fix=_MENDS.get(code, _GO_ON))


def _raw(error: Exception) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _code(error: Exception) -> int:
    return int(getattr(_raw(error), "sqlite_errorcode", 0)) & _PRIMARY


def _insert_one(shape: Shape) -> Insert:
    """INSERT .. ON CONFLICT (the key) DO UPDATE SET .. WHERE the stored version is not higher."""
    into = table(shape.table, *(column(name) for name in shape.columns))
    statement = insert(into).values(dict.fromkeys(shape.columns))
    if not shape.conflict:
        return statement
    where = text(shape.where) if shape.where else None
    sets: dict[str, Any] = {name: statement.excluded[name] for name in (*shape.replaces, *shape.version)}
    keeps_all = not shape.replaces and not shape.version
    if keeps_all or shape.where:  # a history: what is there is the same event
        return statement.on_conflict_do_nothing(index_elements=list(shape.conflict), index_where=where)
    guard = None
    if shape.version:
        stored = tuple_(*(into.c[name] for name in shape.version))
        guard = stored <= tuple_(*(statement.excluded[name] for name in shape.version))
    if shape.only_if_set is not None:
        marked = into.c[shape.only_if_set].is_not(None)
        for name in shape.replaces:
            sets[name] = case((marked, statement.excluded[name]), else_=into.c[name])
        guard = marked if guard is None else guard
    return statement.on_conflict_do_update(index_elements=list(shape.conflict), set_=sets, where=guard)
