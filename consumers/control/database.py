"""The control database of `control.url`: a connection, one format a part of it, its errors as ours.

Each part (reconcile, ...) owns its tables and their format; here is only what they share. SQLite unless the
config names a Postgres. Waits of a driver are kept out of the event loop by the caller. A file that is taken
away from a process that works on it is not made anew: pauses and changed schedules would be forgotten.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
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
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from streamer.config import Config
from streamer.errors import ConfigError, FatalError, RetryableError
from streamer.logs import Log

SQLITE_BUSY_MS = 10_000  # processes write beside each other, each for some milliseconds
POOL_SIZE = 3  # kept open by a process that works on: to open one costs more than what it is used for
CONNECT_S = 10  # of a Postgres that swallows packets: `status` reads here, too
UNANSWERED_MS = 10_000  # what a Postgres has not acknowledged for so long, its machine has not
PREPARE_TRIES = 4  # each of its steps may meet another process that makes the same
SILENT_AFTER_S = 120.0  # of a process on another machine

log = Log("control")

_meta = MetaData()
_formats = Table(
    "tailrace_control",
    _meta,
    Column("part", Text, primary_key=True),
    Column("format", Integer, nullable=False),
)


class Database:
    """One process's way to it. Its threads share a few connections, each for a transaction."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for a URL that is none."""
        self._engine = _engine(config)
        self._file = _File(self._engine)
        self._parts: dict[str, tuple[int, MetaData]] = {}
        finalize(self, self._engine.dispose)  # a command that ends, or fails, closes nothing by itself

    def prepare(self, part: str, format_: int, meta: MetaData) -> None:
        """Makes the part's tables. Raises FatalError when they are of a newer format."""
        self._look_for_file()
        self._make(part, format_, meta)
        self._parts[part] = format_, meta
        self._file.know()

    def _make(self, part: str, format_: int, meta: MetaData) -> None:
        for _ in range(PREPARE_TRIES - 1):
            try:
                found = self._prepare(part, format_, meta)
                break
            except SQLAlchemyError:  # perhaps another process has just made them
                continue
        else:
            with errors():
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
        return found

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction. Raises RetryableError."""
        self._look_for_file()
        with errors(), self._engine.begin() as connection:
            yield connection
        self._file.know()

    def _look_for_file(self) -> None:
        """What is open is not what another process would find, once the file is another."""
        if not self._file.is_another():
            return
        self._engine.dispose()
        for part, (format_, meta) in self._parts.items():
            self._make(part, format_, meta)
        self._file.know(again=True)
        log.warning("another file is the control database now", control=self._file.path)

    def close(self) -> None:
        self._engine.dispose()


class _File:
    """SQLite's, as it was when this process opened it. Of another database there is none."""

    def __init__(self, engine: Engine) -> None:
        named = engine.url.get_backend_name() == "sqlite" and engine.url.database not in (
            None,
            "",
            ":memory:",
        )
        self.path = str(engine.url.database) if named else ""
        self._place: tuple[int, int] | None = None

    def know(self, *, again: bool = False) -> None:
        if self.path and (again or self._place is None):
            with suppress(FileNotFoundError):
                self._place = self._now()

    def is_another(self) -> bool:
        """Raises RetryableError while there is none."""
        if self._place is None:
            return False
        try:
            return self._now() != self._place
        except OSError as error:
            raise RetryableError(
                f"the control database does not answer: its file is gone: {self.path}: {error.strerror}",
                where="control.url",
                fix="put it back; or start `tailrace serve` again, which begins an empty one:"
                " without history, pauses and changed schedules",
            ) from error

    def _now(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino


def _engine(config: Config) -> Engine:
    where = f"{config.path}: control.url"
    try:
        url = make_url(config.control.url.get_secret_value())
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            path = config.base / str(url.database)
            path.parent.mkdir(parents=True, exist_ok=True)
            url = url.set(database=str(path))
        elif url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        limits = {"connect_timeout": CONNECT_S, "tcp_user_timeout": UNANSWERED_MS}
        limits = limits if url.get_backend_name() == "postgresql" else {}
        engine = create_engine(
            url, poolclass=QueuePool, pool_size=POOL_SIZE, pool_pre_ping=True, connect_args=limits
        )
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
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


@contextmanager
def errors() -> Iterator[None]:
    """What SQLAlchemy raises, as ours."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise RetryableError(
            f"the control database does not answer: {' '.join(str(cause).split())}",
            where="control.url",
            fix="see that it is there and that this user may write it",
        ) from error


def owner() -> str:
    """This process, for rows that it works on: host:pid:start."""
    return f"{socket.gethostname()}:{os.getpid()}:{_begun(os.getpid())}"


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
    return int(pid) == os.getpid() or _begun(int(pid)) != begun


def _begun(pid: int) -> str:
    """When it was started, in ticks since boot, as its number may be another's by now; where the kernel does
    not say, nothing. One that is dead and not yet waited for has none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if state == "Z" else rest[18]


def dump(value: Any) -> str:
    return orjson.dumps(value).decode()


def time_text(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
