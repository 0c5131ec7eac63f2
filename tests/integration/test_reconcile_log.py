"""What the fence reads of Kafka (H18): positions that are committed, and ends that nothing hides."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from consumers.reconcile.fence import Log, NotPassed, opened_log
from streamer.changes.position import Stage
from streamer.config import Config, parse
from tests.harness.publisher import ZERO, Bench, at

TEXT = """
name: {name}
kafka: {{brokers: "{brokers}"}}
sources: {{shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"public.*": {{}}}}}}}}
"""


def config_of(bench: Bench) -> Config:
    return parse(TEXT.format(name=bench.name, brokers=bench.brokers), Path("tailrace.yaml"), environ={})


async def becomes(log: Log, lsn: int) -> None:
    async with asyncio.timeout(60):
        while await log.position() != lsn:
            pass


async def test_h18_only_a_committed_position_of_the_stream_counts(bench: Bench) -> None:
    """While a first copy is published, the position is that of the stream that comes behind it."""
    publisher = await bench.open()
    await publisher.flush(replace(ZERO, stage=Stage.SNAPSHOT, lsn=500))
    async with opened_log(config_of(bench), bench.brokers, "shop") as log:
        for _ in range(3):
            assert await log.position() == 0
        await publisher.flush(at(600))
        await becomes(log, 600)


async def test_h18_positions_before_the_last_one_do_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reset the source may be another server, whose LSNs are lower."""
    monkeypatch.setattr("consumers.reconcile.fence.POSITIONS_AT_ONCE", 1)
    publisher = await bench.open()
    for lsn in (90_000, 90_001, 90_002):
        await publisher.flush(at(lsn))
    async with opened_log(config_of(bench), bench.brokers, "shop") as log:
        found = [await log.position()]
        async with asyncio.timeout(60):
            while found[-1] != 90_002:
                found.append(await log.position())
    assert set(found) == {0, 90_002}


async def test_h18_an_open_transaction_does_not_hide_a_topics_end(bench: Bench) -> None:
    """A reader of committed records sees the end in front of it, and would let the fence pass too early."""
    publisher = await bench.open()
    await publisher.flush(at(600))
    async with (
        opened_log(config_of(bench), bench.brokers, "shop") as log,
        AIOKafkaProducer(bootstrap_servers=bench.brokers, transactional_id=f"{bench.name}-open") as producer,
    ):
        assert set((await log.ends(bench.topic)).values()) == {0}
        await producer.begin_transaction()
        await producer.send_and_wait(bench.topic, b"v", key=b"k", partition=1)
        assert (await log.ends(bench.topic))[1] == 1
        await producer.abort_transaction()
        async with asyncio.timeout(60):
            while (await log.ends(bench.topic))[1] != 2:  # the marker, which no record reaches
                pass


async def test_what_was_never_captured_is_named(bench: Bench) -> None:
    with pytest.raises(NotPassed, match="source 'shop' was never captured"):
        async with opened_log(config_of(bench), bench.brokers, "shop"):
            pass
    publisher = await bench.open()
    await publisher.flush(at(600))
    async with opened_log(config_of(bench), bench.brokers, "shop") as log:
        with pytest.raises(NotPassed, match="has published nothing of the table"):
            await log.ends(f"{bench.name}.shop.public.other")
