"""H19: the moment that a capture of Redis says it has passed, and what is in Kafka by then."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import redis.asyncio as aioredis

from consumers.reconcile.fence import opened_log
from consumers.reconcile.origins.redis import RedisClock
from streamer.config import Config
from streamer.redis.connection import connect
from streamer.redis.notifications import canary_channel
from streamer.redis.reread import BIG_ELEMENTS
from streamer.sandbox import ValkeyServer
from tests.harness.capture import WAIT_S
from tests.harness.redis_capture import ENTITIES, capturing_redis, fold

MEMBERS = BIG_ELEMENTS + 500  # so that the key is read in steps
MOMENTS = 3


@asynccontextmanager
async def never_at_rest(client: aioredis.Redis) -> AsyncIterator[None]:
    """The large key and some small ones are written all the time."""
    ended = asyncio.Event()

    async def write() -> None:
        for n in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
            await client.zadd("board:all", {f"u{n % MEMBERS}": n})
            await client.hset(f"player:{n % 50}", mapping={"score": n})

    task = asyncio.create_task(write(), name="writer")
    try:
        yield
    finally:
        ended.set()  # the client may lose a cancellation
        await task


async def test_h19_what_was_written_before_a_moment_is_in_kafka_when_it_has_passed(
    client: aioredis.Redis,
    redis_server: ValkeyServer,
    make_redis_config: Callable[..., Config],
    clean_game_topics: None,
) -> None:
    await client.zadd("board:all", {f"u{n}": 0 for n in range(MEMBERS)})
    config = make_redis_config(
        redis_server.url, {**ENTITIES, "scores": {**ENTITIES["scores"], "debounce": "200ms"}}
    )
    async with (
        AsyncExitStack() as stack,
        capturing_redis(config) as capture,
        connect(redis_server.url) as line,
        never_at_rest(client),
    ):
        await capture.state("streaming")
        progress = await stack.enter_async_context(opened_log(config, config.kafka.brokers, "game"))
        clock = RedisClock(line, canary_channel(config.name, "game"))
        for n in range(MOMENTS):
            await client.zadd("board:all", {"last": n})
            await client.hset("player:last", mapping={"score": n})
            moment_us = await clock.mark()
            async with asyncio.timeout(WAIT_S):
                while await progress.position() < moment_us:
                    pass
            scores, players = await fold(config, "scores"), await fold(config, "players")
            assert scores.rows[b'{"period":"all","user_id":"last"}']["points"] == n
            assert players.rows[b'{"id":"last"}']["score"] == n
