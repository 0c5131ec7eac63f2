"""A capture takes tables into its publications: nobody's migration is ended for it as half of a deadlock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from streamer.config import Config
from streamer.errors import SourceUnavailable
from streamer.postgres import catalog, publishing
from streamer.postgres.connection import connect
from tests.harness.capture import WAIT_S, Capture, run, until
from tests.integration.test_capture_start import session, soon, waits

THREE = [f"CREATE TABLE {name} (id int PRIMARY KEY)" for name in ("a", "y", "z")]
MEMBERS = "SELECT tablename::text FROM pg_publication_tables WHERE pubname = %s ORDER BY 1"


async def runs_or_waits(url: str, application: str, work: asyncio.Task[object]) -> None:
    async with session(url, "the test") as connection:

        async def settled() -> bool:
            cursor = await connection.execute(
                """SELECT count(*) > 0 FROM pg_stat_activity
                   WHERE application_name = %s AND cardinality(pg_blocking_pids(pid)) > 0""",
                (application,),
            )
            row = await cursor.fetchone()
            return work.done() or (row is not None and bool(row[0]))

        await until(settled)


async def test_h08_a_first_copy_makes_no_migration_the_victim_of_a_deadlock(
    database: str, make_config: Callable[..., Config]
) -> None:
    """One migration has z and comes to a; another has y, for which the capture waits."""
    await run(database, *THREE)
    capture = Capture(make_config(database))
    async with session(database, "b") as b, session(database, "c") as c:
        await b.execute("BEGIN; ALTER TABLE z ADD COLUMN w int")
        await c.execute("BEGIN; ALTER TABLE y ADD COLUMN w int")
        capture.start()
        await waits(database, "tailrace capture")
        altering: asyncio.Task[object] = asyncio.create_task(b.execute("ALTER TABLE a ADD COLUMN w int"))
        await runs_or_waits(database, "b", altering)
        await c.execute("COMMIT")
        await soon(altering)
        await b.execute("COMMIT")
    await capture.state("streaming")
    await capture.end()
    async with session(database) as connection:
        members = await connection.execute(MEMBERS, (capture.config.name,))
        assert await members.fetchall() == [("a",), ("y",), ("z",)]


async def test_a_table_added_in_mid_stream_makes_no_migration_the_victim_of_a_deadlock(
    database: str,
) -> None:
    """One migration has a partition and comes to the root; another has the partition before it."""
    await run(
        database,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (2)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (2) TO (3)",
        "CREATE PUBLICATION locks WITH (publish_via_partition_root = true)",
    )

    async def add() -> bool:
        async with connect(database, application="the capture") as ours:
            table = await catalog.find_table(ours, "public", "p")
            assert table is not None
            while True:
                try:
                    return await publishing.add_table(ours, "locks", table, with_rows=False)
                except psycopg.errors.LockNotAvailable:
                    continue

    async with session(database, "b") as b, session(database, "c") as c, asyncio.timeout(WAIT_S):
        await b.execute("BEGIN; ALTER TABLE p2 ALTER id SET STATISTICS 5; TRUNCATE p2")
        await c.execute("BEGIN; TRUNCATE p1")
        adding = asyncio.create_task(add())
        await waits(database, "the capture")
        altering: asyncio.Task[object] = asyncio.create_task(b.execute("ALTER TABLE p ADD COLUMN w int"))
        await runs_or_waits(database, "b", altering)
        await c.execute("COMMIT")
        await altering
        await b.execute("COMMIT")
        assert await adding
        members = await c.execute(MEMBERS, ("locks",))
        assert await members.fetchall() == [("p",)]


async def test_an_owner_who_may_not_write_its_table_can_publish_it(
    database: str, make_config: Callable[..., Config]
) -> None:
    """PostgreSQL has such a role LOCK nothing, though it owns the table."""
    config = make_config(database)
    source = config.sources["shop"]
    role = sql.Identifier(f"{config.name}_owner")
    async with session(database) as admin:
        for statement in (
            "CREATE ROLE {}",
            "GRANT CREATE ON SCHEMA public TO {}",
            "DO $$BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO ', current_database()) || {}; END$$",
            "SET ROLE {}",
            "CREATE TABLE ledger (id int PRIMARY KEY)",
            "CREATE TABLE other (id int PRIMARY KEY)",
            "REVOKE UPDATE, DELETE, TRUNCATE ON ledger FROM {}",
        ):
            name = sql.Literal(role.as_string(None)) if "DO $$" in statement else role
            await admin.execute(sql.SQL(statement).format(name))
        try:
            tables = tuple(await catalog.list_tables(admin, source))
            publications = catalog.Publications(config.name, tables)
            await publishing.make_publications(admin, publications, source)
            members = await admin.execute(MEMBERS, (config.name,))
            assert await members.fetchall() == [("ledger",), ("other",)]
        finally:
            await admin.execute("RESET ROLE")
            await admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


async def test_a_slot_that_goes_with_the_capture_that_was_making_it_is_made_again(
    database: str, make_config: Callable[..., Config]
) -> None:
    """As after kill -9 while the slot waits for a writer: it is listed until its walsender has ended."""
    config = make_config(database)
    names = {"name": sql.Identifier(config.name)}
    await run(database, *THREE)
    capture = Capture(config)
    reasons: set[str] = set()
    async with session(database) as writer, connect(database, replication=True) as killed:
        await writer.execute(
            sql.SQL("CREATE PUBLICATION {name} FOR TABLE a WITH (publish_via_partition_root)").format(**names)
        )
        await writer.execute("BEGIN; INSERT INTO a VALUES (1)")
        making = asyncio.create_task(
            killed.execute(sql.SQL("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput").format(**names))
        )
        await waits(database, "tailrace")
        capture.start()
        await capture.until(lambda: "is still in use" in capture.status.record.reason)
        killed.pgconn.get_cancel().cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await making
        await writer.execute("COMMIT")

    def streams() -> bool:
        reasons.add(capture.status.record.reason)
        return capture.status.record.state == "streaming"

    await capture.until(streams)
    await capture.end()
    assert not [reason for reason in reasons if "does not exist" in reason]


async def test_a_deadlock_that_ends_our_command_is_not_taken_for_a_server_that_is_away(database: str) -> None:
    await run(database, *THREE)

    blocked: list[asyncio.Task[object]] = []

    async def meet(other: psycopg.AsyncConnection[object]) -> None:
        async with connect(database, application="ours") as ours:
            await ours.execute("SET deadlock_timeout = '10ms'")
            await ours.execute("BEGIN; LOCK TABLE a")
            blocked.append(asyncio.create_task(other.execute("LOCK TABLE a")))
            await waits(database, "other")
            await ours.execute("LOCK TABLE y")

    async with session(database, "other") as other:
        await other.execute("SET deadlock_timeout = '1h'")  # ours finds it
        await other.execute("BEGIN; LOCK TABLE y")
        with pytest.raises(SourceUnavailable) as caught:
            await meet(other)
        await blocked[0]
    assert "waited in a circle with other sessions: deadlock detected" in caught.value.what
    assert caught.value.fix.startswith("nothing: it is tried again (Process ")
