"""A Redis source whose Kafka, or what it had there, is lost: it begins above all that a target has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import redis.asyncio as aioredis

from consumers.commands.gates import decide_held
from streamer.changes.topics import positions_topic, schemas_topic, shadow_topic
from streamer.config import Config, load
from streamer.kafka import admin
from streamer.publisher.topics import describe
from streamer.runner import reset_source
from streamer.sandbox import ValkeyServer
from tests.harness.capture import run as execute
from tests.harness.capture import until, until_another_epoch
from tests.harness.feeder import Running, applying
from tests.harness.redis_capture import capturing_redis
from tests.harness.tiers import corners

pytestmark = pytest.mark.usefixtures("clean_game_topics")

SESSIONS = 'SELECT sid, value::text FROM game.sessions ORDER BY sid COLLATE "C"'
FAR = 2_000_000_000  # an epoch of the year 2083


class Copied:
    def __init__(self, config: Config, client: aioredis.Redis, target_url: str) -> None:
        self.config = config
        self.client = client
        self.target_url = target_url

    async def equal(self, run: Running) -> None:
        keys = sorted(await self.client.keys("session:*"))
        rows = [(key.decode().partition(":")[2], (await self.client.get(key)).decode()) for key in keys]
        await run.rows(self.target_url, SESSIONS, rows)

    async def lose(self, *topics: str) -> None:
        await until_another_epoch(self.target_url)
        async with admin(self.config.kafka.brokers, None) as kafka:
            await kafka.delete_topics(list(topics))

            async def gone() -> bool:
                return not set(topics) & set(await describe(kafka))

            await until(gone)


@pytest.fixture
async def copied(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    target_database: str,
    tmp_path: Path,
) -> Copied:
    """Thirty keys that have been copied; neither part runs."""
    make_redis_config(redis_server.url, ("sessions",))
    path = tmp_path / "tailrace.yaml"
    document = orjson.loads(path.read_bytes())
    document["targets"] = {"copy": {"kind": "postgres", "url": target_database}}
    document["flows"] = {"mirror": {"from": "game.*", "to": "copy.game", "hold_deletes_above": "100%"}}
    path.write_bytes(orjson.dumps(document))
    found = Copied(load(path), client, target_database)
    await client.mset({f"session:{n}": str(n) for n in range(30)})
    async with capturing_redis(found.config), applying(found.config) as run:
        await found.equal(run)
    return found


@pytest.mark.parametrize("lost", corners(["positions", "everything"], "everything"))
async def test_h03_what_kafka_lost_is_copied_above_what_the_target_has(copied: Copied, lost: str) -> None:
    """By itself: changed keys change, and keys deleted meanwhile are deleted."""
    config, client, name = copied.config, copied.client, copied.config.name
    topics = [positions_topic(name), schemas_topic(name), shadow_topic(name, "game")]
    if lost == "everything":  # and the cluster has another id
        await copied.lose(*topics, "game.sessions", "game.message")
        await execute(copied.target_url, "UPDATE _tailrace.checkpoints SET cluster_id = 'another'")
    else:
        await copied.lose(*topics)
    await client.delete("session:1", "session:2")
    await client.mset({"session:3": "33", "session:new": "1"})
    async with capturing_redis(config), applying(config) as run:
        await copied.equal(run)
        await client.set("session:4", "44")
        await client.delete("session:5")
        await copied.equal(run)
        assert not run.status.record.detail.get("findings")


@pytest.mark.thorough
@pytest.mark.parametrize("lost", [True, False])
async def test_a_flushed_source_that_is_copied_anew_empties_nothing_before_it_is_approved(
    copied: Copied, lost: bool
) -> None:
    """With its Kafka lost, or reset by a person: the deletes would come as the floor of the new copy."""
    path = copied.config.path
    document = orjson.loads(path.read_bytes())
    del document["flows"]["mirror"]["hold_deletes_above"]
    path.write_bytes(orjson.dumps(document))
    config, name = load(path), copied.config.name
    if lost:
        topics = [positions_topic(name), schemas_topic(name), shadow_topic(name, "game")]
        await copied.lose(*topics, "game.sessions", "game.message")
        await execute(copied.target_url, "UPDATE _tailrace.checkpoints SET cluster_id = 'another'")
    else:
        await reset_source(config, "game", brokers=config.kafka.brokers)
    await copied.client.flushall()
    await copied.client.set("session:new", "1")
    count = "SELECT count(*) FROM game.sessions"
    async with capturing_redis(config), applying(config) as run:
        await run.until(lambda: run.flow("mirror").get("state") == "held", "held")
        assert "the new copy of the source lacks 30 of 31 rows of sessions" in run.flow("mirror")["reason"]
        await run.rows(copied.target_url, count, [(31,)])
        (gate,) = await decide_held(config, "mirror", "approved")
        assert gate.kind == "floor"
        await copied.equal(run)


@pytest.mark.thorough
async def test_h03_a_clock_that_went_back_is_a_finding_that_names_the_cure(copied: Copied) -> None:
    """Rows and checkpoints are of an epoch that the clock will not reach for long."""
    await execute(
        copied.target_url,
        f"UPDATE _tailrace.checkpoints SET last_epoch = {FAR}",
        f"UPDATE game.sessions SET _tailrace_epoch = {FAR}",
    )
    config, client = copied.config, copied.client
    async with capturing_redis(config) as capture, applying(config) as run, capture.status:
        await client.set("session:3", "33")
        cure = f"`tailrace reset game --above {FAR} --yes`"
        await run.until(
            lambda: any(cure in told for told in run.status.record.detail.get("findings", ())), "a finding"
        )
    assert await reset_source(config, "game", brokers=config.kafka.brokers, above=FAR) == FAR + 1
    await client.delete("session:4")
    async with capturing_redis(config) as capture, applying(config) as run, capture.status:
        await copied.equal(run)
        assert not run.status.record.detail.get("findings")
