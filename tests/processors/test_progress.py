"""Work and standstill: what is told, committed and read meanwhile, and what ends a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from consumers.processors import Changes, Derived, agent, watch, worker
from consumers.processors.membership import Membership
from consumers.processors.names import Names
from consumers.processors.task import Task
from consumers.processors.watch import StandsStill
from streamer.kafka import admin, reader
from tests.harness import feeder as harness_feeder
from tests.harness.capture import until
from tests.harness.feeder import WAIT_S, Feeder
from tests.harness.processing import NAME, config_of, processing, records_of
from tests.processors.agents import doubled
from tests.processors.orders import COLUMNS, counted, write


@agent
async def stuck(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        if change.key["id"] == 2:
            await asyncio.Event().wait()
        yield change.to(after={"id": change.key["id"]})


async def test_an_agent_that_stands_still_ends_the_worker(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, stuck, stand_still_s=0.6) as made:
        error = await made.fails()
    assert isinstance(error, StandsStill)
    assert f"{orders.topic}[0]" in str(error)
    assert "4 records wait" in str(error) or "5 records wait" in str(error)


async def test_a_group_that_does_not_settle_ends_the_worker(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "REVOKE_S", 0.1)
    monkeypatch.setattr(watch, "SLACK_S", 0.1)
    monkeypatch.setattr(Membership, "assigned", lambda *_: None)  # nobody says what is whose
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, doubled, stand_still_s=0.6) as made:
        error = await made.fails()
    assert isinstance(error, StandsStill)
    assert "it has not been settled who has which task" in str(error)


@agent
async def slow(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        await asyncio.sleep(0.2)
        yield change.to(after=change.after)


async def test_what_a_slow_body_has_done_is_committed_while_it_goes_on(
    feeder: Feeder, tmp_path: Path
) -> None:
    """Nobody waits for a batch of it, and who looks at offsets sees it move."""
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(30), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, slow) as made:
        await made.until(lambda: made.detail.get("derived", 0) >= 2, "two rows")
        assert made.detail["done"] < 20
        [[number, offset, waiting]] = made.detail["shares"]
        assert (number, offset > 0, waiting > 0) == (0, True, True)


async def test_a_reader_of_out_does_not_wait_for_all_that_is_there(feeder: Feeder, tmp_path: Path) -> None:
    """The first rows come out while most of what was fetched waits."""
    seen = asyncio.Event()

    @agent
    async def steady(changes: Changes) -> AsyncIterator[Derived]:
        async for change in changes:
            await asyncio.sleep(0.002)  # what it does takes so long
            if change.key["id"] == 200:
                await seen.wait()
            yield change.to(after=change.after)

    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(400), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, steady, stand_still_s=WAIT_S) as made:
        await made.until(lambda: made.detail.get("derived", 0) > 0, "the first rows")
        assert await records_of(feeder.brokers, made.out)
        seen.set()


async def test_a_worker_tells_its_rate_and_how_late_rows_come_out(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("tasks") == [0], "its task, with nothing to do")
        assert (made.detail["latency_ms"], made.detail["rate"], made.detail["derived_rate"]) == (None, 0, 0)
        monkeypatch.setattr(harness_feeder, "_now_us", lambda: time.time_ns() // 1000 - 600_000_000)
        await write(feeder, orders, range(20), 100)
        await made.until(lambda: made.detail["derived"] == 20, "the rows")
        assert 600_000 <= made.detail["latency_ms"] < 660_000
        assert made.detail["rate"] > 0
        assert made.detail["derived_rate"] > 0


@agent
async def slow_at_deletes(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        if change.after is None:
            await asyncio.sleep(0.03)  # what it does takes so long
        yield change.to(after=change.after)


@pytest.mark.thorough
async def test_a_truncate_of_many_rows_is_work_and_no_hour_late(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record, and the rows that it covers take longer than a worker may stand still."""
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    with monkeypatch.context() as patched:
        patched.setattr(harness_feeder, "_now_us", lambda: time.time_ns() // 1000 - 3_600_000_000)
        await write(feeder, orders, range(120), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, slow_at_deletes, stand_still_s=2.0) as made:
        await made.until(lambda: made.detail.get("done") == 120, "the rows")
        await made.until(lambda: made.detail["lag_records"] == 0, "the end")
        orders.truncate(300)
        await feeder.flush()
        await made.until(lambda: made.detail["lag_records"] > 0, "the truncate")
        assert made.detail["lag_s"] < 60.0
        await made.until(lambda: made.detail["done"] == 240, "the deletes")


@agent
async def in_order(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        ORDER.append(change.topic)
        yield change.to(after=change.after)


ORDER: list[str] = []


async def test_a_long_input_lets_the_others_have_their_turn(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ROUND_RECORDS", 10)
    tables = [await feeder.table(name, COLUMNS, partitions=1) for name in ("a", "b", "c")]
    for orders in tables:
        await write(feeder, orders, range(200), 100)
    config = config_of(feeder, [orders.topic for orders in tables], tmp_path, partitions=1)
    ORDER.clear()
    async with processing(config, in_order) as made:
        await made.until(lambda: made.detail.get("done") == 600, "the rows")
    rounds = [ORDER[at] for at in range(0, 600, 10)]
    assert max(len(list(turn)) for _, turn in groupby(rounds)) <= 10


async def test_work_that_is_cancelled_without_a_stop_is_an_error(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gives_up(self: Task, batches: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(Task, "work", gives_up)
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(1), 100)
    async with processing(config_of(feeder, [orders.topic], tmp_path), counted) as made:
        assert "nobody had asked for a stop" in str(await made.fails())


async def test_an_idle_processor_does_not_stand_still(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 4, "the rows")
    async with processing(config, doubled, stand_still_s=0.5) as made:
        await made.until(lambda: made.detail.get("tasks") == [0, 1], "its tasks")
        await asyncio.wait([made.task], timeout=1.2)  # more than twice the limit
        assert not made.task.done()
        group = Names(config.name, NAME, made.out).group
        places = [TopicPartition(orders.topic, number) for number in (0, 1)]
        async with admin(feeder.brokers, None) as client, reader(feeder.brokers, None, committed=True) as log:
            ends = await log.end_offsets(places)

            async def followed() -> bool:  # its offsets have, for lag tools
                offsets = await client.list_consumer_group_offsets(group)
                found = {place: offsets[place].offset for place in places if place in offsets}
                return found == ends and f"{made.out}.__floors" in {place.topic for place in offsets}

            await until(followed)
