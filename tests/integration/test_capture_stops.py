"""When capture must stop, what it says then, and that the command it names mends it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.reconcile.mapping import Incomparable
from consumers.reconcile.origins.postgres import describe_table
from consumers.reconcile.sides.postgres import Session
from streamer.changes.position import Stage
from streamer.config import Config
from streamer.errors import BadRecordError, ConfigError, FatalError, PositionError
from streamer.kafka import admin
from streamer.postgres.catalog import find_table
from streamer.runner import make_publisher, reset_source
from streamer.sandbox import PostgresServer
from tests.harness.capture import WAIT_S, Capture, capturing, confirmed_lsn, events, fails, run, until, values


async def test_h04_what_is_confirmed_is_in_the_positions_topic(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        for n in range(20):
            await run(database, f"INSERT INTO t VALUES ({n})")
        await capture.caught_up()
    confirmed = await confirmed_lsn(config)
    publisher = make_publisher(config, config.kafka.brokers, "shop")
    await publisher.start()
    loaded = await publisher.load()
    await publisher.close()
    assert loaded.position is not None
    assert loaded.position.stage is Stage.STREAMING
    assert confirmed <= loaded.position.lsn


async def test_h04_dropped_slot(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config):
        pass
    await run(database, f"SELECT pg_drop_replication_slot('{config.name}')")
    error = await fails(config)
    assert isinstance(error, PositionError)
    assert "is gone" in str(error)
    assert "tailrace reset shop" in str(error)


async def test_h04_recreated_slot_and_the_reset_that_mends_it(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    config = make_config(database)
    async with capturing(config) as capture:
        first = capture.status.record.detail["epoch"]
    await run(
        database,
        f"SELECT pg_drop_replication_slot('{config.name}')",
        "DELETE FROM t WHERE id = 2",
        f"SELECT pg_create_logical_replication_slot('{config.name}', 'pgoutput')",
    )
    error = await fails(config)
    assert isinstance(error, PositionError)
    assert "was moved or made again" in str(error)
    assert await reset_source(config, "shop", brokers=config.kafka.brokers) == first + 1
    async with capturing(config) as capture:
        await capture.caught_up()
    second = [v for v in values(await events(config, "t")) if v["source"]["epoch"] == first + 1]
    assert [v["after"] for v in second if v["op"] == "r"] == [{"id": 1}]
    floors = values(await events(config, "t"), floors=True)
    assert [f["message"]["prefix"] for f in floors] == ["tailrace.floor"]
    assert floors[0]["source"]["commit_lsn"] == 0


async def test_h04_slot_moved_by_hand(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config):
        pass
    await run(
        database,
        "INSERT INTO t VALUES (1)",
        f"SELECT pg_replication_slot_advance('{config.name}', pg_current_wal_lsn())",
    )
    error = await fails(config)
    assert isinstance(error, PositionError)
    assert "was moved or made again" in str(error)


async def test_h04_slot_without_a_position(database: str, make_config: Callable[..., Config]) -> None:
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY)",
    )
    config = make_config(database)
    await run(database, f"SELECT pg_create_logical_replication_slot('{config.name}', 'pgoutput')")
    await run(database, f"CREATE PUBLICATION {config.name} FOR TABLE t")
    error = await fails(config)
    assert isinstance(error, PositionError)
    assert "no position of source shop" in str(error)


async def test_h04_dropped_publication(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config):
        pass
    await run(database, f"DROP PUBLICATION {config.name}")
    error = await fails(config)
    assert f"publication {config.name} is gone" in str(error)


async def test_h02_h04_a_cold_copy_restored(
    sandbox: Any, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    """System id and timeline are the same; the transactions are not."""
    server: PostgresServer = sandbox.add_postgres().start()
    try:
        await run(server.url, "CREATE TABLE t (id int PRIMARY KEY)")
        config = make_config(server.url)
        async with capturing(config):
            pass
        _keep_data(server, tmp_path / "copy")
        async with capturing(config) as capture:
            await run(server.url, "INSERT INTO t VALUES (1)")
            await capture.caught_up()
        _put_back(server, tmp_path / "copy")
        server.start()
        error = await fails(config)
        assert "was restored to an earlier point" in str(error)
        for n in range(100, 140):  # beyond the position by other transactions
            await run(server.url, f"INSERT INTO t VALUES ({n})")
        error = await fails(config)
        assert "restored from a copy" in str(error) or "earlier point" in str(error)
        assert "tailrace reset shop" in str(error)
    finally:
        server.stop()


def _keep_data(server: PostgresServer, copy: Path) -> None:
    """A cold copy of the server's data; it runs again afterwards."""
    server.stop()
    shutil.copytree(server.data, copy, symlinks=True)
    server.start()


def _put_back(server: PostgresServer, copy: Path, *, recovery: bool = False) -> None:
    """Stop the server and give it the copy; with `recovery` it starts a timeline of its own from there."""
    server.stop()
    for entry in server.data.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(copy, server.data, symlinks=True, dirs_exist_ok=True)
    if recovery:
        with (server.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("restore_command = '/bin/false'\n")
        (server.data / "recovery.signal").touch()
    # Copied files belong to whoever ran the copy; the server wants its own user.
    owner = server.data.stat()
    for path in server.data.rglob("*"):
        shutil.chown(path, owner.st_uid, owner.st_gid)


async def test_h02_a_failover_to_a_server_that_lagged(
    sandbox: Any, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    """The promoted copy left our timeline before the position: what was published never happened there."""
    server: PostgresServer = sandbox.add_postgres().start()
    try:
        await run(server.url, "CREATE TABLE t (id int PRIMARY KEY)")
        config = make_config(server.url)
        async with capturing(config):
            pass
        _keep_data(server, tmp_path / "standby")
        async with capturing(config) as capture:
            await run(server.url, "INSERT INTO t VALUES (1)")
            await capture.caught_up()
            first = capture.status.record.detail["epoch"]
        _put_back(server, tmp_path / "standby", recovery=True)
        server.start()
        await until(lambda: promoted(server.url))
        await run(server.url, "SELECT pg_switch_wal()", "INSERT INTO t VALUES (2)", "SELECT pg_switch_wal()")
        error = await fails(config)
        assert isinstance(error, PositionError)
        assert "the server (timeline 2) left our timeline at" in str(error)
        assert "tailrace reset shop" in str(error)
        assert await reset_source(config, "shop", brokers=config.kafka.brokers) == first + 1
        async with capturing(config) as capture:
            await capture.caught_up()
    finally:
        server.stop()


async def test_h14_h17_a_topic_made_again_and_the_reset_that_mends_it(
    database: str, make_config: Callable[..., Config], kafka: str
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    config = make_config(database)
    async with capturing(config) as capture:
        await capture.caught_up()
    async with admin(kafka, None) as client:
        await client.delete_topics(["shop.public.t"])

        async def gone() -> bool:
            return "shop.public.t" not in await client.list_topics()

        await until(gone)
    error = await fails(config)
    assert isinstance(error, PositionError)
    assert "topic shop.public.t was deleted" in str(error)
    second = await reset_source(config, "shop", brokers=kafka)
    async with capturing(config) as capture:
        await capture.caught_up()
    records = await events(config, "t")
    assert [(v["op"], v["source"]["epoch"]) for v in values(records)] == [("r", second)]
    assert [v["source"]["epoch"] for v in values(records, floors=True)] == [second]


async def test_h22_a_changed_key_stops_the_source(database: str, make_config: Callable[..., Config]) -> None:
    await run(
        database, "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL)", "INSERT INTO t VALUES (1, 1)"
    )
    config = make_config(database)
    capture = Capture(config)
    capture.start()
    await capture.state("streaming")
    await run(
        database,
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (other)",
        "INSERT INTO t VALUES (2, 2)",
    )
    assert capture.task is not None
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(FatalError, match=r"the key of public.t changed from \(id\) to \(other\)"):
            await capture.task
    second = await reset_source(config, "shop", brokers=config.kafka.brokers)
    async with capturing(config) as capture:
        await capture.caught_up()
    keys = {
        r.key
        for r in await events(config, "t")
        if r.value and b'"epoch":%d' % second in r.value and b'"op":"r"' in r.value
    }
    assert keys == {b'{"other":1}', b'{"other":2}'}


async def test_wal_level_must_be_logical(sandbox: Any, make_config: Callable[..., Config]) -> None:
    server: PostgresServer = sandbox.add_postgres().start()
    try:
        await run(server.url, "ALTER SYSTEM SET wal_level = 'replica'")
        server.restart()
        error = await fails(make_config(server.url))
        assert "wal_level is replica" in str(error)
        assert "ALTER SYSTEM SET wal_level = 'logical'" in str(error)
    finally:
        server.stop()


async def test_a_role_without_replication_is_told_what_it_lacks(
    database: str, make_config: Callable[..., Config]
) -> None:
    name = database.rsplit("/", 1)[1]
    await run(
        database,
        f"CREATE ROLE r_{name} LOGIN PASSWORD 'geheim-{name}'",
        "CREATE TABLE t (id int PRIMARY KEY)",
    )
    parts = psycopg.conninfo.conninfo_to_dict(database)
    url = f"postgresql://r_{name}:geheim-{name}@{parts['host']}:{parts['port']}/{name}"
    try:
        error = await fails(make_config(url))
        assert f'run ALTER ROLE "r_{name}" REPLICATION;' in str(error)
        wrong = await fails(make_config(url.replace("geheim-", "falsch-")))
        assert "password authentication failed" in str(wrong)
        assert "falsch" not in str(wrong)
    finally:
        await run(database, f"DROP ROLE r_{name}")


async def passed_over(url: str, publication: str, name: str) -> bool:
    """Whether a proof does without a table that the target does not have either."""
    session = Session(url, "source")
    await session.open()
    try:
        table = await find_table(session.connection, "public", name)
        assert table is not None
        with pytest.raises(Incomparable, match="it is in no publication of the capture") as caught:
            await (await describe_table(session, "shop", table, publication)).count()
        return caught.value.meant
    finally:
        await session.close()


async def test_what_a_table_made_later_needs_of_others_is_told_whole(
    database: str, make_config: Callable[..., Config]
) -> None:
    """The least role, `manage: false`: what is told to be run is all that the table's rows need."""
    name = database.rsplit("/", 1)[1]
    role = f"r_{name}"
    await run(
        database,
        f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'",
        f"GRANT USAGE ON SCHEMA public TO {role}",
        "CREATE TABLE t (id int PRIMARY KEY)",
        f"GRANT SELECT ON t TO {role}",
        f"CREATE PUBLICATION {name} FOR TABLE ONLY t WITH (publish_via_partition_root = true)",
    )
    parts = psycopg.conninfo.conninfo_to_dict(database)
    url = f"postgresql://{role}:x@{parts['host']}:{parts['port']}/{name}"
    try:
        config = make_config(url, publication={"name": name, "manage": False})
        async with capturing(config) as capture:
            await run(database, "CREATE TABLE later (id int PRIMARY KEY)", "INSERT INTO later VALUES (7)")
            await capture.until(lambda: any("public.later" in told for told in capture.findings))
            (finding,) = capture.findings
            grant = f'GRANT SELECT ON "public"."later" TO "{role}";'
            add = f'ALTER PUBLICATION "{name}" ADD TABLE ONLY "public"."later";'
            assert finding.index(grant) < finding.index(add)
            assert await passed_over(url, name, "later")
            await run(database, grant, add)
            status = capture.status
            await capture.until(
                lambda: [run["state"] for run in status.record.detail["backfills"]] == ["done"]
            )
        assert [v["after"] for v in values(await events(config, "later"))] == [{"id": 7}]
    finally:
        await run(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_a_named_table_that_is_missing(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, "CREATE TABLE orders (id int PRIMARY KEY)")
    error = await fails(make_config(database, tables={"public.order": {}}))
    assert "table public.order is named in `tables:`" in str(error)
    assert "did you mean public.orders?" in str(error)


async def test_no_free_slot(sandbox: Any, make_config: Callable[..., Config]) -> None:
    server: PostgresServer = sandbox.add_postgres().start()
    try:
        await run(
            server.url,
            "CREATE TABLE t (id int PRIMARY KEY)",
            "ALTER SYSTEM SET max_replication_slots = 1",
        )
        server.restart()
        await run(server.url, "SELECT pg_create_physical_replication_slot('taken')")
        error = await fails(make_config(server.url))
        assert "no replication slot is free" in str(error)
        assert "max_replication_slots" in str(error)
    finally:
        server.stop()


async def test_a_row_over_the_message_limit_is_named_and_stops_the_source(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    config = make_config(database)
    capture = Capture(config)
    capture.start()
    await capture.state("streaming")
    await run(database, "INSERT INTO t VALUES (1, 'small')", "INSERT INTO t VALUES (2, repeat('x', 9000000))")
    assert capture.task is not None
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BadRecordError) as caught:
            await capture.task
    message = str(caught.value)
    assert "topic shop.public.t" in message
    assert '{"id":2}' in message
    assert "9,000," in message
    assert "kafka.topics.max_message" in message
    assert "on_oversize" not in message, "what is not built mends nothing"
    assert "leave its table out with `exclude` in `tables:`" in message
    assert [v["after"]["id"] for v in values(await events(config, "t"))] in ([1], [])
    without = make_config(database, tables={"public.t": "exclude", "public.*": {}})
    async with capturing(without) as capture:
        await capture.caught_up()


async def test_a_slot_of_another_plugin_is_not_ours(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    await run(database, f"SELECT pg_create_logical_replication_slot('{config.name}', 'test_decoding')")
    error = await fails(config)
    assert "is a test_decoding slot" in str(error)


async def published(url: str, table: str) -> bool:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute("SELECT FROM pg_publication_tables WHERE tablename = %s", (table,))
        return await cursor.fetchone() is not None


async def promoted(url: str) -> bool:
    """A server that is ready may still be at the end of its recovery."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute("SELECT NOT pg_is_in_recovery()")).fetchone()
    assert row is not None
    return bool(row[0])


async def test_a_table_whose_rule_is_not_built_is_left_out_by_name(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE TABLE masked (id int PRIMARY KEY, email text)",
        "CREATE TABLE open (id int PRIMARY KEY)",
        "INSERT INTO masked VALUES (1, 'a@b.c')",
        "INSERT INTO open VALUES (1)",
    )
    rules = {"public.masked": {"mask": {"email": "sha256"}}, "public.*": {}}
    config = make_config(database, tables=rules)
    async with capturing(config) as capture:
        await run(database, "INSERT INTO masked VALUES (2, 'd@e.f')", "INSERT INTO open VALUES (2)")
        await capture.caught_up()
        await capture.until(lambda: bool(capture.status.record.detail["findings"]))
        finding = capture.status.record.detail["findings"][0]
    assert "public.masked is not captured" in finding
    assert "mask" in finding
    assert "not built yet" in finding
    assert [v["after"]["id"] for v in values(await events(config, "open"))] == [1, 2]
    async with admin(config.kafka.brokers, None) as client:
        assert "shop.public.masked" not in await client.list_topics()


async def test_h27_what_a_publication_made_by_hand_leaves_out_stops_the_first_start(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Operations, rows, and what a partition never wrote; each with the statements that mend it."""
    config = make_config(database)
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id)",
        "CREATE UNLOGGED TABLE p1 PARTITION OF p FOR VALUES IN (1)",
        "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
        f"CREATE PUBLICATION {config.name} FOR TABLE t WHERE (id > 1), p WITH (publish = 'insert, update')",
    )
    for what in (
        f"the publication {config.name} does not publish what capture needs",
        f"the publication {config.name} filters rows or columns of public.t",
        "partition public.p1 of public.p is UNLOGGED",
    ):
        error = await fails(config)
        assert isinstance(error, ConfigError)
        assert error.what.startswith(what)
        await run(database, error.fix.partition(" run ")[2])
    async with capturing(config) as capture:
        await run(database, "INSERT INTO t VALUES (1)", "INSERT INTO p VALUES (1)", "DELETE FROM p")
        await run(database, "CREATE UNLOGGED TABLE p2 PARTITION OF p FOR VALUES IN (2)")
        await capture.until(lambda: any("p2 of public.p is UNLOGGED" in f for f in capture.findings))
        (finding,) = [found for found in capture.findings if found.startswith("public.u is UNLOGGED")]
        await run(database, finding.partition(" run ")[2])
        await capture.until(lambda: not any("public.u" in found for found in capture.findings))
        await until(lambda: published(database, "u"))
        await run(database, "INSERT INTO u VALUES (1)")
        await capture.caught_up()
    assert [v["op"] for t in "tpu" for v in values(await events(config, t))] == ["c", "c", "d", "c"]
