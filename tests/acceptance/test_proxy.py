"""Lines between the parts are cut, delayed, half-closed, silenced and refused: the verdict stays the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from streamer.sandbox import KafkaServer
from tests.acceptance.conftest import Shop
from tests.harness.pipeline import Pipeline
from tests.harness.proxy import Proxy

BETWEEN_S = 0.4  # between two troubles; load goes on
SILENCE_S = 1.5
DELAY_S = 0.02
LONG_SILENCE_S = 75.0  # beyond every timeout of ours
TROUBLED_BYTES = 20_000  # what has to get through between two troubles, so that each one hits a live line

ShopOn = Callable[[Pipeline], Awaitable[Shop]]


class Parts:
    """The proxies of one pipeline."""

    def __init__(self, source: Proxy, target: Proxy, kafka: Proxy) -> None:
        self.by_name = {"source": source, "target": target, "kafka": kafka}


@pytest.fixture
async def proxied(
    tmp_path: Path, database: str, target_database: str, kafka_server: KafkaServer, kafka_name: str
) -> AsyncIterator[tuple[Pipeline, Parts]]:
    """A pipeline whose processes reach every server through a proxy of the test's."""
    async with AsyncExitStack() as stack:
        proxies = []
        for url in (database, target_database):
            parts = urlsplit(url)
            assert parts.hostname is not None
            assert parts.port is not None
            proxies.append(await stack.enter_async_context(Proxy(parts.hostname, parts.port)))
        assert kafka_server.proxy_port is not None
        kafka_proxy = Proxy(kafka_server.host, kafka_server.proxied_port, listen_port=kafka_server.proxy_port)
        proxies.append(await stack.enter_async_context(kafka_proxy))
        pipeline = Pipeline(
            tmp_path,
            source_url=database,
            target_url=target_database,
            brokers=kafka_server.bootstrap,
            name=kafka_name,
            capture_url=proxies[0].url(database),
            apply_url=proxies[1].url(target_database),
            process_brokers=f"{kafka_server.host}:{kafka_server.proxy_port}",
        )
        await stack.enter_async_context(pipeline)
        yield pipeline, Parts(*proxies)


async def cut(proxy: Proxy) -> None:
    proxy.cut()


async def half_close_to_server(proxy: Proxy) -> None:
    proxy.half_close_to_server()


async def half_close_to_client(proxy: Proxy) -> None:
    proxy.half_close_to_client()
    await asyncio.sleep(BETWEEN_S)
    proxy.cut()  # a server that still takes the bytes may otherwise keep the line for minutes


async def refuse(proxy: Proxy) -> None:
    proxy.refuse()
    await asyncio.sleep(SILENCE_S)
    proxy.accept()


async def silence(proxy: Proxy) -> None:
    proxy.stall()
    await asyncio.sleep(SILENCE_S)
    proxy.flow()


async def silence_then_cut(proxy: Proxy) -> None:
    proxy.stall()
    await asyncio.sleep(SILENCE_S)
    proxy.cut()
    proxy.flow()


async def delay(proxy: Proxy) -> None:
    proxy.delay_s = DELAY_S
    await asyncio.sleep(SILENCE_S)
    proxy.delay_s = 0.0


TROUBLES: tuple[Callable[[Proxy], Any], ...] = (
    cut,
    half_close_to_server,
    half_close_to_client,
    refuse,
    silence,
    silence_then_cut,
    delay,
)


@pytest.mark.thorough
@pytest.mark.parametrize("part", ["source", "target", "kafka"])
async def test_every_trouble_on_one_line(proxied: tuple[Pipeline, Parts], shop_on: ShopOn, part: str) -> None:
    pipeline, parts = proxied
    proxy = parts.by_name[part]
    shop = await shop_on(pipeline)
    async with shop.at_work(seconds=10):
        for trouble in TROUBLES:
            await proxy.wait_bytes(proxy.bytes + TROUBLED_BYTES)
            await trouble(proxy)
            await asyncio.sleep(BETWEEN_S)
    await shop.judge()
    assert not pipeline.dead(), pipeline.tails()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["source", "target", "kafka"])
async def test_a_long_silence(proxied: tuple[Pipeline, Parts], shop_on: ShopOn, part: str) -> None:
    pipeline, parts = proxied
    proxy = parts.by_name[part]
    shop = await shop_on(pipeline)
    async with shop.at_work(seconds=LONG_SILENCE_S + 10):
        await proxy.wait_bytes(proxy.bytes + TROUBLED_BYTES)
        proxy.stall()
        await asyncio.sleep(LONG_SILENCE_S)
        proxy.cut()
        proxy.flow()
    await shop.judge(timeout_s=180)
    assert not pipeline.dead(), pipeline.tails()
