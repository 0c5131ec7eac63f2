"""The Redis target on a cluster: slots that move, nodes that die or lose what they had, late writers."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import RedisCluster

from consumers.apply.checkpoint import Place
from consumers.targets.base import Batch, Outcome
from consumers.targets.redis import RedisTarget
from consumers.targets.redis_cluster_rows import ClusterRows
from consumers.targets.redis_slots import slot_of, tags
from streamer.config import RedisTarget as Settings
from streamer.doctor.check import Check, Findings, Level
from streamer.doctor.redis_target import check_redis_target
from streamer.errors import ConfigError, TargetUnavailable
from tests.harness.feeder import applying
from tests.harness.redis_cluster import MASTERS, Cluster
from tests.harness.redis_target import FLOWS, Stage, redis_config_of, redis_config_text, source_of, stage

WAIT_S = 60.0
LOOK_S = 0.02
COLUMNS = {"id": "bigint", "name": "text", "note": "text"}
STATE = slot_of("state")


@asynccontextmanager
async def at(cluster: Cluster, *, texts: bool = True) -> AsyncIterator[RedisCluster]:
    client = RedisCluster.from_url(cluster.url, protocol=2, decode_responses=texts)
    try:
        await client.initialize()
        yield client
    finally:
        await client.aclose()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(LOOK_S)


def person(number: int, name: str = "a") -> dict[str, Any]:
    return {"id": number, "name": name, "note": "n"}


async def names_of(client: RedisCluster) -> dict[int, str]:
    found = [key async for key in client.scan_iter(match="mirror:people:*", count=1000)]
    return {int(key.rpartition(":")[2]): await client.hget(key, "name") for key in found}


async def stand(s: Stage) -> int:
    (found,) = (await s.target.checkpoints(s.log.places(s.flows))).values()
    return found.next_offset


async def write_rows(s: Stage, batch: Batch) -> Outcome:
    """As a process does that compared the checkpoints before they were moved, and writes late."""
    target = s.target
    assert isinstance(target, RedisTarget)
    await target.prepare(batch)
    rows = target._rows
    assert isinstance(rows, ClusterRows)
    return await rows.write(batch, await rows.request(batch, target._plans), target._plans, ())


@pytest.mark.thorough
async def test_every_layout_ends_equal(kafka: str, kafka_name: str, redis_cluster: Cluster) -> None:
    """While a node dies and comes back."""
    async with (
        source_of(kafka, kafka_name, 1) as (feeder, source),
        at(redis_cluster) as client,
        applying(redis_config_of(feeder, redis_cluster.url, FLOWS)) as run,
    ):
        for step in range(12):
            for _ in range(40):
                source.change()
            if step == 6:
                source.truncate()
            await feeder.flush()
            if step in (3, 9):
                await asyncio.to_thread(redis_cluster.restart, step // 3 - 1)
        await run.settled(feeder)
        await until(lambda: source.is_in(client), "equal")


async def test_rows_and_their_versions_are_in_one_slot_and_the_state_in_another(
    redis_cluster: Cluster,
) -> None:
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        for number in range(300):
            table.create(person(number))
        await s.apply()
        table.update(person(7, "b"))
        table.delete(person(8))
        await s.apply()
        assert await names_of(client) == {n: "b" if n == 7 else "a" for n in range(300) if n != 8}
        assert await s.target.count_rows("people", "mirror", "people") == 299
        tag = tags()[slot_of("mirror:people:8")]
        name = '["people","mirror","people"]'
        assert await client.hexists(f"_tailrace:rows:{{{tag}}}:{name}", "8")
        assert await client.zscore(f"_tailrace:gone:{{{tag}}}:{name}", "8") is not None
        assert await client.smembers("_tailrace:{state}:tables") == {name}
        assert not await client.exists("_tailrace:checkpoints")


@pytest.mark.parametrize(
    ("flow", "truncated"),
    [
        ({}, False),
        ({}, True),
        ({"as": "json"}, False),
        ({"delete": "soft(gone)"}, False),
        ({"delete": "soft(gone)"}, True),
        ({"write": "append"}, True),
    ],
)
async def test_a_writer_that_is_late_takes_nothing_back(
    redis_cluster: Cluster, flow: dict[str, Any], truncated: bool
) -> None:
    """Its rows come after another process has written, deleted and truncated what they are of."""
    async with stage(redis_cluster.url, **flow) as s, stage(redis_cluster.url, **flow) as other:
        other.log = s.log
        table = s.log.table("people", COLUMNS)
        for number in range(8):
            table.create(person(number, "first"))
        await s.apply()
        for number in range(12):
            table.update(person(number, "late"))
        stale = await s.batch()
        table.delete(person(0))
        table.update(person(1, "newer"))
        for number in range(4, 12):
            table.delete(person(number))
        if truncated:
            table.truncate()
        table.create(person(2, "after it"))
        table.delete(person(3))
        await other.apply()
        async with at(redis_cluster, texts=False) as client:
            before = await everything(client)
            outcome = await write_rows(s, stale)
            assert outcome.lost == [move.place for move in stale.moves]
            assert await everything(client) == before


async def everything(client: RedisCluster) -> dict[bytes, Any]:
    """Rows and versions, without the times of deletes."""
    found: dict[bytes, Any] = {}
    async for key in client.scan_iter(count=1000):
        if key.startswith((b"mirror:", b"_tailrace:rows:")):
            found[key] = await (client.hgetall if await client.type(key) == b"hash" else client.get)(key)
    return found


async def test_a_slot_that_is_moved_is_waited_for_and_followed(redis_cluster: Cluster) -> None:
    """Key by key, as redis-cli does it: while it is under way no script of that slot begins, anywhere."""
    slot = slot_of("mirror:people:1")
    was = redis_cluster.owner(slot)
    to = (was + 1) % MASTERS
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        for number in range(20):
            table.create(person(number))
        await s.apply()
        try:
            await asyncio.to_thread(redis_cluster.begin_move, slot, to)
            for number in range(20):
                table.update(person(number, "moved"))
            table.delete(person(3))
            table.create(person(21, "moved"))
            for step in range(2):
                with pytest.raises(TargetUnavailable, match="a slot of the cluster is being moved"):
                    await s.apply()
                await s.target.open()
                assert await stand(s) == 20
                if not step:
                    await asyncio.to_thread(redis_cluster.move_keys, slot, to)
            assert await asyncio.to_thread(redis_cluster.owner, slot) == was
        finally:
            await asyncio.to_thread(redis_cluster.end_move, slot, to)
        await s.apply()
        assert await names_of(client) == {n: "moved" for n in (*range(20), 21) if n != 3}
        with redis_cluster.node(to) as node:
            assert node.hget("mirror:people:1", "name") == b"moved"
    await asyncio.to_thread(give_back, redis_cluster, slot, was)


@pytest.mark.thorough
async def test_the_states_slot_is_moved(redis_cluster: Cluster) -> None:
    was = redis_cluster.owner(STATE)
    to = (was + 1) % MASTERS
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        table.create(person(1))
        await s.apply()
        await asyncio.to_thread(give_back, redis_cluster, STATE, to)
        table.create(person(2))
        await s.apply()
        assert await stand(s) == 2
        assert await names_of(client) == {1: "a", 2: "a"}
    await asyncio.to_thread(give_back, redis_cluster, STATE, was)


def give_back(cluster: Cluster, slot: int, to: int) -> None:
    cluster.begin_move(slot, to)
    cluster.move_keys(slot, to)
    cluster.end_move(slot, to)


@pytest.mark.parametrize("first", ["look", "batch"])
async def test_a_node_that_has_lost_its_rows_is_found_out(redis_cluster: Cluster, first: str) -> None:
    """Checkpoints are in another node and know nothing of it; marks do."""
    lost = (redis_cluster.owner(STATE) + 1) % MASTERS
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        for number in range(50):
            table.create(person(number))
        await s.apply()
        (place,) = s.log.places(s.flows)
        assert (await s.target.look([place])).stands == {place: 50}
        with redis_cluster.node(lost) as node:
            node.flushall()
        assert len(await names_of(client)) < 50
        table.create(person(50))
        if first == "look":
            assert (await s.target.look([place])).stands == {place: 0}
        else:
            batch = await s.log.batch(s.flows, {place: 50})
            assert (await s.target.apply(batch)).lost == [place]
        assert await stand(s) == 0
        await s.apply()
        assert await names_of(client) == dict.fromkeys(range(51), "a")
        assert (await s.target.look([place])).stands == {place: 51}


@pytest.mark.thorough
async def test_a_node_that_went_back_in_time_is_found_out(redis_cluster: Cluster) -> None:
    """A replica that takes over may lack the last second: what it has is as it was then."""
    behind = (redis_cluster.owner(STATE) + 1) % MASTERS
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        for number in range(30):
            table.create(person(number))
        await s.apply()
        with redis_cluster.node(behind) as node:
            kept = {key: (node.dump(key), node.pttl(key)) for key in node.scan_iter(count=1000)}
            for number in range(30):
                table.update(person(number, "b"))
            await s.apply()
            node.flushall()
            for key, (dump, _) in kept.items():
                node.restore(key, 0, dump)
        table.create(person(30, "b"))
        (place,) = s.log.places(s.flows)
        assert (await s.target.look([place])).stands == {place: 30}
        assert await stand(s) == 30
        await s.apply()
        assert await names_of(client) == dict.fromkeys(range(31), "b")


async def test_a_cluster_that_was_emptied_begins_again(redis_cluster: Cluster) -> None:
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        for number in range(5):
            table.create(person(number))
        await s.apply()
        before = s.target.id
        redis_cluster.flush()
        (place,) = s.log.places(s.flows)
        assert (await s.target.look([place])).stands == {}
        assert await stand(s) == 0
        assert s.target.id != before
        await s.apply()
        assert await names_of(client) == dict.fromkeys(range(5), "a")


@pytest.mark.thorough
async def test_a_node_that_is_down_is_waited_for(redis_cluster: Cluster) -> None:
    """Also the one of the url, once the others are known."""
    async with stage(redis_cluster.url) as s, at(redis_cluster) as client:
        table = s.log.table("people", COLUMNS)
        for number in range(40):
            table.create(person(number))
        await s.apply()
        for number in range(40):
            table.update(person(number, "b"))
        batch = await s.batch()
        await asyncio.to_thread(redis_cluster.nodes[0].kill)
        with pytest.raises(TargetUnavailable):
            await s.target.apply(batch)
        with pytest.raises(TargetUnavailable):
            await s.target.open()
        await asyncio.to_thread(redis_cluster.nodes[0].start)
        await asyncio.to_thread(redis_cluster.wait)
        await s.target.open()
        assert (await s.target.apply(batch)).lost == []
        assert await names_of(client) == dict.fromkeys(range(40), "b")


@pytest.mark.thorough
async def test_kill_9_of_apply_in_rounds(
    kafka: str, kafka_name: str, redis_cluster: Cluster, tmp_path: Path
) -> None:
    """Wherever it dies, rows may be ahead of their checkpoint, and the next one goes on from there."""
    async with source_of(kafka, kafka_name, 2) as (feeder, source), at(redis_cluster) as client:
        config = tmp_path / "tailrace.yaml"
        config.write_text(redis_config_text(feeder, redis_cluster.url, FLOWS))
        for _ in range(3):
            moved = await passed(client)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "consumers", "apply", "copy", "-c", str(config),
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                async with asyncio.timeout(WAIT_S):
                    while await passed(client) <= moved:
                        for _ in range(10):
                            source.change()
                        await feeder.flush()
                        assert process.returncode is None
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        async with applying(redis_config_of(feeder, redis_cluster.url, FLOWS)) as run:
            await run.settled(feeder)
            await until(lambda: source.is_in(client), "equal")


async def passed(client: RedisCluster) -> int:
    stands = await client.hvals("_tailrace:{state}:checkpoints")
    return sum(int(found.split(" ", 1)[0]) for found in stands)


async def test_a_cluster_has_database_0_only(redis_cluster: Cluster) -> None:
    s = Stage(redis_cluster.url.removesuffix("0") + "3", {})
    try:
        with pytest.raises(ConfigError):
            await s.target.open()
    finally:
        await s.target.close()


async def test_two_partitions_of_a_table_and_a_truncate_in_one(redis_cluster: Cluster) -> None:
    """A process that has the other partition, and read before the floor was raised, brings nothing back."""
    async with stage(redis_cluster.url) as s, stage(redis_cluster.url) as other:
        s.log = other.log = type(s.log)("shop", partitions=2)
        table = s.log.table("people", COLUMNS)
        numbers = {0: [], 1: []}  # type: dict[int, list[int]]
        for number in range(30):
            numbers[table.create(person(number)).partition].append(number)
        mine, its = (Place("people", "shop.public.people", partition) for partition in (1, 0))
        late = await s.log.batch(s.flows, {mine: 0})
        table.truncate()
        await other.target.checkpoints([mine, its])
        await other.target.apply(await s.log.batch(s.flows, {its: 0}))
        assert (await s.target.apply(late)).guarded == {"people": len(numbers[1])}
        async with at(redis_cluster) as client:
            assert await names_of(client) == {}


# What doctor says, and the user's rights


async def doctor_says(url: str) -> dict[str, Check]:
    config = Stage(url, {}).config
    findings = Findings("target copy")
    target = config.targets["copy"]
    assert isinstance(target, Settings)
    await check_redis_target(findings, config, target, {})
    return {check.check: check for check in findings.checks}


async def test_doctor_looks_at_every_node(redis_cluster: Cluster) -> None:
    found = await doctor_says(redis_cluster.url)
    assert {check.level for check in found.values()} == {Level.OK}
    assert found["server"].what == "a Redis Cluster of 3 primaries, maxmemory-policy noeviction"
    async with stage(redis_cluster.url):
        pass
    assert "'acme.copy'" in (await doctor_says(redis_cluster.url))["identity"].what
    with redis_cluster.node(2) as node:
        node.config_set("maxmemory-policy", "allkeys-lru")
        try:
            found = await doctor_says(redis_cluster.url)
            with pytest.raises(ConfigError, match="maxmemory-policy is allkeys-lru"):
                async with stage(redis_cluster.url):
                    pass
        finally:
            node.config_set("maxmemory-policy", "noeviction")
    assert found["server"].level is Level.FAIL
    assert str(redis_cluster.nodes[2].port) in found["server"].what


async def test_a_user_with_nothing_gets_the_printed_rule_and_applies(redis_cluster: Cluster) -> None:
    """A user is each node's own: one node that lacks the rule is named."""
    nodes = [redis_cluster.node(number) for number in range(MASTERS)]
    url = f"redis://ann:pw@{redis_cluster.nodes[0].host}:{redis_cluster.nodes[0].port}/0"
    try:
        for node in nodes:
            node.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">pw")
        bare = Stage(url, {})
        with pytest.raises(ConfigError):
            await bare.target.open()
        await bare.target.close()
        for node in nodes:
            node.execute_command("ACL", "SETUSER", "ann", "~*", "+@all")
        nodes[1].execute_command("ACL", "SETUSER", "ann", "-hset")
        found = (await doctor_says(url))["rights"]
        assert found.level is Level.FAIL
        assert f"may not run HSET on 127.0.0.1:{redis_cluster.nodes[1].port}" in found.what
        assert "on each node" in found.fix
        (rule,) = found.sql
        for node in nodes:
            node.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">pw")
            node.execute_command(*rule.split())
        assert all(check.level in (Level.OK, Level.NOTE) for check in (await doctor_says(url)).values())
        async with stage(url) as s, at(redis_cluster) as client:
            table = s.log.table("people", COLUMNS)
            for number in range(30):
                table.create(person(number))
            table.truncate()
            table.create(person(1, "b"))
            await s.apply()
            await s.target.sweep(0)
            assert await s.target.findings() == []
            assert await names_of(client) == {1: "b"}
    finally:
        for node in nodes:
            node.execute_command("ACL", "DELUSER", "ann")
            node.close()
