"""Connections to a source: one for replication, ordinary ones beside it.

Owns how a connection is made (session settings, translated errors) and how the messages of a COPY
are taken off libpq's buffer. Must not know what the messages mean.

psycopg has no replication API; a connection made with `replication=database` speaks the simple
query protocol, and after START_REPLICATION it is in COPY BOTH mode (PostgreSQL manual, "Streaming
Replication Protocol"), which `PGconn.get_copy_data` and `put_copy_data` serve.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import generators, pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from streamer.errors import ConfigError, SourceUnavailable, TailraceError

Connection = psycopg.AsyncConnection[TupleRow]

# What a database, a role or a server may have set otherwise, for people: how values are printed and read, on
# which encoders and keys rely, and limits that would end a copy or a stream in the middle.
EVERY_SESSION = {
    "DateStyle": "ISO,YMD",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "array_nulls": "on",  # else NULL in an array's text is the word
    "xmloption": "content",  # else a value that is no whole document is refused
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
# Older servers refuse a connection that names what they do not know; these are set once it is there.
LATER_SETTINGS = {"idle_session_timeout": (140000, "0"), "transaction_timeout": (170000, "0")}
# As libpq's options.
SESSION_SETTINGS = {
    **{name: value.replace(" ", "\\ ") for name, value in EVERY_SESSION.items()},
    "client_encoding": "UTF8",
    "row_security": "off",  # rows hidden from this role are an error, not missing from the copy
}
CONNECT_TIMEOUT_S = 10
# A peer that vanished without a FIN is noticed after idle + interval * count seconds.
KEEPALIVES = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}

_CONFIG_SQLSTATES = ("28", "3D", "42501")  # authentication, no such database, insufficient privilege
_LINE_SQLSTATES = ("08", "57P")  # connections; sessions that the server ends, also all of them
_POLICIES = "check_enable_rls"  # libpq's source_function: the words are in the server's language
# A refused connection comes without its SQLSTATE; these are the server's (and libpq's) words for them.
_CONFIG_WORDS = (
    "authentication failed",
    "no password supplied",
    "permission denied",
    "no pg_hba.conf entry",
    'database "',
    'role "',
)
_CONNECT_PREFIX = re.compile(r"^connection failed: (?:connection to server at .*? failed: )?(?:FATAL:\s+)?")


def session_statements(server_version: int, **own: str) -> bytes:
    """EVERY_SESSION as SQL, for one that is open and takes no options; `own` come on top."""
    return _set({**EVERY_SESSION, **_later(server_version), **own})


def _later(server_version: int) -> dict[str, str]:
    return {name: value for name, (since, value) in LATER_SETTINGS.items() if server_version >= since}


def _set(settings: Mapping[str, str]) -> bytes:
    return "; ".join(f"SET {name} = '{value}'" for name, value in settings.items()).encode()


def place(url: str) -> str:
    """'user@host:port/database' of a URL: what may be printed (never the password)."""
    try:
        info = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "(not a PostgreSQL URL)"
    user = f"{info['user']}@" if info.get("user") else ""
    return f"{user}{info.get('host', 'localhost')}:{info.get('port', 5432)}/{info.get('dbname', '')}"


def connect_grant(error: psycopg.Error) -> str:
    """The SQL that lets the role connect, where that is what a connection was refused for; else ''."""
    if error.pgconn is None or "permission denied for database" not in str(error):
        return ""
    return grant_connect(error.pgconn.db.decode(), error.pgconn.user.decode())


def grant_connect(database: str, role: str) -> str:
    names = sql.Identifier(database), sql.Identifier(role)
    return sql.SQL("GRANT CONNECT ON DATABASE {} TO {};").format(*names).as_string(None)


def policies_cure(error: psycopg.Error, role: str) -> str:
    """What lets the role read rows that policies hide, where a query was refused for them; else ''."""
    if error.diag.source_function != _POLICIES:
        return ""
    return f"as an administrator run ALTER ROLE {sql.Identifier(role).as_string(None)} BYPASSRLS;"


def translate(error: psycopg.Error, where: str) -> TailraceError:
    """A psycopg error as one of ours: wrong credentials and rights need a person, the rest may pass."""
    state = error.sqlstate or ""
    text = " ".join(_CONNECT_PREFIX.sub("", error.diag.message_primary or str(error)).split())
    if ("WAL sender" in text and "permission denied" in text) or "replication role to start" in text:
        role = where.rpartition("@")[0]
        quoted = sql.Identifier(role).as_string(None) if role else "CURRENT_USER"
        return ConfigError(
            f"the role {role or 'in use'} may not replicate: {text}",
            where=where,
            fix=f"as an administrator run ALTER ROLE {quoted} REPLICATION;",
        )
    if state.startswith(_CONFIG_SQLSTATES) or any(words in text for words in _CONFIG_WORDS):
        grant = connect_grant(error)
        return ConfigError(
            text,
            where=where,
            fix=f"as the database's owner run {grant}"
            if grant
            else "correct the user, password or rights; `tailrace doctor` names what is missing",
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return SourceUnavailable(
            f"a table is held by another session: {text}",
            where=where,
            fix="nothing, once that session's transaction has ended (pg_locks shows it): it is tried again",
        )
    if isinstance(error, psycopg.errors.DeadlockDetected):
        detail = " ".join((error.diag.message_detail or "").split())
        return SourceUnavailable(
            f"the server ended a command of ours, which waited in a circle with other sessions: {text}",
            where=where,
            fix=f"nothing: it is tried again{f' ({detail})' if detail else ''}",
        )
    of_the_line = not state or state.startswith(_LINE_SQLSTATES)
    return SourceUnavailable(
        text,
        where=where,
        fix="check that the server runs and can be reached from here"
        if of_the_line
        else "nothing at first: it is tried again. If it stays, the server's log has the statement",
    )


@asynccontextmanager
async def connect(
    url: str, *, replication: bool = False, application: str = "tailrace"
) -> AsyncIterator[Connection]:
    """An autocommit connection with the session settings above; psycopg's errors are translated."""
    where = place(url)
    try:
        info: dict[str, Any] = dict(conninfo_to_dict(url))
        settings = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
        info["options"] = f"{info.get('options') or ''} {settings}".strip()
        info.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        info.setdefault("application_name", application)
        for name, value in KEEPALIVES.items():
            info.setdefault(name, value)
        if replication:
            info["replication"] = "database"
        connection = await psycopg.AsyncConnection.connect(make_conninfo(**info), autocommit=True)
    except psycopg.Error as error:
        raise translate(error, where) from error
    try:
        if later := _later(connection.info.server_version):
            await connection.execute(_set(later))
        yield connection
    except psycopg.Error as error:
        raise translate(error, where) from error
    finally:
        # A COPY in progress cannot be ended politely; closing the socket ends it on the server.
        await connection.close()


async def start_copy(connection: Connection, command: bytes) -> CopyStream:
    """Send a command that answers with COPY OUT or COPY BOTH, and return its messages."""
    pgconn = connection.pgconn
    pgconn.send_query(command)
    (result,) = await connection.wait(generators.execute(pgconn))
    if result.status not in (pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH):
        raise psycopg.errors.error_from_result(result)
    return CopyStream(connection)


class CopyStream:
    """The messages of a running COPY OUT or COPY BOTH."""

    __slots__ = ("_connection", "_pgconn", "_writable")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._writable = True

    def take(self) -> memoryview | None:
        """The next whole message that has arrived, or None. Raises EOFError at the end of the COPY."""
        size, data = self._pgconn.get_copy_data(1)
        if size > 0:
            return data
        if size < 0:
            raise EOFError
        self._pgconn.consume_input()
        size, data = self._pgconn.get_copy_data(1)
        if size < 0:
            raise EOFError
        return data if size > 0 else None

    async def readable(self) -> None:
        """Wait until the socket has bytes (or is closed)."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        descriptor = self._pgconn.socket
        loop.add_reader(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)

    def put(self, message: bytes) -> None:
        """Queue a message to the server and send what the socket takes; never waits."""
        self._pgconn.put_copy_data(message)
        self._pgconn.flush()

    async def finish(self) -> None:
        """Say that we are done (COPY BOTH) and wait until the server has read all we sent."""
        self._pgconn.put_copy_end()
        self._pgconn.flush()
        while True:
            try:
                if self.take() is None:
                    await self.readable()
            except EOFError:
                return

    async def result(self) -> None:
        """After EOFError: raise the server's error if the COPY ended with one."""
        for result in await self._connection.wait(generators.fetch_many(self._pgconn)):
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
