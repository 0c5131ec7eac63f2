"""Rules of capture that only show at a certain moment: each test makes the moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from streamer import runner
from streamer.changes.position import Position, Stage
from streamer.config import Config
from streamer.errors import FatalError, SourceUnavailable
from streamer.postgres import catalog, copy_start, source, stream
from streamer.postgres.connection import connect
from streamer.postgres.pgoutput import Relation, RelationColumn
from streamer.postgres.replication_messages import status_update
from streamer.postgres.slot import start_replication
from streamer.postgres.watch import Watch
from streamer.publisher import Loaded, Publisher
from streamer.runner import make_publisher, now_us, reset_source
from streamer.sandbox import PostgresServer
from tests.harness.capture import WAIT_S, Capture, capturing, events, fails, run, until, values
from tests.integration.test_capture_stops import promoted

TABLE = "CREATE TABLE t (id int PRIMARY KEY)"


async def load(config: Config) -> Loaded:
    publisher = make_publisher(config, config.kafka.brokers, "shop")
    await publisher.start()
    try:
        return await publisher.load(reset=True)
    finally:
        await publisher.close()


async def test_h04_nothing_is_confirmed_before_its_position_is_in_kafka(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that takes long: the stream is read and the server's log grows, but no confirm goes ahead."""
    recorded, confirmed = [0], []
    gate = asyncio.Event()
    gate.set()
    flush = Publisher.flush

    async def slow(publisher: Publisher, position: Position) -> Position:
        kept = await flush(publisher, position)
        await gate.wait()
        recorded.append(kept.lsn)
        return kept

    def confirm(lsn: int, *, now_us: int) -> bytes:
        confirmed.append((lsn, max(recorded)))
        return status_update(lsn, now_us=now_us)

    monkeypatch.setattr(Publisher, "flush", slow)
    monkeypatch.setattr(stream, "status_update", confirm)
    monkeypatch.setattr(stream, "FEEDBACK_S", 0.02)
    monkeypatch.setattr(stream, "LOOK_S", 0.02)
    await run(database, TABLE)
    async with capturing(make_config(database)) as capture:
        gate.clear()
        for n in (1, 2):
            before = capture.status.record.detail["published"]
            await run(database, f"INSERT INTO t VALUES ({n})")
            await capture.until(lambda seen=before: capture.status.record.detail["published"] > seen)
        sent = len(confirmed)
        await capture.until(lambda: len(confirmed) > sent + 5)
        gate.set()
        await capture.caught_up()
    assert [(lsn, kept) for lsn, kept in confirmed if lsn > kept] == []


async def test_h04_a_publication_made_again_while_it_is_captured(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect, looks = Watch.inspect, []

    async def look(watch: Watch, shown_lsn: int) -> None:
        await inspect(watch, shown_lsn)
        looks.append(watch)

    monkeypatch.setattr(Watch, "inspect", look)
    await run(database, TABLE)
    config = make_config(database)
    capture = Capture(config)
    capture.start()
    await capture.until(lambda: bool(looks))
    assert capture.task is not None
    await run(database, f"DROP PUBLICATION {config.name}", f"CREATE PUBLICATION {config.name} FOR TABLE t")
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(FatalError, match="was dropped or made again after its capture began"):
            await capture.task


async def test_h02_a_failover_that_lost_nothing_is_followed(
    sandbox: Any, make_config: Callable[..., Config]
) -> None:
    """The position lies before the fork; what is written then belongs to the new timeline."""
    server: PostgresServer = sandbox.add_postgres().start()
    try:
        await run(server.url, TABLE)
        config = make_config(server.url)
        async with capturing(config) as capture:
            await run(server.url, "INSERT INTO t VALUES (1)")
            await capture.caught_up()
        for n in (2, 3):
            server.stop()
            with (server.data / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = '/bin/false'\n")
            (server.data / "recovery.signal").touch()
            server.start()
            await until(lambda: promoted(server.url))
            async with capturing(config) as capture:
                await run(server.url, f"INSERT INTO t VALUES ({n})")
                await capture.caught_up()
        found = [v["after"] for v in values(await events(config, "t")) if v["op"] == "c"]
        assert found == [{"id": n} for n in (1, 2, 3)]
        position = (await load(config)).position
        assert position is not None
        assert position.timeline == 3
    finally:
        server.stop()


async def test_h03_the_epoch_is_durable_before_the_slot(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut right after the slot was made: the next start knows whose it is, and makes it again."""
    create_slot, made = copy_start.create_slot, []

    async def cut(*given: Any) -> Any:
        made.append(await create_slot(*given))
        if len(made) == 1:
            raise SourceUnavailable("cut here")
        return made[-1]

    monkeypatch.setattr(copy_start, "create_slot", cut)
    await run(database, TABLE, "INSERT INTO t VALUES (1)")
    config = make_config(database)
    async with capturing(config) as capture:
        await capture.caught_up()
        epoch = capture.status.record.detail["epoch"]
    assert len(made) == 2
    found = [(v["op"], v["after"], v["source"]["epoch"]) for v in values(await events(config, "t"))]
    assert found == [("r", {"id": 1}, epoch)]
    assert not values(await events(config, "t"), floors=True)  # it was a first start all the time


async def test_h03_a_reset_raises_the_epoch_before_it_drops_the_slot(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without position and slot it would be a first start, that leaves in the targets what is gone."""
    await run(database, TABLE)
    config = make_config(database)
    await run(database, f"SELECT pg_create_logical_replication_slot('{config.name}', 'pgoutput')")

    async def cut(*_: Any) -> None:
        raise SourceUnavailable("cut here")

    monkeypatch.setattr(runner, "drop_slot", cut)
    with pytest.raises(SourceUnavailable, match="cut here"):
        await reset_source(config, "shop", brokers=config.kafka.brokers)
    position = (await load(config)).position
    assert position is not None
    assert position.stage is Stage.INTENT
    assert position.since_epoch == position.epoch


async def test_h08_the_tables_are_held_before_the_slot_is_made(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_slot, held = copy_start.create_slot, []

    async def look(*given: Any) -> Any:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            cursor = await connection.execute(
                "SELECT relation::regclass::text FROM pg_locks JOIN pg_stat_activity USING (pid)"
                " WHERE mode = 'AccessShareLock' AND granted AND application_name = 'tailrace snapshot'"
                " AND relation = ANY (%s::regclass[]) ORDER BY 1",
                (["a", "z"],),
            )
            held.append([row[0] for row in await cursor.fetchall()])
        return await create_slot(*given)

    monkeypatch.setattr(copy_start, "create_slot", look)
    await run(database, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE z (id int PRIMARY KEY)")
    async with capturing(make_config(database)):
        pass
    assert held == [["a", "z"]]


async def test_h22_a_key_changed_while_capture_was_down_stops_it(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL)")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "INSERT INTO t VALUES (1, 1)")
        await capture.caught_up()
    await run(
        database,
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (other)",
        "INSERT INTO t VALUES (2, 2)",
    )
    assert "the key of public.t changed from (id) to (other)" in str(await fails(config))


async def test_h22_under_identity_full_the_first_key_stays(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Today's catalogue is no judge of older log: the key that the first record froze goes on."""
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "INSERT INTO t VALUES (1, 10)",
    )
    config = make_config(database)
    async with capturing(config):
        pass
    await run(
        database,
        "INSERT INTO t VALUES (2, 20)",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (other)",
        "INSERT INTO t VALUES (3, 30)",
    )
    async with capturing(config) as capture:
        await capture.caught_up()
    assert {r.key for r in await events(config, "t")} == {b'{"id":1}', b'{"id":2}', b'{"id":3}'}


async def test_h22_a_primary_key_that_the_relation_lacks_is_no_key(database: str) -> None:
    relation = Relation(1, "public", "t", "f", (RelationColumn("a", 23, -1, True),))
    async with await psycopg.AsyncConnection.connect(database) as connection:
        lacks = await catalog.describe(connection, "shop", relation, None, ("a", "b"))
        has = await catalog.describe(connection, "shop", relation, None, ("a",))
    assert lacks.key_columns == ()
    assert has.key_columns == ("a",)


@pytest.mark.parametrize(
    ("identity", "key", "has_index", "insert_only"),
    [
        ("d", ("id",), False, False),
        ("d", (), False, True),
        ("n", ("id",), False, True),
        ("f", (), False, False),
        ("i", ("id",), True, False),
        ("i", ("id",), False, True),  # the index was dropped, the setting stays
    ],
)
def test_h27_which_tables_are_published_with_inserts_only(
    identity: str, key: tuple[str, ...], has_index: bool, insert_only: bool
) -> None:
    assert catalog.Table("public", "t", 1, identity, key, has_index).insert_only is insert_only


INHERITING = (
    "CREATE TABLE parent (id int PRIMARY KEY, v text)",
    "CREATE TABLE child (extra int) INHERITS (parent)",
    "INSERT INTO child VALUES (1, 'a', 1)",
)


@pytest.mark.parametrize("tables", [{"public.*": {}}, {"public.child": "exclude", "public.*": {}}])
async def test_h27_an_inherited_child_without_a_key_keeps_the_application_working(
    tables: dict[str, Any], database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        *INHERITING,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1, 2)",
    )
    config = make_config(database, tables=tables)
    async with capturing(config) as capture:
        await run(
            database,
            "CREATE TABLE later (id int PRIMARY KEY)",
            "CREATE TABLE later_child (extra int) INHERITS (later)",
        )
        looks = capture.looks
        await capture.until(lambda: capture.looks >= looks + 3)
        await run(
            database,
            "UPDATE child SET v = 'b'",
            "DELETE FROM child",
            "INSERT INTO later_child VALUES (1, 1)",
            "UPDATE later_child SET extra = 2",
            "INSERT INTO parent VALUES (2, 'c')",
            "INSERT INTO later VALUES (2)",
            "INSERT INTO p VALUES (1)",
            "UPDATE p SET id = 2",
        )
        await capture.caught_up()
    assert [v["after"]["id"] for v in values(await events(config, "parent"))] == [2]
    assert [v["after"]["id"] for v in values(await events(config, "later"))] == [2]
    assert [v["op"] for v in values(await events(config, "p"))] == ["c", "d", "c"]


@pytest.mark.parametrize("manage", [True, False])
async def test_h27_a_publication_that_makes_updates_of_the_application_fail(
    manage: bool, database: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(database, tables={"public.parent": {}}, publication={"name": "p", "manage": manage})
    await run(
        database,
        *INHERITING,
        "CREATE PUBLICATION p FOR TABLE parent WITH (publish_via_partition_root = true)",
    )
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        await run(database, "UPDATE child SET v = 'b'")
    error = await fails(config)
    what = "UPDATE and DELETE of public.child fail in the application: publication p publishes them"
    mended = 'ALTER PUBLICATION "p" DROP TABLE ONLY "public"."child";'
    assert what in str(error)
    assert mended in str(error)
    await run(database, mended, "UPDATE child SET v = 'b'")
    async with capturing(config) as capture:
        await run(database, "ALTER PUBLICATION p ADD TABLE child")
        await capture.until(lambda: any(what in finding for finding in capture.findings))


async def test_h30_lock_then_slot_then_ids_then_position(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(database, TABLE)
    config = make_config(database)
    async with capturing(config):
        pass
    order: list[str] = []

    def noted(place: Any, name: str) -> None:
        original = getattr(place, name)

        async def call(*given: Any, **named: Any) -> Any:
            order.append(name)
            return await original(*given, **named)

        monkeypatch.setattr(place, name, call)

    noted(source, "try_lock")
    noted(source, "start_replication")
    noted(Publisher, "start")
    noted(Publisher, "load")
    async with capturing(config):
        pass
    assert order == ["try_lock", "start_replication", "start", "load"]


async def test_h30_a_look_over_a_lost_lock_connection_ends_the_session(
    database: str, make_config: Callable[..., Config]
) -> None:
    async with connect(database) as control:
        watch = Watch(control, make_config(database).sources["shop"], now_us)
        await watch.look(0)
        await run(database, f"SELECT pg_terminate_backend({control.info.backend_pid}, 5000)")
        with pytest.raises(SourceUnavailable):
            await watch.look(0)


async def test_h30_the_walsender_of_a_dead_capture_is_ended(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host is gone without a word, and the server still takes it for a reader."""
    monkeypatch.setattr(source, "LEFTOVER_AFTER_S", 0.0)
    monkeypatch.setattr(source, "LOCK_POLL_S", 0.05)
    await run(database, TABLE)
    config = make_config(database)
    async with capturing(config):
        pass
    async with connect(database, replication=True) as leftover:
        await start_replication(leftover, config.name, (config.name,), server_version=180000)
        async with capturing(config) as capture:
            await run(database, "INSERT INTO t VALUES (1)")
            await capture.caught_up()
    assert {"id": 1} in [v.get("after") for v in values(await events(config, "t"))]


async def test_h27_a_partition_with_an_identity_of_its_own_is_named(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Its deletes would come without the root's key. While it runs it is a finding, at a start an error."""
    await run(
        database,
        "CREATE TABLE p (id int, k int, u int NOT NULL, PRIMARY KEY (id, k)) PARTITION BY LIST (k)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
        "CREATE UNIQUE INDEX p1_u ON p1 (u)",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "ALTER TABLE p1 REPLICA IDENTITY USING INDEX p1_u")
        await capture.until(
            lambda: any("public.p1 has another replica identity than public.p" in f for f in capture.findings)
        )
        (finding,) = [f for f in capture.findings if "public.p1" in f]
        await run(database, finding.split("run ")[1].split(";")[0])
        await capture.until(lambda: not any("public.p1" in f for f in capture.findings))
