"""The Redis target behind the real apply loop, over faults of the server and deaths of the process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from consumers.apply.queues import Key, take_out
from consumers.targets.base import FlowError, RowsRefused
from consumers.targets.redis_layout import Names, packed
from consumers.targets.redis_one import STEP_ROWS
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import RedisTarget
from streamer.doctor.check import Check, Findings, Level
from streamer.doctor.redis_target import check_redis_target
from streamer.errors import ConfigError, TailraceError, TargetUnavailable
from streamer.sandbox import ValkeyServer
from tests.harness.feeder import applying
from tests.harness.redis_target import FLOWS, Stage, redis_config_of, redis_config_text, source_of, stage
from tests.harness.tiers import corners

WAIT_S = 60.0


@asynccontextmanager
async def redis_at(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url, protocol=2, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@pytest.fixture
async def store(valkey_server: ValkeyServer) -> AsyncIterator[str]:
    """URL of an empty server of the session's."""
    valkey_server.start()
    for step in range(2):
        async with redis_at(valkey_server.url) as client:
            await client.flushall()
        if not step:
            yield valkey_server.url


async def test_every_layout_ends_equal(kafka: str, kafka_name: str, store: str) -> None:
    async with (
        source_of(kafka, kafka_name, 1) as (feeder, source),
        redis_at(store) as client,
        applying(redis_config_of(feeder, store, FLOWS)) as run,
    ):
        for step in range(40):
            for _ in range(20):
                source.change()
            if step == 25:
                source.truncate()
            await feeder.flush()
        await run.settled(feeder)
        await until(lambda: source.is_in(client), "equal")


ROUND_S = 60.0  # starting a process is the most of it, which a busy machine may take long over
CHANGES_A_ROUND = 3_000  # more would only make the last process's work longer, the later the others start
LOOK_S = 0.02


@pytest.mark.thorough
async def test_kill_9_of_apply_in_rounds(kafka: str, kafka_name: str, store: str, tmp_path: Path) -> None:
    """Wherever it dies, the next one goes on from what the target holds."""
    async with source_of(kafka, kafka_name, 2) as (feeder, source), redis_at(store) as client:
        config = tmp_path / "tailrace.yaml"
        config.write_text(redis_config_text(feeder, store, FLOWS))
        for _ in range(4):
            moved = await passed(client)  # by the one before, up to its end
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "consumers", "apply", "copy", "-c", str(config),
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            fed = 0
            try:
                async with asyncio.timeout(ROUND_S):
                    while await passed(client) <= moved:
                        if fed < CHANGES_A_ROUND:
                            for _ in range(10):
                                source.change()
                            fed += 10
                            await feeder.flush()
                        else:
                            await asyncio.sleep(LOOK_S)
                        assert process.returncode is None
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        async with applying(redis_config_of(feeder, store, FLOWS)) as run:
            await run.settled(feeder)
            await until(lambda: source.is_in(client), "equal")


async def passed(client: Redis) -> int:
    return sum(int(stand.split(" ", 1)[0]) for stand in await client.hvals("_tailrace:checkpoints"))


@pytest.mark.parametrize("loses", corners(["nothing", "everything"], "nothing"))
async def test_the_server_is_killed_and_started_again(
    kafka: str, kafka_name: str, tmp_path: Path, redis_program: Path | None, loses: str
) -> None:
    """Without its data the checkpoints are gone with the rows, and everything is applied again."""
    settings = {} if loses == "nothing" else {"appendonly": "no"}
    with ValkeyServer(tmp_path / "valkey", program=redis_program, settings=settings) as server:
        async with (
            source_of(kafka, kafka_name, 3) as (feeder, source),
            applying(redis_config_of(feeder, server.url, FLOWS)) as run,
        ):
            for _ in range(300):
                source.change()
            await feeder.flush()
            async with redis_at(server.url) as client:
                await until(lambda: source.is_in(client), "equal")
            server.kill()
            for _ in range(100):
                source.change()
            await feeder.flush()
            await run.until(lambda: run.status.record.state == "waiting", "waiting")
            server.start()
            async with redis_at(server.url) as client:
                await until(lambda: source.is_in(client), "equal")
            await run.until(lambda: run.status.record.state == "streaming", "streaming")


PEOPLE = {
    "id": "bigint",
    "name": "text",
    "amount": "numeric",
    "paid": "boolean",
    "doc": "jsonb",
    "big": "bigint",
}


def person(number: int, **values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(PEOPLE), "id": number, **values}


async def test_the_text_of_each_kind_in_a_hash(store: str) -> None:
    async with stage(store, key="user:{id}") as s, redis_at(store) as client:
        table = s.log.table(
            "people", {**PEOPLE, "ratio": "double precision", "tags": ("text[]", "array:text")}
        )
        row = person(1, name="Zoë", amount="1.50", paid=True, doc='{"a": 1}', big=2**63 - 1)
        table.create({**row, "ratio": 1.5, "tags": ["a", None]})
        await s.apply()
        assert await client.hgetall("user:1") == {
            "id": "1",
            "name": "Zoë",
            "amount": "1.50",
            "paid": "true",
            "doc": '{"a": 1}',
            "big": "9223372036854775807",
            "ratio": "1.5",
            "tags": '["a",null]',
        }


async def test_a_patch_of_json_keeps_every_digit_and_every_byte(store: str) -> None:
    """Lua's numbers are doubles and its JSON is not ours: the text that is there is not read as values."""
    text = 'q" \\ \n ] } é 🐟 , "x":1'
    async with stage(store, **{"as": "json", "key": "user:{id}"}) as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        table.create(person(1, name=text, amount="0.10", big=2**63 - 1, doc='{"a": [1, "]"]}'))
        await s.apply()
        table.update(person(1, name="new", amount="0.20", big=-(2**63), doc=UNAVAILABLE))
        await s.apply()
        wanted = person(1, name="new", amount="0.20", big=-(2**63), doc='{"a": [1, "]"]}')
        assert json.loads(str(await client.get("user:1"))) == wanted
        table.update({**wanted, "name": UNAVAILABLE, "big": UNAVAILABLE, "doc": text})
        await s.apply()
        assert json.loads(str(await client.get("user:1"))) == {**wanted, "doc": text}
        await client.set("user:1", '{"id": 1, "name"')  # by somebody who writes what is no JSON
        table.update({**wanted, "name": UNAVAILABLE})
        assert (await s.apply()).rereads == {"people": 1}


async def test_members_move_between_zsets_and_leave_them(store: str) -> None:
    flow = {"as": "zset", "key": "board:{period}", "member": "user:{id}", "score": "points"}
    async with stage(store, **flow) as s, redis_at(store) as client:
        columns = {"period": "text", "id": "integer", "points": "double precision"}
        table = s.log.table("people", columns, key=("period", "id"))

        def row(period: str, number: int, points: float | None) -> dict[str, Any]:
            return {"period": period, "id": number, "points": points}

        for period in ("day", "week"):
            for number in range(3):
                table.create(row(period, number, number + 0.5))
        await s.apply()
        scores = dict(await client.zrange("board:day", 0, -1, withscores=True))
        assert scores == {"user:0": 0.5, "user:1": 1.5, "user:2": 2.5}
        table.update(row("day", 0, 9))
        table.update(row("day", 1, None))
        table.delete(row("day", 2, None))
        table.delete(row("week", 0, None))
        table.create(row("month", 0, 1))
        await s.apply()
        boards = {name: await client.zrange(f"board:{name}", 0, -1) for name in ("day", "week", "month")}
        assert boards == {"day": ["user:0"], "week": ["user:1", "user:2"], "month": ["user:0"]}
        assert await s.target.count_rows("people", "mirror", "people") == 5
        table.update(row("day", 1, 3))
        table.create(row("day", 7, "NaN"))  # type: ignore[arg-type]
        with pytest.raises(RowsRefused) as caught:
            await s.apply()
        assert caught.value.rows[0].code == "bad_score"
        assert await client.zscore("board:day", "user:1") is None
        await without_refused(s)
        assert await client.zscore("board:day", "user:1") == 3
        table.truncate()
        await s.apply()
        assert [key async for key in client.scan_iter(match="board:*")] == []


async def without_refused(s: Stage) -> None:
    """The rest of the log, as it goes when the refused rows are parked."""
    batch = await s.batch()
    with pytest.raises(RowsRefused) as caught:
        await s.target.apply(batch)
    for row in caught.value.rows:
        assert row.key is not None
        del batch.tables[0].folds[0].rows[row.key]
    await s.target.apply(batch)


async def test_keys_expire_after_the_last_write_and_their_versions_later(store: str) -> None:
    async with stage(store, key="user:{id}", ttl="1h") as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        table.create(person(1, name="a"))
        table.create(person(2, name="a"))
        await s.apply()
        assert 3500 < await client.ttl("user:1") <= 3600
        assert await client.persist("user:1")
        table.update(person(1, name="b"))
        await s.apply()
        assert 3500 < await client.ttl("user:1") <= 3600
        await client.delete("user:2")  # as its expiry would
        (gone,) = [key async for key in client.scan_iter(match="_tailrace:gone:*")]
        await client.zadd(gone, {"2": 1, "1": 2})
        assert await s.target.count_rows("people", "mirror", "people") == 0
        await s.target.sweep(60)
        (rows,) = [key async for key in client.scan_iter(match="_tailrace:rows:*")]
        assert await client.hkeys(rows) == ["1"], "a row that is there keeps its version"


async def test_a_large_truncate_goes_in_steps(store: str) -> None:
    async with stage(store) as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        count = STEP_ROWS * 10
        for number in range(count):
            table.create(person(number), 100, number)
        await s.apply()
        assert await s.target.count_rows("people", "mirror", "people") == count
        await client.config_resetstat()
        table.truncate(200)
        table.create(person(1), 300)
        await s.apply()
        assert [key async for key in client.scan_iter(match="mirror:*", count=1000)] == ["mirror:people:1"]
        stats: Any = await client.info("commandstats")
        assert stats["cmdstat_hscan"]["calls"] >= count / (3 * STEP_ROWS)
        assert await s.target.count_rows("people", "mirror", "people") == 1


async def test_a_truncate_that_died_on_the_way_is_ended_by_the_next_process(store: str) -> None:
    async with stage(store) as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        for number in range(STEP_ROWS):
            table.create(person(number), 100, number)
        await s.apply()
        floor = Names("people", "mirror", "people").name
        await client.hset("_tailrace:floors", floor, packed((1, 200, 0)))  # type: ignore[arg-type]
        assert await s.target.count_rows("people", "mirror", "people") == STEP_ROWS
        table.truncate(200)
        await s.apply()
        assert [key async for key in client.scan_iter(match="mirror:*")] == []


async def test_a_database_that_was_emptied_is_filled_again(store: str) -> None:
    """Under an open session: what it was about to write is refused, and it begins at the start."""
    async with stage(store) as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        table.create(person(1))
        await s.apply()
        table.create(person(2))
        batch = await s.batch()
        before = s.target.id
        await client.flushall()
        assert (await s.target.apply(batch)).lost == [move.place for move in batch.moves]
        assert await client.dbsize() == 0
        await s.apply()
        assert await client.exists("mirror:people:1", "mirror:people:2") == 2
        assert s.target.id not in ("", before)


async def test_a_key_of_another_type_is_left_alone(store: str) -> None:
    async with stage(store, key="user:{id}") as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        await client.rpush("user:1", "theirs")
        await client.rpush("user:2", "theirs")
        table.delete(person(1))
        table.create(person(2))
        table.create(person(3))
        with pytest.raises(RowsRefused) as caught:
            await s.apply()
        (refused,) = caught.value.rows
        assert (refused.code, "'user:2'" in refused.message, "(list)" in refused.message) == (
            "wrong_type",
            True,
            True,
        )
        assert not await client.exists("user:3")
        await client.delete("user:2")
        await s.apply()
        assert await client.lrange("user:1", 0, -1) == ["theirs"]
        assert await client.exists("user:2", "user:3") == 2


async def test_what_was_prepared_goes_without_the_rows_that_were_taken_out(store: str) -> None:
    async with stage(store) as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        for number in range(3):
            table.create(person(number, name="a"))
        batch = await s.batch()
        await s.target.prepare(batch)
        await client.rpush("mirror:people:1", "theirs")
        with pytest.raises(RowsRefused) as caught:
            await s.target.apply(batch)
        (refused,) = caught.value.rows
        assert take_out(batch, Key(refused.place, refused.key or b"")) is not None
        await s.target.apply(batch)
        assert await client.lrange("mirror:people:1", 0, -1) == ["theirs"]
        assert await client.exists("mirror:people:0", "mirror:people:2") == 2


@pytest.mark.parametrize("first", ["older", "newer"])
@pytest.mark.parametrize("layout", ["hash", "json", "zset", "set"])
async def test_a_row_in_two_partitions_of_a_batch_ends_as_its_newest(
    store: str, layout: str, first: str
) -> None:
    """As after a topic got more partitions: what one group has written is seen by the next one."""
    member = {"member": "id"} if layout in ("zset", "set") else {}
    score = {"score": "big"} if layout == "zset" else {}
    async with stage(store, **{"as": layout}, **member, **score) as s, redis_at(store) as client:
        table = s.log.table("people", PEOPLE)
        for lsn, partition in ((200, 1), (300, 2)) if first == "older" else ((200, 2), (300, 1)):
            for number in range(20):
                if lsn == 300 and number % 2:
                    home = table.delete(person(number), lsn)
                    s.log.records[home].pop()  # the tombstone
                else:
                    home = table.create(person(number, big=lsn), lsn)
                record = s.log.records[home].pop()
                s.log.append(home.topic, record.key, record.value, partition=partition)
        del s.log.records[home]
        batch = await s.batch()
        assert [fold.partition for changes in batch.tables for fold in changes.folds] == [1, 2]
        await s.target.apply(batch)
        left = {str(number) for number in range(0, 20, 2)}
        if layout == "zset":
            assert dict(await client.zrange("mirror:people", 0, -1, withscores=True)) == dict.fromkeys(
                left, 300
            )
        elif layout == "set":
            assert await client.smembers("mirror:people") == left
        else:
            found = {key.rpartition(":")[2]: key async for key in client.scan_iter(match="mirror:people:*")}
            assert found.keys() == left
            for key in found.values():
                big = (
                    await client.hget(key, "big")
                    if layout == "hash"
                    else json.loads(await client.get(key))["big"]
                )
                assert int(big) == 300
        assert await s.target.count_rows("people", "mirror", "people") == len(left)


async def test_a_row_of_thousands_of_columns(store: str) -> None:
    """More than one call of a script takes."""
    names = [f"c{number}" for number in range(2500)]
    async with stage(store) as s, redis_at(store) as client:
        table = s.log.table("people", {"id": "integer", **dict.fromkeys(names, "text")})
        wide = dict.fromkeys(names, "x")
        for number, row in enumerate((wide, dict.fromkeys(names), {**wide, "c0": "y"})):
            table.create({"id": number, **row})
        await s.apply()
        assert [await client.hlen(f"mirror:people:{number}") for number in range(3)] == [2501, 1, 2501]
        assert await client.hmget("mirror:people:2", "id", "c0", "c2499") == ["2", "y", "x"]
        table.update({"id": 0, **dict.fromkeys(names), "c2499": "z"})
        await s.apply()
        assert await client.hgetall("mirror:people:0") == {"id": "0", "c2499": "z"}


@pytest.mark.parametrize(
    ("flow", "columns", "key", "word"),
    [
        ({}, {"id": "integer"}, (), "has no key"),
        (
            {"key": "user:{name}"},
            {"id": "integer", "name": "text"},
            ("id",),
            "'name' is not of the row's key",
        ),
        ({"key": "user:{a}"}, {"a": "text", "b": "text"}, ("a", "b"), "'b' of the row's key is not in it"),
        ({"key": "user:{other}"}, {"id": "integer"}, ("id",), "'other', which is no column"),
        (
            {"columns": {"name": {"to": "n", "cast": "int"}}},
            {"id": "integer", "name": "text"},
            ("id",),
            "casts",
        ),
        (
            {"as": "zset", "member": "id", "score": "name"},
            {"id": "integer", "name": "text"},
            ("id",),
            "which is no number",
        ),
    ],
)
async def test_what_has_no_place_in_redis_stops_the_flow(
    store: str, flow: dict[str, Any], columns: dict[str, str], key: tuple[str, ...], word: str
) -> None:
    async with stage(store, **flow) as s:
        table = s.log.table("people", columns, key=key)
        table.create(dict.fromkeys(columns, 1))
        with pytest.raises(FlowError) as caught:
            await s.apply()
        assert isinstance(caught.value.cause, ConfigError)
        assert word in str(caught.value.cause)
        assert caught.value.cause.fix


# Messages of the server


async def opening(url: str) -> TailraceError:
    with pytest.raises(TailraceError) as caught:
        async with stage(url):
            pass
    assert caught.value.fix
    return caught.value


async def test_logins_and_rights_are_named(store: str) -> None:
    host = store.rpartition("@")[2]
    wrong = await opening(f"redis://:wrong@{host}")
    assert isinstance(wrong, ConfigError)
    assert "password is wrong" in str(wrong)
    assert isinstance(await opening(f"redis://{host}"), ConfigError)
    assert "has none" in str(await opening(f"redis://{host}"))
    assert isinstance(await opening("redis://127.0.0.1:1/0"), TargetUnavailable)
    async with redis_at(store) as client:
        await client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-hset")
        try:
            denied = await opening(f"redis://ann:pw@{host}")
            assert isinstance(denied, ConfigError)
            assert "HSET" in str(denied)
            assert "ACL SETUSER ann" in denied.fix
            await client.execute_command("ACL", "SETUSER", "ann", "resetkeys", "~_tailrace:*", "+hset")
            async with stage(f"redis://ann:pw@{host}") as s:
                s.log.table("people", PEOPLE).create(person(1))
                with pytest.raises(TargetUnavailable, match="lacks a right"):
                    await s.apply()
                await client.execute_command("ACL", "SETUSER", "ann", "~mirror:*")
                await s.apply()
                assert await client.exists("mirror:people:1")
        finally:
            await client.execute_command("ACL", "DELUSER", "ann")


async def test_a_server_that_evicts_or_is_full_is_no_target(store: str) -> None:
    async with redis_at(store) as client, stage(store) as s:
        s.log.table("people", PEOPLE).create(person(1))
        try:
            await client.config_set("maxmemory", "1mb")
            with pytest.raises(TargetUnavailable, match="out of memory"):
                await s.apply()
            await client.config_set("maxmemory", "0")
            await s.apply()
            assert await s.target.findings() == []
            await client.config_set("maxmemory-policy", "allkeys-lru")
            assert "allkeys-lru" in (await s.target.findings())[0]
            refused = await opening(store)
            assert isinstance(refused, ConfigError)
            assert "noeviction" in refused.fix
        finally:
            await client.config_set("maxmemory", "0")
            await client.config_set("maxmemory-policy", "noeviction")


async def test_a_replica_is_waited_for_until_it_is_a_primary(store: str) -> None:
    async with redis_at(store) as client, stage(store) as s:
        s.log.table("people", PEOPLE).create(person(1))
        places = s.log.places(s.flows)
        batch = await s.log.batch(s.flows, dict.fromkeys(await s.target.checkpoints(places), 0))
        try:
            await client.replicaof("127.0.0.1", 1)  # type: ignore[arg-type]
            with pytest.raises(TargetUnavailable, match="read-only replica"):
                await s.target.apply(batch)
            error = await opening(store)
            assert isinstance(error, TargetUnavailable)
            assert "primary" in error.fix
        finally:
            await client.replicaof("NO", "ONE")  # type: ignore[arg-type]
        await s.target.apply(batch)
        assert await client.exists("mirror:people:1")


async def test_a_socket_of_the_machine(tmp_path: Path, redis_program: Path | None) -> None:
    path = tmp_path / "s"
    settings = {"unixsocket": str(path)}
    with ValkeyServer(tmp_path / "valkey", program=redis_program, settings=settings) as server:
        url = f"unix://:{server.password}@{path}?db=3"
        async with stage(url) as s, redis_at(url) as client:
            s.log.table("people", PEOPLE).create(person(1))
            await s.apply()
            assert await client.exists("mirror:people:1")
        assert (await doctor_says(url))["reachable"].level is Level.OK


async def test_a_cluster_without_slots_is_waited_for(tmp_path: Path, redis_program: Path | None) -> None:
    settings = {"cluster-enabled": "yes"}
    with ValkeyServer(tmp_path / "valkey", program=redis_program, settings=settings) as server:
        error = await opening(server.url)
        assert isinstance(error, TargetUnavailable)
        assert "the cluster does not serve all of its slots" in str(error)
        assert "no slots are assigned" in (await doctor_says(server.url))["server"].what


# What doctor says


async def doctor_says(url: str, name: str = "acme", bound: str | None = None) -> dict[str, Check]:
    config = Stage(url, {}).config
    findings = Findings("target copy")
    target = config.targets["copy"]
    assert isinstance(target, RedisTarget)
    await check_redis_target(findings, config.model_copy(update={"name": name}), target, {}, bound)
    return {check.check: check for check in findings.checks}


async def test_doctor_tells_what_a_store_lacks(store: str) -> None:
    host = store.rpartition("@")[2]
    async with redis_at(store) as client:
        found = await doctor_says(store)
        assert {check.level for check in found.values()} == {Level.OK}
        assert "a second" in found["durability"].what
        assert not await client.exists("_tailrace:identity")
        async with stage(store):
            pass
        assert "'acme.copy'" in (await doctor_says(store))["identity"].what
        assert (await doctor_says(store, "other"))["identity"].level is Level.FAIL
        assert (await doctor_says(store, bound="another"))["identity"].level is Level.FAIL
        await client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-hset", "-rpush")
        try:
            await client.config_set("maxmemory-policy", "allkeys-lfu")
            await client.config_set("appendonly", "no")
            found = await doctor_says(f"redis://ann:pw@{host}")
            assert found["rights"].what == "the user 'ann' may not run HSET, RPUSH"
            assert found["rights"].sql[0].startswith("ACL SETUSER ann (+")
            assert "allkeys-lfu" in found["server"].what
            assert found["durability"].level is Level.WARN
        finally:
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("appendonly", "yes")
            await client.execute_command("ACL", "DELUSER", "ann")
        assert (await doctor_says(f"redis://:wrong@{host}"))["login"].level is Level.FAIL
        assert (await doctor_says("redis://127.0.0.1:1/0"))["reachable"].level is Level.FAIL
