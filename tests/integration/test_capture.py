"""Capture on real servers: what it publishes, what it confirms, and when it must stop."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord
from psycopg import sql

from streamer.changes.lsn import parse_lsn
from streamer.changes.position import Stage
from streamer.config import Config, load
from streamer.errors import ConfigError, FatalError, PositionError
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.postgres import stream
from streamer.postgres.slot import lock_key
from streamer.runner import make_publisher, reset_source, run_capture
from streamer.sandbox import PostgresServer
from streamer.status import StatusWriter

WAIT_S = 30.0
PARTITIONS = 2

pytestmark = pytest.mark.asyncio


class Capture:
    """A capture of `shop` in this process."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stop = asyncio.Event()
        self.status = StatusWriter(
            config.kafka.brokers, config.kafka.security, config.name, kind="capture", part_name="shop"
        )
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        brokers = self.config.kafka.brokers
        work = run_capture(self.config, "shop", brokers=brokers, stop=self.stop, status=self.status)
        self.task = asyncio.create_task(work)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for a state; the capture's own error, if it ends with one, is raised."""
        assert self.task is not None
        async with asyncio.timeout(WAIT_S):
            while not reached():
                if self.task.done():
                    await self.task
                    raise AssertionError("the capture ended before the state was reached")
                await asyncio.sleep(0.02)

    async def state(self, state: str) -> None:
        await self.until(lambda: self.status.record.state == state)

    async def position_at(self, lsn: int) -> None:
        await self.until(lambda: (self.status.record.detail.get("lsn") or 0) >= lsn)

    async def caught_up(self) -> None:
        await self.position_at(await current_lsn(self.config.sources["shop"].url.get_secret_value()))

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            async with asyncio.timeout(WAIT_S):
                await self.task

    async def kill(self) -> None:
        """As kill -9 does it: nothing is flushed or confirmed. (Its sockets close.)"""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])


@asynccontextmanager
async def capturing(config: Config) -> AsyncIterator[Capture]:
    capture = Capture(config)
    capture.start()
    try:
        await capture.state("streaming")
        yield capture
    finally:
        await capture.end()


async def fails(config: Config) -> Exception:
    capture = Capture(config)
    capture.start()
    assert capture.task is not None
    async with asyncio.timeout(WAIT_S):
        with pytest.raises((ConfigError, FatalError)) as caught:
            await capture.task
    assert capture.status.record.state == "error"
    return caught.value


@pytest.fixture
def make_config(tmp_path: Path, kafka: str, kafka_name: str) -> Callable[..., Config]:
    def make(url: str, **source: Any) -> Config:
        entry = {
            "kind": "postgres",
            "url": url,
            "tables": {"public.*": {}},
            "slot": {"name": kafka_name},
            "publication": {"name": kafka_name},
            "heartbeat": "1s",
        }
        path = tmp_path / "tailrace.yaml"
        document = {
            "name": kafka_name,
            "kafka": {"brokers": kafka, "topics": {"partitions": PARTITIONS}},
            "sources": {"shop": {**entry, **source}},
        }
        path.write_bytes(orjson.dumps(document))
        return load(path)

    return make


async def current_lsn(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute("SELECT pg_current_wal_lsn()::text")).fetchone()
    assert row is not None
    return parse_lsn(row[0])


async def run(url: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement)


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await reached():  # noqa: ASYNC110  a server's state, which tells nobody when it changes
            await asyncio.sleep(0.05)


async def events(config: Config, table: str) -> list[ConsumerRecord[bytes, bytes]]:
    """The committed records of a table's topic."""
    topic = f"shop.public.{table}"
    places = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    ranges = await offset_ranges(config.kafka.brokers, None, places)
    return await read_to_end(config.kafka.brokers, None, ranges, committed=True)


def values(records: list[ConsumerRecord[bytes, bytes]]) -> list[dict[str, Any]]:
    found = [orjson.loads(r.value) for r in records if r.value is not None]
    return sorted(
        found, key=lambda v: (v["source"]["epoch"], v["source"]["commit_lsn"], v["source"]["ordinal"])
    )


@pytest.fixture(autouse=True)
async def clean_topics(kafka: str) -> AsyncIterator[None]:
    """Data topics are named by the source, which is `shop` in every test here."""
    yield
    async with admin(kafka, None) as client:

        async def gone() -> bool:
            return not [t for t in await client.list_topics() if t.startswith("shop.")]

        if not await gone():
            await client.delete_topics([t for t in await client.list_topics() if t.startswith("shop.")])
        await until(gone)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds between looks at the catalogue are long for a test."""
    monkeypatch.setattr(stream, "INSPECT_S", 0.3)


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
    rows = 120_000
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
        confirmed = await _confirmed(config)
        await capture.until(lambda: capture.status.record.detail["lsn"] > confirmed)


async def _confirmed(config: Config) -> int:
    source = config.sources["shop"]
    async with await psycopg.AsyncConnection.connect(source.url.get_secret_value()) as connection:
        cursor = await connection.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
            (source.slot.name,),
        )
        row = await cursor.fetchone()
    assert row is not None
    return parse_lsn(row[0])


async def test_h04_what_is_confirmed_is_in_the_positions_topic(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        for n in range(20):
            await run(database, f"INSERT INTO t VALUES ({n})")
        await capture.caught_up()
    confirmed = await _confirmed(config)
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
    async with capturing(config):
        pass
    await run(
        database,
        f"SELECT pg_drop_replication_slot('{config.name}')",
        "DELETE FROM t WHERE id = 2",
        f"SELECT pg_create_logical_replication_slot('{config.name}', 'pgoutput')",
    )
    error = await fails(config)
    assert isinstance(error, PositionError)
    assert "was moved or made again" in str(error)
    assert await reset_source(config, "shop", brokers=config.kafka.brokers) == 2
    async with capturing(config) as capture:
        await capture.caught_up()
    second = [v for v in values(await events(config, "t")) if v["source"]["epoch"] == 2]
    assert [v["after"] for v in second if v["op"] == "r"] == [{"id": 1}]
    floors = [v for v in second if v["op"] == "m"]
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
        server.stop()
        copy = tmp_path / "copy"
        shutil.copytree(server.data, copy, symlinks=True)
        server.start()
        async with capturing(config) as capture:
            await run(server.url, "INSERT INTO t VALUES (1)")
            await capture.caught_up()
        server.stop()
        for entry in server.data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(copy, server.data, symlinks=True, dirs_exist_ok=True)
        _same_owner(server.data)
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


def _same_owner(folder: Path) -> None:
    """Copied files belong to whoever ran the copy; the server wants its own user."""
    owner = folder.stat()
    for path in folder.rglob("*"):
        shutil.chown(path, owner.st_uid, owner.st_gid)


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
    await capture.kill()
    await run(database, "DELETE FROM t WHERE id <= 30000")
    async with capturing(config) as capture:
        await capture.caught_up()
        assert capture.status.record.detail["epoch"] == 2
    second = [v for v in values(await events(config, "t")) if v["source"]["epoch"] == 2]
    assert len([v for v in second if v["op"] == "r"]) == 30000
    assert len([v for v in second if v["op"] == "m"]) == 1


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
    capture = Capture(config)
    capture.start()
    await capture.state("snapshot")
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await connection.execute("TRUNCATE z")
    await capture.state("streaming")
    await capture.end()
    assert len([v for v in values(await events(config, "z")) if v["op"] == "r"]) == 1000


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
    await reset_source(config, "shop", brokers=config.kafka.brokers)
    async with capturing(config) as capture:
        await capture.caught_up()
    keys = {
        r.key
        for r in await events(config, "t")
        if r.value and b'"epoch":2' in r.value and b'"op":"r"' in r.value
    }
    assert keys == {b'{"other":1}', b'{"other":2}'}


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
    assert {r.key for r in found} == {b'{"id":1}', b'{"id":2}'}
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
        finding = capture.status.record.detail["findings"][0]
    assert "public.bag had 1 UPDATEs or DELETEs that could not be captured" in finding
    assert "ALTER TABLE public.bag REPLICA IDENTITY FULL" in finding
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
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY)")
    config = make_config(database)
    first, second = Capture(config), Capture(config)
    first.start()
    await first.state("streaming")
    second.start()
    await second.state("standby")
    await run(database, "INSERT INTO t VALUES (1)")
    await first.caught_up()
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
        assert "REPLICATION" in str(error)
        wrong = await fails(make_config(url.replace("geheim-", "falsch-")))
        assert "password authentication failed" in str(wrong)
        assert "falsch" not in str(wrong)
    finally:
        await run(database, f"DROP ROLE r_{name}")


async def test_a_named_table_that_is_missing(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, "CREATE TABLE orders (id int PRIMARY KEY)")
    error = await fails(make_config(database, tables={"public.order": {}}))
    assert "table public.order is named in `tables:`" in str(error)
    assert "did you mean public.orders?" in str(error)
