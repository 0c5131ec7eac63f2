"""Capture on real servers: what it publishes, and that each event is published once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from streamer.config import Config
from streamer.postgres import source, stream
from streamer.postgres.slot import lock_key
from streamer.runner import make_publisher
from tests.harness.capture import Capture, capturing, confirmed_lsn, events, run, until, values


async def test_snapshot_then_every_kind_of_change(database: str, make_config: Callable[..., Config]) -> None:
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await run(
            database,
            "INSERT INTO t VALUES (3, 'c')",
            "UPDATE t SET v = 'x' WHERE id = 1",
            "UPDATE t SET id = 20 WHERE id = 2",
            "DELETE FROM t WHERE id = 3",
            "TRUNCATE t",
            "INSERT INTO t VALUES (1, NULL)",
        )
        await capture.caught_up()
    found = values(await events(config, "t"))
    shown = [(v["op"], v["before"], v["after"]) for v in found]
    assert sorted(map(str, shown[:2])) == sorted(
        map(str, [("r", None, {"id": 1, "v": "a"}), ("r", None, {"id": 2, "v": "b"})])
    )
    assert shown[2:] == [
        ("c", None, {"id": 3, "v": "c"}),
        ("u", None, {"id": 1, "v": "x"}),
        ("d", {"id": 2, "v": None}, None),
        ("c", None, {"id": 20, "v": "b"}),
        ("d", {"id": 3, "v": None}, None),
        ("t", None, None),
        ("c", None, {"id": 1, "v": None}),
    ]
    assert [v["source"]["snapshot"] for v in found[:2]] in (["first", "last"], ["last", "first"])


async def test_a_large_transaction_cut_in_the_middle_is_published_once(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    config = make_config(database)
    async with capturing(config):
        pass
    rows = 60_000
    await run(database, f"INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, {rows}) g")
    partials = 0
    for _ in range(3):
        capture = Capture(config)
        capture.start()
        await capture.until(lambda c=capture: c.status.record.detail.get("flushes", 0) > 0)
        await capture.kill()
        partials += await _partial(config)
    async with capturing(config) as capture:
        await capture.caught_up()
    versions = [
        (v["source"]["commit_lsn"], v["source"]["ordinal"]) for v in values(await events(config, "t"))
    ]
    assert partials > 0, "no kill fell inside the transaction"
    assert len(set(versions)) == len(versions)
    assert [ordinal for _, ordinal in versions] == list(range(rows))


async def test_a_stop_publishes_what_is_in_hand_and_confirms_it(
    database: str, make_config: Callable[..., Config]
) -> None:
    """As SIGTERM does it: in the middle of a transaction, while nothing else would flush or confirm."""
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    config = make_config(database)
    rows = 5_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "LOOK_S", 60.0)
        patch.setattr(stream, "IDLE_FLUSH_S", 60.0)
        patch.setattr(stream, "FLUSH_BYTES", 2**40)
        patch.setattr(stream, "WAITING_LIMIT_BYTES", 50_000)  # the reader waits there for the stop
        patch.setattr(stream, "FEEDBACK_S", 60.0)
        patch.setattr(stream, "FEEDBACK_MIN_US", 2**60)
        async with capturing(config) as capture:
            await run(
                database,
                "INSERT INTO t VALUES (0, 'whole')",
                f"INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, {rows}) g",
            )
            await capture.until(lambda: capture.status.record.detail["waiting_bytes"] >= 50_000)
    detail = capture.status.record.detail
    assert 1 < detail["published"] < rows
    assert len(values(await events(config, "t"))) == detail["published"]
    assert await confirmed_lsn(config) == detail["lsn"]
    async with capturing(config) as capture:
        await capture.caught_up()
    assert [v["after"]["id"] for v in values(await events(config, "t"))] == list(range(rows + 1))


async def _partial(config: Config) -> int:
    publisher = make_publisher(config, config.kafka.brokers, "shop")
    await publisher.start()
    loaded = await publisher.load()
    await publisher.close()
    assert loaded.position is not None
    return loaded.position.partial is not None


async def test_an_idle_database_advances_by_heartbeats(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        before = capture.status.record.detail["lsn"] or 0
        await capture.until(lambda: (capture.status.record.detail["lsn"] or 0) > before)
        confirmed = await confirmed_lsn(config)
        await capture.until(lambda: capture.status.record.detail["lsn"] > confirmed)


async def test_h03_a_killed_first_copy_starts_again_as_a_reset(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT g, repeat('y', 200) FROM generate_series(1, 60000) g",
    )
    config = make_config(database)
    capture = Capture(config)
    capture.start()
    await capture.state("snapshot")
    first = capture.status.record.detail["epoch"]
    await capture.kill()
    await run(database, "DELETE FROM t WHERE id <= 30000")
    async with capturing(config) as capture:
        await capture.caught_up()
        assert capture.status.record.detail["epoch"] == first + 1
    second = [v for v in values(await events(config, "t")) if v["source"]["epoch"] == first + 1]
    assert len([v for v in second if v["op"] == "r"]) == 30000
    assert [v["source"]["epoch"] for v in values(await events(config, "t"), floors=True)] == [first + 1]


async def test_h08_the_copy_holds_every_table_from_before_the_slot(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE TABLE a (id int PRIMARY KEY, v text)",
        "CREATE TABLE z (id int PRIMARY KEY, v text)",
        "INSERT INTO a SELECT g, repeat('y', 200) FROM generate_series(1, 40000) g",
        "INSERT INTO z SELECT g, 'v' FROM generate_series(1, 1000) g",
    )
    config = make_config(database)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("SET lock_timeout = '50ms'")
        capture = Capture(config)
        capture.start()
        await capture.state("snapshot")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await connection.execute("TRUNCATE z")
    await capture.state("streaming")
    await capture.end()
    assert len([v for v in values(await events(config, "z")) if v["op"] == "r"]) == 1000


async def test_h22_identity_full_uses_the_primary_key(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "INSERT INTO t VALUES (1, 'a')", "UPDATE t SET v = 'b'", "UPDATE t SET id = 2")
        await capture.caught_up()
    found = await events(config, "t")
    assert {r.key for r in found} - {None} == {b'{"id":1}', b'{"id":2}'}
    assert [(v["op"], v["before"]) for v in values(found)] == [
        ("c", None),
        ("u", {"id": 1, "v": "a"}),
        ("d", {"id": 1, "v": "b"}),
        ("c", None),
    ]


async def test_h27_a_table_without_a_key_keeps_the_application_working(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE bag (v text)", "INSERT INTO bag VALUES ('old')")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "INSERT INTO bag VALUES ('a')", "UPDATE bag SET v = 'b' WHERE v = 'a'")
        await capture.caught_up()
        await capture.until(lambda: bool(capture.status.record.detail["findings"]))
        finding = capture.findings[0]
    async with capturing(config) as again:  # what was missed is not forgotten by a restart
        await again.until(lambda: again.findings == [finding])
    assert "public.bag had 1 UPDATEs or DELETEs that could not be captured" in finding
    assert 'ALTER TABLE "public"."bag" REPLICA IDENTITY FULL' in finding
    assert "in each target drop the table's copy, which was made without this key (DROP TABLE" in finding
    assert [(v["op"], v["after"]) for v in values(await events(config, "bag"))] == [
        ("r", {"v": "old"}),
        ("c", {"v": "a"}),
    ]


async def test_a_table_made_later_is_captured_from_its_first_row(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, "CREATE TABLE later (id int PRIMARY KEY)")
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:

            async def published() -> bool:
                cursor = await connection.execute(
                    "SELECT FROM pg_publication_tables WHERE tablename = 'later'"
                )
                return await cursor.fetchone() is not None

            await until(published)
        await run(database, "INSERT INTO later VALUES (1)")
        await capture.caught_up()
    assert [v["after"] for v in values(await events(config, "later"))] == [{"id": 1}]


async def test_h30_the_second_capture_is_a_standby_and_takes_over(
    database: str,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries, try_lock = [], source.try_lock

    async def tried(*given: Any) -> bool:
        tries.append(given)
        return await try_lock(*given)

    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    first, second = Capture(config), Capture(config)
    first.start()
    await first.state("streaming")
    monkeypatch.setattr(source, "try_lock", tried)
    second.start()
    await second.state("standby")
    await run(database, "INSERT INTO t VALUES (1)")
    await first.caught_up()
    await second.until(lambda: len(tries) > 2)
    assert sum("holds its lock" in record.message for record in caplog.records) == 1
    await first.kill()
    await second.state("streaming")
    await run(database, "INSERT INTO t VALUES (2)")
    await second.caught_up()
    await second.end()
    assert [v["after"] for v in values(await events(config, "t"))] == [{"id": 1}, {"id": 2}]


async def test_h30_a_capture_whose_lock_connection_is_lost_ends_its_session(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        key = lock_key(config.name)
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            query = sql.SQL(
                "SELECT pg_terminate_backend(pid) FROM pg_locks "
                "WHERE locktype = 'advisory' AND (classid::bigint << 32) + objid::bigint = {}"
            ).format(sql.Literal(key))
            cursor = await connection.execute(query)
            assert await cursor.fetchall() == [(True,)]
        await capture.state("waiting")
        await capture.state("streaming")
        await run(database, "INSERT INTO t VALUES (2)")
        await capture.caught_up()


async def test_schema_change_gives_a_schema_record_before_its_events(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(
            database,
            "INSERT INTO t VALUES (1)",
            "ALTER TABLE t ADD COLUMN price numeric(10,2)",
            "INSERT INTO t VALUES (2, 3.10)",
        )
        await capture.caught_up()
    found = values(await events(config, "t"))
    assert [v["after"] for v in found] == [{"id": 1}, {"id": 2, "price": "3.10"}]
    assert found[0]["source"]["schema_id"] != found[1]["source"]["schema_id"]
    publisher = make_publisher(config, config.kafka.brokers, "shop")
    await publisher.start()
    loaded = await publisher.load()
    await publisher.close()
    record = loaded.schemas[found[1]["source"]["schema_id"]]
    assert [(c.name, c.type, c.kind, c.key) for c in record.columns] == [
        ("id", "integer", "number", True),
        ("price", "numeric(10,2)", "numeric", False),
    ]


async def test_snapshot_and_stream_give_the_same_bytes(
    database: str, make_config: Callable[..., Config]
) -> None:
    columns = "id int PRIMARY KEY, b bytea, n numeric, ts timestamptz, j jsonb, a int[], t text, i interval"
    row = (
        r"""'\x00ff', 'NaN','2016-11-04 13:51:30.5+02', '{"a": [1]}', '{1,NULL}', E't\t\\ "q"', '1 year 3s'"""
    )
    await run(database, f"CREATE TABLE t ({columns})", f"INSERT INTO t VALUES (1, {row})")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(database, f"INSERT INTO t VALUES (2, {row})")
        await capture.caught_up()
    read, streamed = (v["after"] for v in values(await events(config, "t")))
    assert {**read, "id": 2} == streamed
    assert read["ts"] == "2016-11-04T11:51:30.5Z"
