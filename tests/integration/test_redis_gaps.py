"""What may have been missed by Redis capture is said, read again and healed; one capture works at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from shutil import rmtree

import orjson
import pytest
import redis.asyncio as aioredis

from streamer import runner
from streamer.config import Config
from streamer.errors import FatalError, FencedError
from streamer.runner import make_publisher, reset_source
from streamer.sandbox import ValkeyServer
from tests.harness.capture import WAIT_S
from tests.harness.proxy import Proxy
from tests.harness.redis_capture import (
    RedisCapture,
    capturing_redis,
    fold,
    gap_messages,
    keyed,
    until_count,
    until_rows,
)
from tests.harness.tiers import corners

pytestmark = pytest.mark.usefixtures("clean_game_topics")


async def test_h21_a_flush_empties_the_copy_and_a_swap_fills_it(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.mset({f"session:{n}": str(n) for n in range(20)})
    other = aioredis.from_url(redis_server.url.removesuffix("/0") + "/1")
    await other.mset({"session:3": "33", "session:x": "0"})
    await other.aclose()
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config) as capture:
        first = capture.detail("epoch")
        await client.flushdb()
        await capture.healed(1)
        found = await until_count(config, "sessions", 0)
        deletes = [r for r in found.records if r.value is not None and orjson.loads(r.value)["op"] == "d"]
        assert len(deletes) == 20
        assert {r.headers for r in deletes} == {(("sweep", b"20"),)}
        assert capture.detail("epoch") == first + 1
        await client.swapdb(0, 1)
        await capture.healed(2)
        await until_rows(
            config,
            "sessions",
            keyed([{"sid": "3", "value": "33"}, {"sid": "x", "value": "0"}], "sid"),
        )
        assert capture.detail("epoch") == first + 2
    told = await gap_messages(config)
    assert [(m["state"], m.get("reason")) for m in told] == [
        ("open", "flush"),
        ("healed", None),
        ("open", "swap"),
        ("healed", None),
    ]
    assert all(m["since_us"] <= m["seen_us"] for m in told if m["state"] == "open")


async def test_h21_a_cut_line_is_a_gap_and_is_healed(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        config = make_redis_config(proxy.url(redis_server.url))
        await client.mset({f"session:{n}": str(n) for n in range(10)})
        async with capturing_redis(config) as capture:
            first = capture.detail("epoch")
            proxy.refuse()
            proxy.cut()
            await capture.state("waiting")
            await client.delete("session:1")
            await client.set("session:2", "22")
            proxy.accept()
            await capture.healed(1)
            found = await until_count(config, "sessions", 9)
            assert found.rows[b'{"sid":"2"}']["value"] == "22"
            gap = capture.detail("gaps")[0]
            assert gap["reason"] == "connection"
            assert "line" in gap["detail"]
            assert gap["since_us"] <= gap["seen_us"] <= gap["healed_us"]
            assert capture.detail("epoch") == first + 1


@pytest.mark.parametrize("keeps", corners([True, False], True))
async def test_h21_a_restart_of_the_server_with_and_without_its_data(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    keeps: bool,
) -> None:
    await client.mset({f"session:{n}": str(n) for n in range(10)})
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config) as capture:
        await client.aclose()
        redis_server.kill()
        if not keeps:
            rmtree(redis_server.folder / "appendonlydir")
        redis_server.start()
        await client.set("session:after", "1")
        await capture.healed(2)
        await until_count(config, "sessions", 11 if keeps else 1)
        assert {gap["reason"] for gap in capture.detail("gaps")} >= {"connection", "restart"}
        assert await client.config_get("notify-keyspace-events") != {"notify-keyspace-events": ""}


@pytest.mark.thorough
async def test_a_setting_taken_away_is_a_gap_and_is_set_again(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config) as capture:
        await client.config_set("notify-keyspace-events", "")
        await client.set("session:unseen", "1")
        await capture.healed(1)
        await until_count(config, "sessions", 1)
        assert capture.detail("gaps")[0]["reason"] == "setting"
        await client.set("session:seen", "1")
        await until_count(config, "sessions", 2)


async def test_a_full_scan_is_made_again_without_a_gap(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.set("session:a", "1")
    config = make_redis_config(redis_server.url, rescan="500ms")
    async with capturing_redis(config) as capture:
        first = capture.detail("epoch")
        await capture.until(lambda: (capture.detail("last_scan") or {}).get("why") == "full scan")
        assert capture.detail("gaps_seen") == 0
        assert capture.detail("epoch") == first
    assert (await fold(config, "sessions")).ops() == "r"


async def test_h30_the_second_capture_stands_by_and_takes_over(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
) -> None:
    config = make_redis_config(redis_server.url)
    first, second = RedisCapture(config), RedisCapture(config)
    first.start()
    await first.state("streaming")
    epoch = first.detail("epoch")
    second.start()
    await second.state("standby")
    await client.set("session:a", "1")
    await until_count(config, "sessions", 1)
    await first.kill()
    await client.set("session:b", "1")
    await second.state("streaming")
    assert second.detail("epoch") == epoch + 1
    await until_count(config, "sessions", 2)
    await second.end()


async def test_h30_a_zombie_is_fenced_by_the_one_that_took_its_place(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url)
    async with AsyncExitStack() as stack:
        zombie = RedisCapture(config)
        zombie.start()
        await zombie.state("streaming")
        publisher = make_publisher(config, config.kafka.brokers, "game")
        stack.push_async_callback(publisher.close)
        await publisher.start()
        await client.set("session:late", "1")
        assert zombie.task is not None
        with pytest.raises(FencedError):
            async with asyncio.timeout(WAIT_S):
                await zombie.task
        assert zombie.status.record.state == "error"
    assert not (await fold(config, "sessions")).rows


async def test_a_reset_publishes_all_again_and_ends_with_floors(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.mset({f"session:{n}": str(n) for n in range(10)})
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config) as capture:
        await until_count(config, "sessions", 10)
        first = capture.detail("epoch")
    second = await reset_source(config, "game", brokers=config.kafka.brokers)
    assert second == first + 1
    await client.delete("session:0")
    async with capturing_redis(config) as capture:
        assert capture.detail("epoch") == second
        assert capture.detail("gaps_seen") == 0
    found = await fold(config, "sessions")
    again = [e for e in found.events if e["source"]["epoch"] == second]
    assert sorted(e["after"]["sid"] for e in again) == [str(n) for n in range(1, 10)]
    assert {e["op"] for e in again} == {"r"}
    assert found.floors == [first, second]
    for file in (config.base / ".tailrace" / "shadow").iterdir():
        file.unlink()  # what the ended epoch recorded is void, also when all is read from the topic
    async with capturing_redis(config) as capture:
        await capture.healed(1)
        assert capture.detail("shadow_rows") == 9


async def test_a_running_capture_is_not_reset(
    redis_server: ValkeyServer, make_redis_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RESET_WAIT_S", 0.5)
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config):
        with pytest.raises(FatalError, match="a capture of game is running"):
            await reset_source(config, "game", brokers=config.kafka.brokers)


@pytest.mark.thorough
async def test_a_killed_first_copy_starts_again_as_a_reset(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    for start in range(0, 30_000, 10_000):
        await client.mset({f"session:{n}": str(n) for n in range(start, start + 10_000)})
    config = make_redis_config(redis_server.url)
    capture = RedisCapture(config)
    capture.start()
    await capture.until(lambda: capture.status.record.state == "snapshot" and capture.detail("flushes"))
    first = capture.detail("epoch")
    await capture.kill()
    await client.delete("session:0")
    async with capturing_redis(config) as capture:
        assert capture.detail("epoch") == first + 1
    found = await fold(config, "sessions")
    assert len([e for e in found.events if e["source"]["epoch"] == first + 1]) == 29_999
    assert found.floors == [first + 1]
