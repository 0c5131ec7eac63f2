"""A target that loses what was written to it under apply, mostly while there is nothing to write."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psycopg
import pytest
from aiokafka import TopicPartition
from redis.asyncio import Redis

from consumers.apply.assemble import Prepared
from consumers.apply.writing import Writer
from consumers.commands.gates import decide_held
from consumers.commands.parked import opened
from streamer.binding import bind, binding_of, bound_to
from streamer.config import Config, SqlTarget, parse
from streamer.doctor.bound import bound_stores
from streamer.doctor.check import Findings
from streamer.doctor.sql import check_sql
from streamer.errors import FatalError
from streamer.sandbox import ValkeyServer
from tests.harness.capture import until
from tests.harness.feeder import Feeder, Running, Table, applying, config_of
from tests.harness.people import IDS, copied, drop, filled, make
from tests.harness.redis_target import redis_config_of
from tests.harness.tiers import corners


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


@pytest.fixture
async def store(valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    valkey_server.start()
    client = Redis.from_url(valkey_server.url, protocol=2, decode_responses=True)
    await client.flushall()
    yield client
    await client.flushall()
    await client.aclose()


async def keys_are(store: Redis, *ids: int) -> None:
    async def there() -> bool:
        found = [int(key.rpartition(":")[2]) async for key in store.scan_iter(match="mirror:people:*")]
        return sorted(found) == list(ids)

    await until(there)


def losses(run: Running) -> list[str]:
    return [text for text in run.status.record.detail.get("findings", []) if "has lost rows" in text]


async def said(run: Running) -> str:
    await run.until(lambda: bool(losses(run)), "the loss in status")
    (text,) = losses(run)
    return text


# Redis


async def test_an_emptied_redis_is_filled_while_no_change_comes(
    feeder: Feeder, store: Redis, valkey_server: ValkeyServer
) -> None:
    config = redis_config_of(feeder, valkey_server.url)
    table = await filled(feeder, *range(20))
    async with applying(config) as run:
        await keys_are(store, *range(20))
        await run.settled(feeder)
        assert losses(run) == []
        await store.flushall()
        await keys_are(store, *range(20))
        text = await said(run)
        for words in (
            "flow mirror:",
            f"{table.topic}[0] from offset ",
            " back to 0",
            "applied again from Kafka",
        ):
            assert words in text
        await run.settled(feeder)
        await run.stop()
    make(table, 20, lsn=200)
    await feeder.flush()
    async with applying(config):  # its group is the new store's
        await keys_are(store, *range(21))


async def test_h30_a_store_that_was_emptied_while_nothing_applied_is_adopted(
    feeder: Feeder, tmp_path: Path
) -> None:
    """It may as well be another one: a person has to say so, and not while a process of the group runs. What
    was deleted once is not held then; what is deleted now is."""
    file = tmp_path / "copy.db"
    config = lite_config(feeder, file, hold_deletes_above="90%")
    group = f"{config.name}.copy"

    async def adopt() -> None:
        async with opened(config, "copy") as target:
            await bind(feeder.brokers, None, group, target.id)

    async def is_bound() -> bool:
        return await bound_to(feeder.brokers, None, group) is not None

    async with lite(feeder, file, config) as (run, table):
        make(table, *range(10, 60), lsn=200)
        await feeder.flush()
        await rows_are(file, *range(60))
        for n in range(10, 60):
            drop(table, n, 210)
        await feeder.flush()
        await rows_are(file, *range(10))
        await run.settled(feeder)
        await until(is_bound)
        with pytest.raises(FatalError, match="still runs"):
            await adopt()
        await run.stop()
    for left in (file, file.with_name("copy.db-wal"), file.with_name("copy.db-shm")):
        left.unlink(missing_ok=True)
    async with applying(config) as run:
        refused = str(await run.fails())
    assert f"the consumer group '{group}' belongs to another target than this store" in refused
    assert "`tailrace adopt copy`" in refused
    bound = await bound_stores(config, config.targets)
    findings = Findings("target copy")
    settings = config.targets["copy"]
    assert isinstance(settings, SqlTarget)
    await check_sql(findings, config, settings, {}, bound["copy"])
    (found,) = [check for check in findings.checks if check.check == "identity"]
    assert (found.ok, "`tailrace adopt copy`" in found.fix) == (False, True), "the doctor says it, too"
    await adopt()
    strict = lite_config(feeder, file, hold_deletes_above="10%")
    async with applying(strict) as run:
        await said(run)
        await rows_are(file, *range(10))
        await run.settled(feeder)
        assert run.flow()["held"] == []
        for n in range(10):
            drop(table, n, 300)
        await feeder.flush()
        await run.until(lambda: run.flow()["state"] == "held", "held")
        assert "10 of 10 rows" in run.flow()["reason"]
        await run.stop()


@pytest.mark.thorough
async def test_a_process_that_starts_on_the_way_knows_what_comes_again(
    feeder: Feeder, store: Redis, valkey_server: ValkeyServer
) -> None:
    """The store is emptied under one process; the truncate that it comes to passes when another applies."""
    table = await filled(feeder, *range(100), partitions=1)
    table.truncate(110)
    make(table, *range(100), lsn=120)
    await feeder.flush()
    for n in range(50, 100):
        drop(table, n, 200)
    await feeder.flush()
    async with applying(redis_config_of(feeder, valkey_server.url)) as run:
        await keys_are(store, *range(50))
        await run.stop()
    gates = {"mirror": {"hold_deletes_above": "10%", "truncate": "hold"}}
    gated = redis_config_of(feeder, valkey_server.url, gates)
    group = f"{gated.name}.copy"

    async def is_kept() -> bool:
        again = (await binding_of(feeder.brokers, None, group)).again
        return again.get(TopicPartition(table.topic, 0), 0) >= feeder.ends[table.topic, 0]

    async with applying(gated) as run:
        await run.settled(feeder)
        await store.flushall()
        await run.until(lambda: run.flow()["state"] == "held", "held")
        await until(is_kept)
        await run.stop()
    async with applying(gated) as run:
        await run.until(lambda: run.flow().get("state") == "held", "held")
        (gate,) = await decide_held(gated, "mirror", "approved")
        assert gate.kind == "truncate"
        await keys_are(store, *range(50))
        await run.settled(feeder)
        assert run.flow()["held"] == []

        async def is_forgotten() -> bool:
            return (await binding_of(feeder.brokers, None, group)).again == {}

        make(table, 0, lsn=300)
        await feeder.flush()
        await until(is_forgotten)


async def test_what_was_deleted_once_passes_the_gate_again_and_no_other_delete_does(
    feeder: Feeder, store: Redis, valkey_server: ValkeyServer
) -> None:
    table = await filled(feeder, *range(100))
    async with applying(redis_config_of(feeder, valkey_server.url)) as run:
        await keys_are(store, *range(100))
        for n in range(50, 100):
            drop(table, n, 200)
        await feeder.flush()
        await keys_are(store, *range(50))
        await run.stop()
    gated = redis_config_of(feeder, valkey_server.url, {"mirror": {"hold_deletes_above": "10%"}})
    async with applying(gated) as run:
        await run.settled(feeder)
        await store.flushall()
        await said(run)
        await keys_are(store, *range(50))
        await run.settled(feeder)
        assert run.flow()["held"] == []
        for n in range(20):
            drop(table, n, 300)
        await feeder.flush()
        await run.until(lambda: run.flow()["state"] == "held", "held")
        assert "20 of 50 rows" in run.flow()["reason"]
        await keys_are(store, *range(50))


async def test_what_the_log_has_no_more_is_an_error_with_its_cure(
    feeder: Feeder, store: Redis, valkey_server: ValkeyServer
) -> None:
    table = await filled(feeder, *range(20))
    async with applying(redis_config_of(feeder, valkey_server.url)) as run:
        await run.settled(feeder)
        await feeder.delete_records(table.topic, {0: 3, 1: 3})
        await store.flushall()
        error = str(await run.fails())
    assert "Kafka's retention has removed 3 offsets that flow 'mirror' has not applied" in error
    assert f"`tailrace reset {feeder.source} --yes`" in error


@pytest.mark.thorough
async def test_a_redis_that_is_away_is_said_while_no_change_comes(
    feeder: Feeder, tmp_path: Path, redis_program: Path | None
) -> None:
    """Started again without its data, it is filled."""
    settings = {"appendonly": "no"}
    with ValkeyServer(tmp_path / "valkey", program=redis_program, settings=settings) as server:
        await filled(feeder, 1, 2)
        async with applying(redis_config_of(feeder, server.url)) as run:
            await run.settled(feeder)
            server.kill()
            await run.until(lambda: run.status.record.state == "waiting", "waiting")
            server.start()
            await said(run)
            client = Redis.from_url(server.url, protocol=2, decode_responses=True)
            await keys_are(client, 1, 2)
            await client.aclose()
            await run.until(lambda: run.status.record.state == "streaming", "streaming")


# SQLite


def lite_config(feeder: Feeder, file: Path, *, hold_deletes_above: str = "") -> Config:
    text = f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
targets: {{copy: {{kind: sql, url: "sqlite:///{file}"}}}}
flows:
  mirror: {{from: "{feeder.source}.public.*", to: copy, hold_deletes_above: "{hold_deletes_above}"}}
"""
    return parse(text, file.with_name("tailrace.yaml"), environ={})


def ids_in(file: Path) -> list[int]:
    """Nothing is made by looking."""
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return [n for (n,) in connection.execute("SELECT id FROM people ORDER BY id")]
        except sqlite3.OperationalError:  # not made yet
            return []


async def rows_are(file: Path, *ids: int) -> None:
    async def there() -> bool:
        return ids_in(file) == list(ids)

    await until(there)


def is_sound(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@asynccontextmanager
async def lite(
    feeder: Feeder, file: Path, config: Config | None = None
) -> AsyncIterator[tuple[Running, Table]]:
    """With rows 0 to 9."""
    table = await filled(feeder, *range(10))
    async with applying(config or lite_config(feeder, file)) as run:
        await rows_are(file, *range(10))
        await run.settled(feeder)
        yield run, table


def rename(file: Path) -> None:
    file.rename(file.with_name("away.db"))


def rename_all(file: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        file.with_name(file.name + ending).rename(file.with_name(f"away.db{ending}"))


def delete(file: Path) -> None:
    file.unlink()


def replace_by_nothing(file: Path) -> None:
    other = file.with_name("other.db")
    other.touch()
    os.replace(other, file)


WAYS = [rename, rename_all, delete, replace_by_nothing]


@pytest.mark.parametrize("goes", corners(WAYS, rename))
async def test_a_file_that_is_gone_is_noticed_while_no_change_comes(
    feeder: Feeder, tmp_path: Path, goes: Callable[[Path], None]
) -> None:
    file = tmp_path / "copy.db"
    async with lite(feeder, file) as (run, table):
        goes(file)
        await rows_are(file, *range(10))
        assert f"{table.topic}[0] from offset " in await said(run)
        make(table, 10, lsn=200)
        await feeder.flush()
        await rows_are(file, *range(11))
        await run.stop()
    assert is_sound(file)
    if (away := tmp_path / "away.db").exists():
        assert is_sound(away)


async def test_a_batch_goes_into_the_file_that_is_there(feeder: Feeder, tmp_path: Path) -> None:
    """A change right behind the deed: no row of it is written into what was moved away."""
    file, away = tmp_path / "copy.db", tmp_path / "away.db"
    async with lite(feeder, file) as (run, table):
        rename_all(file)
        make(table, 10, lsn=200)
        await feeder.flush()
        await rows_are(file, *range(11))
        await run.settled(feeder)
        assert ids_in(away) == list(range(10))


@pytest.mark.thorough
async def test_a_backup_in_the_place_of_the_file_goes_on_from_its_own_checkpoint(
    feeder: Feeder, tmp_path: Path
) -> None:
    """The log of the file that was there is beside it still, and is no log of the backup."""
    file, backup = tmp_path / "copy.db", tmp_path / "backup.db"
    async with lite(feeder, file) as (run, table):
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(backup)) as new:
            old.backup(new)
        make(table, *range(10, 30), lsn=200)
        await feeder.flush()
        await rows_are(file, *range(30))
        await run.settled(feeder)
        assert file.with_name("copy.db-wal").stat().st_size > 0
        shutil.copy(backup, tmp_path / "restored.db")
        os.replace(tmp_path / "restored.db", file)
        text = await said(run)
        assert f"{table.topic}[0] from offset " in text
        assert " back to 0" not in text
        await rows_are(file, *range(30))
        await run.settled(feeder)
        await run.stop()
    assert is_sound(file)


@pytest.mark.thorough
async def test_two_processes_leave_a_file_that_is_gone(feeder: Feeder, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    async with lite(feeder, file) as (one, table), applying(lite_config(feeder, file)) as two:
        await two.settled(feeder)
        for round_ in range(3):
            rename(file)
            make(table, 10 + round_, lsn=200 + round_)
            await feeder.flush()
            await rows_are(file, *range(11 + round_))
            await one.settled(feeder)
            await two.settled(feeder)
        assert (await said(one), await said(two)) != ("", "")
        await one.stop()
        await two.stop()
    assert is_sound(file)


@pytest.mark.thorough
async def test_a_file_of_another_group_is_said_and_not_written(feeder: Feeder, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    async with lite(feeder, file) as (run, table):
        other = tmp_path / "other.db"
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(other)) as new:
            old.backup(new)
            new.execute("UPDATE _tailrace_identity SET consumer_group = 'others', made_in = ''")
            new.commit()
        os.replace(other, file)
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        assert "belongs to the consumer group 'others'" in run.status.record.reason
        make(table, 10, lsn=200)
        await feeder.flush()
        assert "belongs to the consumer group 'others'" in str(await run.fails())
    assert ids_in(file) == list(range(10))


# Postgres


DEEDS = [
    "DROP SCHEMA mirror CASCADE; DROP SCHEMA _tailrace CASCADE",
    "DELETE FROM mirror.people; UPDATE _tailrace.checkpoints SET next_offset = 0",
]


@pytest.mark.parametrize("deed", corners(DEEDS, DEEDS[0]))
async def test_a_database_that_went_back_is_filled_while_no_change_comes(
    feeder: Feeder, target_database: str, deed: str
) -> None:
    await filled(feeder, *range(10))
    async with applying(config_of(feeder, target_database)) as run:
        rows = [(n,) for n in range(10)]
        await run.rows(target_database, IDS, rows)
        await run.settled(feeder)
        async with await psycopg.AsyncConnection.connect(target_database) as connection:
            await connection.execute(deed)
        await run.rows(target_database, IDS, rows)
        assert " back to 0" in await said(run)
        await run.settled(feeder)


async def test_h30_what_a_killed_process_commits_late_is_no_loss(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last transaction is open while the next process reads the checkpoint and follows on that, twice."""
    table = await filled(feeder, *range(10), partitions=1)
    await copied(feeder, target_database, *range(10))
    make(table, *range(10, 60), lsn=200)
    await feeder.flush()
    handed = asyncio.Event()
    batches = 0
    put = Writer.put

    async def counted(writer: Writer, prepared: Prepared) -> None:
        nonlocal batches
        await put(writer, prepared)
        batches += bool(prepared.records)
        if batches == 2:  # one is in the target, and one behind it
            handed.set()

    monkeypatch.setattr(Writer, "put", counted)
    small = config_of(feeder, target_database, batch="{rows: 10}")
    async with await psycopg.AsyncConnection.connect(target_database) as killed:
        await killed.execute("SELECT FROM _tailrace.checkpoints FOR UPDATE")
        async with applying(small) as run:
            async with asyncio.timeout(60):
                await handed.wait()
            await killed.execute(
                "INSERT INTO mirror.people SELECT 10, name, note, _tailrace_epoch, _tailrace_lsn + 100,"
                " _tailrace_ordinal FROM mirror.people WHERE id = 9"
            )
            await killed.execute("UPDATE _tailrace.checkpoints SET next_offset = next_offset + 1")
            await killed.commit()
            await run.rows(target_database, IDS, [(n,) for n in range(60)])
            await run.settled(feeder)
            assert losses(run) == []
