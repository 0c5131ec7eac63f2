"""The control database of `control.url`: a connection, one format a part of it, its errors as ours.

Each part (reconcile, ...) owns its tables and their format; here is only what they share. SQLite unless the
config names a Postgres. Waits of a driver are kept out of the event loop by the caller. A file that is taken
away is not made anew, whoever looks for it, but where a person starts `tailrace serve` or `tailrace run`:
pauses and changed schedules would be forgotten. Whether it is the same one is control_file's to tell.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import finalize

import orjson
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from consumers.control.control_file import ControlFile
from streamer.config import Config
from streamer.errors import ConfigError, FatalError, RetryableError
from streamer.logs import Log

SQLITE_BUSY_MS = 5_000  # processes write beside each other, each for some milliseconds
POOL_SIZE = 3  # kept open by a process that works on: to open one costs more than what it is used for
CONNECT_S = 10  # of a Postgres that swallows packets: `status` reads here, too
UNANSWERED_MS = 10_000  # what a Postgres has not acknowledged for so long, its machine has not
PREPARE_TRIES = 4  # each of its steps may meet another process that makes the same
SILENT_AFTER_S = 120.0  # of a process on another machine
_DEAD = "dead"

log = Log("control")

_meta = MetaData()
_formats = Table(
    "tailrace_control",
    _meta,
    Column("part", Text, primary_key=True),
    Column("format", Integer, nullable=False),
)
_identity = Table(  # which one it is, however it is copied and moved: one row
    "tailrace_control_identity",
    _meta,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("identity", Text, nullable=False),
)


class Database:
    """One process's way to it. Its threads share a few connections, each for a transaction."""

    def __init__(self, config: Config, *, makes_anew: bool = False) -> None:
        """`makes_anew`: also where there has been one before, as a person who starts the schedulers may.
        Raises ConfigError for a URL that is none."""
        self._engine, self._file = _engine(config, makes_anew=makes_anew)
        self._parts: dict[str, tuple[int, MetaData]] = {}
        finalize(self, self._engine.dispose)  # a command that ends, or fails, closes nothing by itself

    def prepare(self, part: str, format_: int, meta: MetaData) -> None:
        """Makes the part's tables. Raises FatalError when they are of a newer format."""
        self._look_for_file()
        self._make(part, format_, meta)
        self._parts[part] = format_, meta

    def _make(self, part: str, format_: int, meta: MetaData) -> None:
        for _ in range(PREPARE_TRIES - 1):
            try:
                found = self._prepare(part, format_, meta)
                break
            except SQLAlchemyError as error:  # perhaps another process has just made them
                if _is_locked(error):  # it has waited already
                    with self._errors():
                        raise
        else:
            with self._errors():
                found = self._prepare(part, format_, meta)
        if found is not None and found > format_:
            raise FatalError(
                f"the control database has format {found} of {part}, this program knows {format_}",
                fix="run the version of Tailrace that made it, or a newer one",
            )

    def _prepare(self, part: str, format_: int, meta: MetaData) -> int | None:
        with self._engine.begin() as connection:
            _meta.create_all(connection)
            meta.create_all(connection)
            wanted = select(_formats.c.format).where(_formats.c.part == part)
            found: int | None = connection.execute(wanted).scalar()
            if found is None:
                connection.execute(insert(_formats), {"part": part, "format": format_})
            identity: str | None = connection.execute(select(_identity.c.identity)).scalar()
            if identity is None:
                identity = uuid4().hex
                connection.execute(insert(_identity), {"one": 1, "identity": identity})
        if self._file is not None and self._file.is_open(identity):
            what = "the control database is not the one that was here before: its history, pauses and changes"
            log.warning(f"{what} of schedules count", control=str(self._file.path))
        return found

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction. Raises RetryableError."""
        self._look_for_file()
        with self._errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def alone(self, part: str) -> Iterator[Connection]:
        """A transaction beside which nobody has another `alone` of this part. Raises RetryableError."""
        with self.begin() as connection:
            own = update(_formats).where(_formats.c.part == part)
            connection.execute(own.values(format=_formats.c.format))  # locks the row, or SQLite's file
            yield connection

    def _look_for_file(self) -> None:
        """What is open is not what another process would find, once the file is another."""
        if self._file is not None and self._file.has_moved():
            self._engine.dispose()
            log.warning("the control database was put back, or a copy of it", control=str(self._file.path))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What SQLAlchemy raises, as ours."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            holder = self._file.holder() if self._file is not None and _is_locked(error) else ""
            raise RetryableError(
                f"the control database does not answer: {' '.join(str(cause).split())}{holder}",
                where="control.url",
                fix="end that process, or let it go on (SIGCONT)"
                if holder
                else "see that it is there and that this user may write it",
            ) from error

    def close(self) -> None:
        self._engine.dispose()


def _is_locked(error: SQLAlchemyError) -> bool:
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _engine(config: Config, *, makes_anew: bool) -> tuple[Engine, ControlFile | None]:
    """With SQLite's file, if it is one."""
    where, file = f"{config.path}: control.url", None
    try:
        url = make_url(config.control.url.get_secret_value())
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            file = ControlFile(config.base / str(url.database), makes_anew=makes_anew)
        elif url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        limits = {"connect_timeout": CONNECT_S, "tcp_user_timeout": UNANSWERED_MS}
        more: dict[str, Any] = {"connect_args": limits} if url.get_backend_name() == "postgresql" else {}
        if file is not None:
            more = {"creator": file.connect}
        engine = create_engine(url, poolclass=QueuePool, pool_size=POOL_SIZE, pool_pre_ping=True, **more)
        if file is not None:
            file.make_folder()
    except (ArgumentError, ValueError, NoSuchModuleError):
        raise ConfigError(
            "it is no URL of a database (not shown: it may hold a password)",
            where=where,
            fix="write sqlite:///.tailrace/control.db, or postgresql://user:password@host:5432/database",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"its folder cannot be made: {error}", where=where, fix="name another place in control.url"
        ) from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    return engine, file


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def owner() -> str:
    """This process, for rows that it works on."""
    return named(os.getpid())


def named(pid: int) -> str:
    """A process of this machine, which has the number until it is waited for: host:pid:start."""
    return f"{socket.gethostname()}:{pid}:{_begun(pid)}"


def is_here(name: str) -> bool:
    """Whether it is, or was, of this machine."""
    return name.rsplit(":", 2)[0] == socket.gethostname()


def is_gone(name: str, seen_us: int, now_us: int) -> bool:
    """Whether the process that `owner` named lives no more, as far as this machine can tell; so is the one
    that asks: what it works on, it knows."""
    host, pid, begun = name.rsplit(":", 2)
    if host != socket.gethostname():
        return now_us - seen_us > SILENT_AFTER_S * 1e6
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    begun_now = _begun(int(pid))
    return int(pid) == os.getpid() or begun_now == _DEAD or begun_now != begun


def _begun(pid: int) -> str:
    """When it was started, in ticks since boot, as its number may be another's by now; where the kernel does
    not say, nothing. One that is dead and not yet waited for has none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return _DEAD if state == "Z" else rest[18]


def dump(value: Any) -> str:
    return orjson.dumps(value).decode()


def time_text(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
