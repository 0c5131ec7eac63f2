"""The first copy among an application's migrations: neither waits for what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from streamer.config import Config
from streamer.postgres import copy_start, source
from streamer.postgres.holdups import shortened
from streamer.postgres.snapshot import SnapshotCopy
from tests.harness.capture import WAIT_S, Capture, capturing, events, run, until, values
from tests.harness.tiers import corners

TABLES = (
    "CREATE TABLE a (id int PRIMARY KEY)",
    "CREATE TABLE z (id int PRIMARY KEY)",
    "INSERT INTO a VALUES (1)",
    "INSERT INTO z VALUES (1)",
)
WAITS = """SELECT count(*) = 1 FROM pg_stat_activity
WHERE application_name = %s AND cardinality(pg_blocking_pids(pid)) > 0"""


@asynccontextmanager
async def session(url: str, application: str = "migration") -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, application_name=application
    ) as connection:
        yield connection


async def waits(url: str, application: str) -> None:
    async with session(url, "the test") as connection:

        async def blocked() -> bool:
            row = await (await connection.execute(WAITS, (application,))).fetchone()
            return row is not None and bool(row[0])

        await until(blocked)


async def soon(work: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        await work


async def copied(config: Config, table: str) -> list[Any]:
    return [v["after"] for v in values(await events(config, table)) if v["op"] == "r"]


@pytest.mark.parametrize("window", ["before the catalogue is read", "while a table before it is copied"])
async def test_h08_ddl_during_the_first_copy_waits_for_it_and_no_longer(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, window: str
) -> None:
    """A plain ALTER without a timeout: what is behind it in the lock's queue may be nothing of ours."""
    migrations: list[asyncio.Task[None]] = []

    async def alter() -> None:
        async with session(database) as connection:
            await connection.execute("ALTER TABLE z ADD COLUMN w text DEFAULT 'w'")

    async def migrate() -> None:
        if not migrations:
            migrations.append(asyncio.create_task(alter()))
            await waits(database, "migration")

    read_ground, copy = source.read_ground, SnapshotCopy.copy

    async def read(*given: Any) -> Any:
        await migrate()
        return await read_ground(*given)

    async def copy_one(*given: Any, **named: Any) -> None:
        await migrate()
        await copy(*given, **named)

    if window.startswith("before"):
        monkeypatch.setattr(source, "read_ground", read)
    else:
        monkeypatch.setattr(SnapshotCopy, "copy", copy_one)
    await run(database, *TABLES)
    config = make_config(database)
    async with capturing(config) as capture:
        await soon(migrations[0])
        await run(database, "INSERT INTO z VALUES (2, 'x')")
        await capture.caught_up()
    assert await copied(config, "z") == [{"id": 1}]
    streamed = [v["after"] for v in values(await events(config, "z")) if v["op"] == "c"]
    assert streamed == [{"id": 2, "w": "x"}]


async def test_h08_while_the_slot_is_made_every_migration_goes_on(
    database: str, make_config: Callable[..., Config]
) -> None:
    """The slot waits for a transaction that has written; the tables are held, and DDL would wait for both."""
    await run(database, *TABLES, "CREATE TABLE log (n int)")
    config = make_config(database, tables={"public.a": {}, "public.z": {}})
    capture = Capture(config)
    async with session(database, "writer") as writer, session(database) as migration:
        await writer.execute("BEGIN")
        await writer.execute("INSERT INTO log VALUES (1)")
        capture.start()
        await waits(database, "tailrace stream")
        await soon(migration.execute("ALTER TABLE z ADD COLUMN v text DEFAULT 'v'"))
        pid = migration.info.backend_pid
        await capture.until(lambda: f"gave way to pid {pid}" in capture.status.record.reason)
        await waits(database, "tailrace stream")
        await soon(writer.execute("ALTER TABLE z ADD COLUMN w text DEFAULT 'w'"))
        await writer.execute("TRUNCATE a")
        await writer.execute("COMMIT")
    await capture.state("streaming")
    epoch = capture.status.record.detail["epoch"]
    await capture.end()
    assert capture.status.record.reason == ""
    assert await copied(config, "z") == [{"id": 1, "v": "v", "w": "w"}]
    assert await copied(config, "a") == []
    assert {v["source"]["epoch"] for v in values(await events(config, "z"))} == {epoch}


async def test_a_slot_that_waits_says_for_whom_and_a_stop_ends_it(
    database: str,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(copy_start, "TOLD_AFTER_S", 0.1)
    caplog.set_level("INFO")
    await run(database, *TABLES)
    capture = Capture(make_config(database))
    async with session(database) as writer:
        await writer.execute("BEGIN")
        await writer.execute("INSERT INTO a VALUES (2)")
        pid, user = writer.info.backend_pid, writer.info.user
        capture.start()
        await capture.until(lambda: f"pid {pid} (user {user}, since " in capture.status.record.reason)
        reason = capture.status.record.reason
        assert reason.startswith("the slot waits for transactions that have written: ")
        assert reason.endswith("query: INSERT INTO a VALUES (...)) must end first")
        assert capture.status.record.state == "starting"
        monkeypatch.setattr(copy_start, "WAITING_AFTER_S", 0.1)
        await capture.state("waiting")
        assert capture.status.record.reason == reason
        await capture.end()  # the transaction is still open
        (stopped,) = [r for r in caplog.records if "stopped before the first copy began" in r.message]
        assert stopped.levelname == "INFO"
        cursor = await writer.execute(
            "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        )
        assert await cursor.fetchone() == (0,)


@pytest.mark.parametrize(
    "moment", corners(["before they are published", "before they are held"], "before they are held")
)
async def test_h08_the_tables_of_a_copy_are_held_at_once_or_not_at_all(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A migration has one table and wants another: it gets it, and nobody is half of a deadlock."""
    make_publications = source.make_publications
    monkeypatch.setattr(copy_start, "TOLD_AFTER_S", 0.1)
    monkeypatch.setattr(source, "LOCK_TIMEOUT", "200ms")
    await run(database, *TABLES)
    config = make_config(database)
    capture = Capture(config)
    async with session(database) as migration:
        pid = migration.info.backend_pid

        async def migrate(*_: Any) -> None:
            if migration.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                await migration.execute("BEGIN")
                await migration.execute(
                    "ALTER TABLE z DROP CONSTRAINT z_pkey, ADD COLUMN w text DEFAULT 'secret'"
                )
                await migration.execute("ALTER TABLE z ADD PRIMARY KEY (w)")
                await migration.execute("SELECT 'a value'")

        async def made(*given: Any) -> None:
            if not capture.status.record.reason:
                await make_publications(*given)
                await migrate()

        if moment == "before they are held":
            monkeypatch.setattr(source, "make_publications", made)
        else:
            await migrate()
        capture.start()
        await capture.until(lambda: f"pid {pid} " in capture.status.record.reason)
        reason = capture.status.record.reason
        assert reason.startswith("the first copy waits for a table (")
        assert reason.endswith("query: SELECT '...') must end first")
        await soon(migration.execute("ALTER TABLE a ADD COLUMN w text"))
        await migration.execute("COMMIT")
    await capture.state("streaming")
    await capture.end()
    assert await copied(config, "a") == [{"id": 1, "w": None}]
    assert {r.key for r in await events(config, "z")} == {b'{"w":"secret"}'}  # as it is when it is held


def server_lsn(capture: Capture) -> int:
    return capture.status.record.detail["server_lsn"] or 0


@pytest.mark.thorough
async def test_a_capture_whose_table_is_locked_goes_on_looking_and_says_why_it_cannot_start(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "LOCK_TIMEOUT", "100ms")
    await run(database, *TABLES)
    config = make_config(database)
    async with session(database) as migration:
        async with capturing(config) as capture:
            await migration.execute("BEGIN")
            await migration.execute("ALTER TABLE z ADD COLUMN w text")
            for _ in range(2):  # the first look may have begun before
                seen = server_lsn(capture)
                await run(database, "INSERT INTO a SELECT max(id) + 1 FROM a")
                await capture.until(lambda seen=seen: server_lsn(capture) > seen)
            await capture.caught_up()
        again = Capture(config)
        again.start()
        await again.until(lambda: "a table is held by another session" in again.status.record.reason)
        assert again.status.record.state in ("waiting", "starting")
        await migration.execute("COMMIT")
    await again.state("streaming")
    await again.end()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("UPDATE t\n   SET a = 'it''s', b = 'x'", "UPDATE t SET a = '...', b = '...'"),
        ("ALTER ROLE r PASSWORD 'cut off", "ALTER ROLE r PASSWORD '...'"),
        ("SELECT $$it's$$, $b$a$$ cost$b$, $1 FROM t", "SELECT '...', '...', $1 FROM t"),
        ("DO $do$BEGIN PERFORM 'x'; END$d", "DO '...'"),
        (r"SELECT E'it\'s', e'\\', date'2020-01-01' FROM t", "SELECT '...', '...', date'...' FROM t"),
        (r"SELECT 'its\', 'a secret'", "SELECT '...'"),  # by the session's setting one string, or two
        (
            'UPDATE t1 SET a$2 = -12.5e+3, b_2 = .5, c = 0xFF WHERE "it\'s 7" IN (4711, 2)',
            'UPDATE t1 SET a$2 = -..., b_2 = ..., c = ... WHERE "it\'s 7" IN (..., ...)',
        ),
        ("SELECT 1 -- don't\n, 'a' /* it's */, 'b' /* a /* b */ c' */", "SELECT ... , '...' , '...'"),
        ("<insufficient privilege>", ""),
        ("SELECT " + "x" * 200, "SELECT " + "x" * 113 + "..."),
    ],
)
def test_a_query_is_shown_without_values(query: str, shown: str) -> None:
    assert shortened(query) == shown
