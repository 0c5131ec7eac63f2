"""What goes wrong, one coroutine a kind. Owns the ways to break things; when and how often is the run's."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import Random

import redis.asyncio as aioredis

from streamer.sandbox import KafkaServer, ValkeyServer
from tests.crash.redis import asking
from tests.harness.pipeline import Pipeline
from tests.harness.proxy import Proxy

DOWN_S = 1.0  # at most; how long a victim stays away
OLD_S = 1.0  # of writes that a server forgets which comes back with older data
SILENCE_S = 6.5  # longer than the canary's limit
DELAY_S = 0.15  # each way
DELAYED_S = 2.0
CUTS = 4  # at most, one soon after the other
SETTING = "notify-keyspace-events"
SETTING_BACK_S = 10.0
LIMIT = "client-output-buffer-limit"
TINY_LIMIT = "pubsub 262144 262144 1"
USUAL_LIMIT = "pubsub 33554432 8388608 60"
CUT_OFF_S = 15.0
CUT_OFF_TRIES = 4  # a capture that gives up the silent line first is gone before the server cuts it off
# 1,000 notifications of half a kilobyte: what waits in the sockets between is full after some of these.
BURST = "for n = 1, 1000 do redis.call('SET', KEYS[1], n) end"
BURST_KEY = b"raw:" + b"b" * 500


@dataclass(slots=True)
class Scene:
    """`proxy` stands between capture and server; `kafka` None: it is not ours to kill."""

    pipeline: Pipeline
    server: ValkeyServer
    proxy: Proxy
    kafka: KafkaServer | None
    random: Random

    @asynccontextmanager
    async def client(self) -> AsyncIterator[aioredis.Redis]:
        """A line of the fault's own, past the proxy."""
        client = asking.client(self.server.url, decode_responses=True)
        try:
            yield client
        finally:
            await client.aclose()

    async def down(self) -> None:
        await asyncio.sleep(self.random.uniform(0, DOWN_S))


async def cut(scene: Scene) -> None:
    for _ in range(scene.random.randint(1, CUTS)):
        scene.proxy.cut()
        await asyncio.sleep(scene.random.uniform(0, 0.5))


async def half_close(scene: Scene) -> None:
    scene.random.choice((scene.proxy.half_close_to_client, scene.proxy.half_close_to_server))()


async def refuse(scene: Scene) -> None:
    scene.proxy.refuse()
    await scene.down()
    scene.proxy.accept()


async def delay(scene: Scene) -> None:
    scene.proxy.delay_s = DELAY_S
    await asyncio.sleep(DELAYED_S)
    scene.proxy.delay_s = 0.0


async def silence(scene: Scene) -> None:
    """The lines are open and nothing passes."""
    scene.proxy.stall()
    await asyncio.sleep(SILENCE_S)
    scene.proxy.flow()


async def buffer(scene: Scene) -> None:
    """A reader that does not keep up is cut off by the server."""
    async with scene.client() as client:
        for tries_left in reversed(range(CUT_OFF_TRIES)):
            try:
                await _be_cut_off(scene, client)
                break
            except TimeoutError:
                if not tries_left:
                    raise


async def _be_cut_off(scene: Scene, client: aioredis.Redis) -> None:
    """Raises TimeoutError."""
    await scene.pipeline.until("there is a subscription", partial(_has_subscription, client))
    before = await _cut_off(client)
    await client.config_set(LIMIT, TINY_LIMIT)
    scene.proxy.stall()
    try:
        async with asyncio.timeout(CUT_OFF_S):
            while await _cut_off(client) == before:
                await client.eval(BURST, 1, BURST_KEY)
    finally:
        scene.proxy.flow()
        await client.config_set(LIMIT, USUAL_LIMIT)


async def _has_subscription(client: aioredis.Redis) -> bool:
    return int(await client.pubsub_numpat()) > 0


async def _cut_off(client: aioredis.Redis) -> int:
    return int((await client.info("stats"))["client_output_buffer_limit_disconnections"])


async def server(scene: Scene) -> None:
    """kill -9, and back with all its data."""
    await asyncio.to_thread(scene.server.kill)
    await scene.down()
    await asyncio.to_thread(scene.server.start)


async def server_old(scene: Scene) -> None:
    """kill -9, and back with the data of a second before."""
    async with scene.client() as client:
        await client.config_set("appendonly", "no")
    await asyncio.sleep(OLD_S)
    await server(scene)


async def server_empty(scene: Scene) -> None:
    """kill -9, and back without any data."""
    await asyncio.to_thread(scene.server.kill)
    shutil.rmtree(scene.server.folder / "appendonlydir")
    (scene.server.folder / "dump.rdb").unlink(missing_ok=True)
    await asyncio.to_thread(scene.server.start)


async def capture(scene: Scene) -> None:
    for child in scene.pipeline.running("capture"):
        child.kill()
    await scene.down()
    scene.pipeline.start("capture")


async def kafka(scene: Scene) -> None:
    assert scene.kafka is not None
    await asyncio.to_thread(scene.kafka.kill)
    await scene.down()
    await asyncio.to_thread(scene.kafka.start)


async def setting(scene: Scene) -> None:
    """Notifications are switched off, until the capture notices and mends it."""
    async with scene.client() as client:
        await client.config_set(SETTING, "")
        await scene.pipeline.until("the setting is back", partial(_has_setting, client), SETTING_BACK_S)


async def _has_setting(client: aioredis.Redis) -> bool:
    return bool((await client.config_get(SETTING))[SETTING])


async def resetstat(scene: Scene) -> None:
    async with scene.client() as client:
        await client.config_resetstat()


FAULTS: Mapping[str, Callable[[Scene], Awaitable[None]]] = {
    "cut": cut,
    "half_close": half_close,
    "refuse": refuse,
    "delay": delay,
    "silence": silence,
    "buffer": buffer,
    "server": server,
    "server_old": server_old,
    "server_empty": server_empty,
    "capture": capture,
    "kafka": kafka,
    "setting": setting,
    "resetstat": resetstat,
}
