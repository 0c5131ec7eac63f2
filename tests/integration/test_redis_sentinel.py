"""A Redis source behind real Sentinels: the primary that they name is captured, whichever it is."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis.asyncio as aioredis

from streamer.config import Config, RedisSource
from streamer.doctor.check import Findings
from streamer.doctor.redis import check_redis
from streamer.errors import ConfigError, SourceUnavailable
from streamer.redis.connection import connect
from streamer.sandbox import ValkeyServer
from tests.crash.redis.game import DATABASES
from tests.crash.redis.game import ENTITIES as GAME
from tests.crash.redis.run import settled
from tests.crash.redis.topics import Topics
from tests.harness.capture import PARTITIONS, until
from tests.harness.pipeline import REPO
from tests.harness.redis_capture import RedisCapture, capturing_redis, fold, until_count, until_rows
from tests.harness.redis_sentinel import PASSWORD, Watched

pytestmark = pytest.mark.usefixtures("clean_game_topics")

Made = Callable[[int], Watched]
OPS_PER_S = 2_000
BIG_MEMBERS = 1_000
WRITTEN = 3_000  # commands of a writer before the next step


@asynccontextmanager
async def client_of(server: ValkeyServer) -> AsyncIterator[aioredis.Redis]:
    client = aioredis.from_url(server.url)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def writing(server: ValkeyServer, seed: int) -> AsyncIterator[None]:
    """Every command that leaves a mark on keys, from its first thousands on until the block is left."""
    arguments = (server.url, str(seed), str(OPS_PER_S), str(BIG_MEMBERS), "no")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.redis.writer", *arguments, cwd=REPO, stdout=PIPE
    )
    try:
        async with client_of(server) as client:
            before = (await client.info("stats"))["total_commands_processed"]

            async def at_work() -> bool:
                return bool((await client.info("stats"))["total_commands_processed"] > before + WRITTEN)

            await until(at_work)
        yield
    finally:
        process.terminate()
        await process.communicate()


def reasons(capture: RedisCapture) -> dict[str, str]:
    return {gap["reason"]: gap["detail"] for gap in capture.detail("gaps")}


@pytest.mark.thorough
async def test_h21_the_primary_that_sentinel_promotes_is_captured(
    make_watched: Made, make_redis_config: Callable[..., Config]
) -> None:
    """The old one is killed with a write that it has acknowledged, and that nobody else has."""
    watched = make_watched(1)
    old, promoted = watched.servers
    config = make_redis_config(watched.url(), ["sessions"])
    async with client_of(old) as client:
        await client.mset({"session:a": "1", "session:b": "1"})
        await client.wait(1, 0)
        async with capturing_redis(config) as capture:
            watched.cut_off_replica()
            await client.mset({"session:a": "2", "session:lost": "1"})
            await until_count(config, "sessions", 3)
            old.kill()
            await until_count(config, "sessions", 2)
            found = await fold(config, "sessions")
            assert {row["sid"]: row["value"] for row in found.plain} == {"a": "1", "b": "1"}
            await capture.healed(2)
            assert {"connection", "failover"} <= set(reasons(capture))
            assert f"127.0.0.1:{old.port}" in reasons(capture)["failover"]
            assert f"127.0.0.1:{promoted.port}" in reasons(capture)["failover"]
            async with client_of(promoted) as heir:
                await heir.set("session:after", "1")
            await until_count(config, "sessions", 3)


@pytest.mark.thorough
async def test_h21_a_failover_under_writes_loses_nothing(
    make_watched: Made, make_redis_config: Callable[..., Config], kafka: str
) -> None:
    """Three Sentinels have to agree; in the end the fold of the topics is the new primary, key by key."""
    watched = make_watched(3)
    old, promoted = watched.servers
    config = make_redis_config(watched.url(), GAME, databases=list(DATABASES))
    topics = Topics(kafka, "game", PARTITIONS)
    async with capturing_redis(config) as capture:
        async with writing(old, seed=1):
            old.kill()
            await asyncio.to_thread(watched.wait_for_primary, promoted)
            await capture.healed(2)
        async with writing(promoted, seed=2):
            pass
        wanted = await settled(promoted.url)

        async def equal() -> bool:
            await topics.read()
            return not topics.open and topics.differences(wanted) == ([], [])

        await until(equal)
        assert sum(len(rows) for rows in wanted.rows.values()) > BIG_MEMBERS
        assert (topics.doubled, topics.regressed) == (0, 0)
        assert {"connection", "failover"} <= set(reasons(capture))


@pytest.mark.thorough
async def test_h21_a_primary_that_lives_on_as_a_replica_is_left(
    make_watched: Made, make_redis_config: Callable[..., Config]
) -> None:
    """A failover that an operator asks for, and back again."""
    watched = make_watched(1)
    config = make_redis_config(watched.url(), ["sessions"])
    async with capturing_redis(config) as capture:
        for number, server in enumerate(reversed(watched.servers), 1):
            await asyncio.to_thread(watched.wait)
            watched.failover()
            await asyncio.to_thread(watched.wait_for_primary, server)
            async with client_of(server) as client:
                await client.set(f"session:{number}", "1")
                await until_count(config, "sessions", number)
                await capture.healed(2 * number)
                assert f"is 127.0.0.1:{server.port}" in reasons(capture)["failover"]
                names = {line["name"] for line in await client.client_list()}
                assert {"tailrace-watch", "tailrace-read"} <= names


@pytest.mark.thorough
async def test_h21_a_replica_is_a_source_like_any_other(
    make_watched: Made, make_redis_config: Callable[..., Config]
) -> None:
    """What its primary does arrives; a flush there, and its own promotion, are gaps."""
    watched = make_watched(0)
    primary, replica = watched.servers
    config = make_redis_config(replica.url, ["sessions", "scores", "notes"])
    async with client_of(primary) as client, client_of(replica) as heir:
        await client.mset({f"session:{n}": str(n) for n in range(5)})
        await client.wait(1, 0)
        async with capturing_redis(config) as capture:
            await client.zadd("board:daily", {"ann": 1, "bob": 2})
            await client.set("note:1", "soon gone")
            await client.delete("session:1")
            await until_count(config, "scores", 2)
            await until_count(config, "sessions", 4)
            await until_count(config, "notes", 1)
            await client.pexpire("note:1", 1)
            gone = (await until_count(config, "notes", 0)).ops()
            assert gone in ("cd", "cud"), "its time to live is a column, which may be seen before it is over"
            assert capture.detail("gaps_seen") == 0
            await client.flushall()
            await client.set("session:new", "1")
            await capture.healed(1)
            await until_rows(config, "sessions", {b'{"sid":"new"}': {"sid": "new", "value": "1"}})
            await heir.replicaof("NO", "ONE")  # type: ignore[arg-type]
            await heir.set("session:own", "1")
            await capture.healed(2)
            await until_count(config, "sessions", 2)
            assert list(reasons(capture)) == ["flush", "failover"]


@pytest.mark.thorough
async def test_h21_a_replica_that_sentinel_names_is_captured(
    make_watched: Made, make_redis_config: Callable[..., Config]
) -> None:
    """Until it is the primary: then there is none, which is waited for."""
    watched = make_watched(1)
    primary, replica = watched.servers
    config = make_redis_config(watched.url(role="replica"), ["sessions"])
    async with capturing_redis(config) as capture:
        async with client_of(primary) as client, client_of(replica) as there:
            await client.set("session:a", "1")
            await until_count(config, "sessions", 1)
            assert "tailrace-watch" in {line["name"] for line in await there.client_list()}
        watched.failover()
        await capture.state("waiting")
        async with client_of(replica) as client:
            await client.set("session:b", "1")
        await capture.state("streaming")
        await until_count(config, "sessions", 2)
        await capture.healed(2)
        assert f"is 127.0.0.1:{primary.port}" in reasons(capture)["failover"]


async def test_sentinels_that_cannot_be_asked_are_told(
    make_watched: Made, make_redis_config: Callable[..., Config]
) -> None:
    watched = make_watched(1)
    url = watched.url()
    config = make_redis_config(url, ["sessions"])
    findings = Findings("source game")
    source = config.sources["game"]
    assert isinstance(source, RedisSource)
    await check_redis(findings, config, source)
    said = {check.check: check.what for check in findings.checks}
    assert said["reachable"].startswith(f"127.0.0.1:{watched.servers[0].port}/0, ")
    async with connect(url.replace("@", "@127.0.0.1:1,")) as line:  # one that is away changes nothing
        assert line.where == f"127.0.0.1:{watched.servers[0].port}/0"
    with pytest.raises(ConfigError, match=r"No such master.*\n  -> correct NAME"):
        async with connect(url.replace("/game/", "/gone/")):
            pass
    with pytest.raises(ConfigError, match="sentinel_password") as told:
        async with connect(url.replace(f"={PASSWORD}", "=wrong")):
            pass
    assert PASSWORD not in str(told.value)
    with pytest.raises(ConfigError, match="this is no Sentinel"):
        async with connect(url.replace(str(watched.sentinels[0].port), str(watched.servers[0].port))):
            pass
    watched.sentinels[0].kill()
    with pytest.raises(SourceUnavailable, match="no Sentinel answers"):
        async with connect(url):
            pass
