"""What the source's and the target's checks share: connecting, and who the role is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from streamer.doctor.check import Findings
from streamer.errors import TailraceError
from streamer.postgres.connection import Connection, connect, grant_connect, place

CONNECT_DEADLINE_S = 8.0  # a server that is up answers in milliseconds, over a slow line in a second or two
STATEMENT_TIMEOUT = "15s"  # catalogue queries; longer means that the server has other troubles
OLDEST_VERSION = 140000  # logical messages of pgoutput and publish_via_partition_root


@dataclass(frozen=True, slots=True)
class Server:
    """Who answered. `place` tells two URLs of one database apart from two databases."""

    role: str
    database: str
    version: int
    in_recovery: bool
    place: tuple[Any, ...]


@asynccontextmanager
async def connected(findings: Findings, url: SecretStr) -> AsyncIterator[tuple[Connection, Server] | None]:
    """A connection and its server, or None when the findings say why there is none."""
    text = url.get_secret_value()
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                connection = await stack.enter_async_context(connect(text, application="tailrace doctor"))
        except TimeoutError:
            what = f"{place(text)} does not answer within {CONNECT_DEADLINE_S:.0f} s"
            findings.fail("reachable", what, _REACH)
            yield None
            return
        except TailraceError as error:
            refused(findings, url, error)
            yield None
            return
        await connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
        server = await identify(connection)
        findings.ok("reachable", f"{place(text)}, PostgreSQL {server.version // 10000}")
        if server.version < OLDEST_VERSION:
            what = f"PostgreSQL {server.version // 10000} is older than {OLDEST_VERSION // 10000}"
            findings.fail("version", what, f"upgrade the server to {OLDEST_VERSION // 10000} or newer")
        yield connection, server


_REACH = "check host and port of the URL, that the server runs, and that no firewall stands between"
_OWNER = "as the database's owner run"


def refused(findings: Findings, url: SecretStr, error: TailraceError) -> None:
    """Why a connection was refused, in words that say what to change; the password never appears."""
    info = conninfo_to_dict(url.get_secret_value())
    user, database = str(info.get("user") or ""), str(info.get("dbname") or info.get("user") or "")
    text = error.what  # libpq names host, port, user and database, never the password
    low = text.lower()
    where = place(url.get_secret_value())
    role = sql.Identifier(user).as_string(None)
    if "password authentication failed" in low or "no password supplied" in low:
        what = f"{where}: the server refuses the user or the password (not shown)"
        fix = f"correct the URL (special characters as %40, %3A, ...), or set it: psql's \\password {role}"
        findings.fail("login", what, fix)
    elif "no pg_hba.conf entry" in low:
        line = f"host  {database}  {user}  <this machine's address>/32  scram-sha-256"
        what = f"{where}: pg_hba.conf has no line for this user, database and address"
        findings.fail("login", what, f"add to pg_hba.conf: {line}", ["SELECT pg_reload_conf();"])
    elif "does not exist" in low and "database" in low:
        statement = sql.SQL("CREATE DATABASE {} OWNER {};")
        made = statement.format(sql.Identifier(database), sql.Identifier(user)).as_string(None)
        findings.fail(
            "database", f"{where}: there is no such database", "correct the URL, or make it", [made]
        )
    elif "not permitted to log in" in low:
        fix = "let the role log in"
        findings.fail("login", f"{where}: the role may not log in", fix, [f"ALTER ROLE {role} LOGIN;"])
    elif "permission denied for database" in low:
        made = grant_connect(database, user)
        findings.fail("login", f"{where}: the role may not connect to the database", _OWNER, [made])
    elif "too many" in low or "remaining connection slots" in low:
        findings.fail(
            "reachable", f"{where}: the server has no free connection", "raise max_connections there"
        )
    else:
        findings.fail("reachable", f"{where}: {' '.join(text.split())}", _REACH)


async def identify(connection: Connection) -> Server:
    row = await one(
        connection,
        """SELECT current_user::text, current_database()::text, current_setting('server_version_num')::int,
                  pg_is_in_recovery(), pg_postmaster_start_time()::text, current_setting('port'),
                  (SELECT oid::bigint FROM pg_database WHERE datname = current_database())""",
    )
    return Server(row[0], row[1], row[2], row[3], (row[4], row[5], row[6]))


async def one(connection: Connection, query: str, parameters: tuple[Any, ...] = ()) -> Any:
    return (await rows(connection, query, parameters))[0]


async def rows(connection: Connection, query: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    cursor = await connection.execute(query.encode(), parameters or None)
    return await cursor.fetchall()


def listed(names: list[str], most: int = 5) -> str:
    """'a, b and 3 more'."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
