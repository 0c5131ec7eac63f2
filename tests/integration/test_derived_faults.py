"""Workers of processors killed, joined and stopped under load; `make crash-process ROUNDS=50` has many."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from streamer.errors import TailraceError
from streamer.kafka import admin, offset_ranges
from streamer.publisher.topics import describe
from streamer.sandbox import Sandbox
from tests.crash.process.run import ProcessRun
from tests.harness.deriving import Deriving
from tests.harness.shop import Shop
from tests.harness.starter import Starter
from tests.processors.derivations import OF_THE_SHOP, OTHERS

SEED = 11
BOUNCES = 10
GOES_ON_S = 30.0  # after the broker is back
POLL_S = 0.1


@pytest.mark.thorough
async def test_workers_killed_and_joined_by_a_second(
    tmp_path: Path, servers: Sandbox, starter: Starter
) -> None:
    victims, helpers = ["worker", "second"], ["by_customer", "named"]
    run = ProcessRun(tmp_path, servers, seed=SEED, victims=victims, helpers=helpers, starter=starter)
    score = await run.run(2)
    assert score.ok, "\n".join([str(score), *score.notes])
    assert set(score.kills) == {"worker", "second"}
    assert not score.gave_up


@pytest.mark.slow
@pytest.mark.parametrize("helpers", [OF_THE_SHOP, OTHERS], ids=["copied", "others"])
async def test_every_helper_with_every_part_of_the_way_killed(
    tmp_path: Path, servers: Sandbox, starter: Starter, helpers: tuple[str, ...]
) -> None:
    score = await ProcessRun(tmp_path, servers, seed=SEED, helpers=helpers, starter=starter).run(6)
    assert score.ok, "\n".join([str(score), *score.notes])


@pytest.mark.slow
async def test_the_broker_bounced_ten_times_under_load(
    tmp_path: Path, servers: Sandbox, starter: Starter
) -> None:
    """The processor goes on within 30 s each time, and nothing counts twice."""
    kafka = servers.kafka
    async with Deriving(
        tmp_path,
        helpers=["by_customer"],
        source_url=servers.postgres[0].url,
        target_url=servers.postgres[1].url,
        brokers=kafka.bootstrap,
        name="bounced",
    ) as pipeline:
        pipeline.starter = starter
        shop = Shop(pipeline.source_url, SEED)
        await shop.open()
        pipeline.start_all()
        await pipeline.equal_to_queries()
        pipeline.supervise()
        load = asyncio.create_task(shop.work_for(3600, 0.01), name="load")
        try:
            for number in range(BOUNCES):
                await asyncio.to_thread(kafka.stop if number % 2 else kafka.kill)
                await asyncio.to_thread(kafka.start)
                back_s = time.monotonic()
                stood = await derived_events(pipeline)
                while await derived_events(pipeline) <= stood:
                    assert time.monotonic() - back_s < GOES_ON_S, pipeline.tails()
                    await asyncio.sleep(POLL_S)
        finally:
            load.cancel()
            await asyncio.wait([load])
        await pipeline.equal_to_queries(fenced=True)


async def derived_events(pipeline: Deriving) -> int:
    """As offsets in `out` count them; as soon as Kafka answers."""
    out = pipeline.out("by_customer")
    while True:
        try:
            async with admin(pipeline.brokers, None) as client:
                count = (await describe(client, [out]))[out]
            places = [TopicPartition(out, number) for number in range(count)]
            return sum(end for _, end in (await offset_ranges(pipeline.brokers, None, places)).values())
        except TailraceError:
            await asyncio.sleep(POLL_S)
