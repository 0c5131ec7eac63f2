"""Every session with a Postgres is set up alike, whatever a database, a role or a server says for people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from consumers.targets.postgres import PostgresTarget
from consumers.targets.postgres_exchange import Names
from consumers.targets.postgres_rebuilds import Rebuilds
from streamer.config import PostgresTarget as Settings
from streamer.config.base import NAME_KEY
from streamer.postgres.connection import LATER_SETTINGS, connect

AS_AN_ADMINISTRATOR_LIKES = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kolkata",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "array_nulls": "off",
    "xmloption": "document",
    "quote_all_identifiers": "on",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "7s",
    "lock_timeout": "7s",
    "idle_in_transaction_session_timeout": "7s",
    "idle_session_timeout": "7s",
    "transaction_timeout": "7s",
}
AS_IT_MUST_BE = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "xmloption": "content",
    "quote_all_identifiers": "off",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}


async def found(connection: psycopg.AsyncConnection[Any], names: list[str]) -> dict[str, str]:
    """Without parameters: a replication connection takes none."""
    shown = [
        (await (await connection.execute(f"SHOW {name}".encode())).fetchone() or ("",))[0] for name in names
    ]
    return dict(zip(names, shown, strict=True))


@asynccontextmanager
async def of_capture(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with connect(url) as connection:
        yield connection


@asynccontextmanager
async def of_the_stream(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with connect(url, replication=True) as connection:
        yield connection


@asynccontextmanager
async def of_apply(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    target = PostgresTarget(settings(url), "acme.copy", [])
    await target.open()
    yield target._open_connection()
    await target.close()


@asynccontextmanager
async def of_a_rebuild(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with of_apply(url):
        pass
    names = Names("mirror", "mirror into b", (), "public", "a", "b", "a_old")
    async with Rebuilds(settings(url), names, "target copy").opened() as rebuilds:
        yield rebuilds.connection


def settings(url: str) -> Settings:
    return Settings.model_validate({NAME_KEY: "copy", "kind": "postgres", "url": url})


@pytest.mark.parametrize("opened", [of_capture, of_the_stream, of_apply, of_a_rebuild])
async def test_what_is_set_for_people_is_not_set_for_us(database: str, opened: Any) -> None:
    """Limits that would end a first copy, styles that change a value: all of it is ours to say."""
    async with connect(database) as connection:
        version = connection.info.server_version
    later = {name for name, (since, _) in LATER_SETTINGS.items() if version < since}
    names = [name for name in AS_IT_MUST_BE if name not in later]
    alter = sql.SQL("ALTER DATABASE {} SET {} = {}")
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        at = sql.Identifier(admin.info.dbname)
        for name in names:
            value = sql.Literal(AS_AN_ADMINISTRATOR_LIKES[name])
            await admin.execute(alter.format(at, sql.Identifier(name), value))
    async with opened(database) as session:
        seen = await found(session, names)
    own = {"idle_in_transaction_session_timeout"} if opened in (of_apply, of_a_rebuild) else set()
    assert {n: v for n, v in seen.items() if n not in own} == {
        n: AS_IT_MUST_BE[n] for n in names if n not in own
    }
