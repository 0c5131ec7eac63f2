"""Tables that are dropped while they are looked at: made and dropped by a tool, several times a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import errors

from streamer.changes.backfill import TABLE_GONE, State, table_run
from streamer.config import Config
from streamer.errors import SourceUnavailable
from streamer.postgres import backfill_run, catalog, watch
from streamer.postgres.connection import Connection, connect
from tests.harness.backfill import differences, over, reach
from tests.harness.capture import capturing, events, run, until, values

PASSING = (
    "CREATE TABLE a_passing (id int PRIMARY KEY)",
    "CREATE SCHEMA passing",
    "CREATE TABLE passing.a (id int PRIMARY KEY)",
)


async def test_tables_that_go_while_they_are_looked_at_are_passed_over(
    database: str,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before the first copy and in mid-stream, where those that stay are taken in by the same look."""
    listed, seen = catalog.list_tables, 0

    async def look(*given: Any) -> list[catalog.Table]:
        nonlocal seen
        tables = await listed(*given)
        if any(table.name == "a_passing" for table in tables):
            seen += 1
            await run(database, "DROP TABLE a_passing", "DROP SCHEMA passing CASCADE")
        return tables

    monkeypatch.setattr(catalog, "list_tables", look)
    monkeypatch.setattr(watch, "list_tables", look)
    await run(database, *PASSING, "CREATE TABLE first (id int PRIMARY KEY)", "INSERT INTO first VALUES (1)")
    config = make_config(database, tables={"public.*": {}, "passing.*": {}})
    async with capturing(config) as capture:
        await run(database, *PASSING, "CREATE TABLE later (id int PRIMARY KEY)")

        async def published() -> bool:
            async with connect(database) as connection:
                return (
                    "public.later" in (await catalog.publication_tables(connection, config.name))[config.name]
                )

        await until(published)
        await run(database, "INSERT INTO later VALUES (2)")
        await capture.caught_up()
        assert capture.findings == []
    assert seen == 2
    assert [v["after"] for v in values(await events(config, "first"))] == [{"id": 1}]
    assert [v["after"] for v in values(await events(config, "later"))] == [{"id": 2}]
    assert "does not exist" not in caplog.text  # no session had to end for it


async def test_a_table_that_is_gone_is_not_taken_for_a_server_that_is_away(database: str) -> None:
    async def ask(connection: Connection) -> None:
        await connection.execute("SELECT FROM nothing")

    with pytest.raises(SourceUnavailable) as caught:
        async with connect(database) as connection:
            await ask(connection)
    assert isinstance(caught.value.__cause__, errors.UndefinedTable)
    assert "check that the server runs" not in caught.value.fix


@pytest.mark.thorough
async def test_a_backfill_that_nobody_asked_for_ends_with_its_table(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And begins again with another table of that name; one that a person asked for has failed."""
    made = ("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 10)")
    await run(database, "CREATE TABLE first (id int PRIMARY KEY)")
    config = make_config(database)
    monkeypatch.setattr(backfill_run, "BACKOFF_S", 0.1)
    async with capturing(config) as capture:
        name = table_run("shop", "public", "t", capture.status.record.detail["epoch"])
        with monkeypatch.context() as patch:
            patch.setattr(backfill_run, "LAG_LIMIT_BYTES", 0)  # it waits until the table is gone
            await run(database, *made)
            await reach(capture, name, lambda entry: "is behind" in entry["reason"])
            await run(database, "DROP TABLE t")
        gone = await over(capture, name)
        assert capture.findings == []
        await run(database, *made)
        await reach(capture, name, lambda entry: entry["state"] is State.DONE)
        await capture.caught_up()
    assert (gone.state, gone.reason) == (State.CANCELLED, TABLE_GONE)
    assert await differences(config) == []
