"""Users' agents between two topics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import faust
import pytest

from consumers.processors import Change, Changes, Derived, Given, agent, map_, table
from consumers.processors.context import Row
from consumers.processors.rehearsal import Rehearsal
from consumers.processors.schemas import InputSchemas
from consumers.testing import Log
from streamer.errors import FatalError
from tests.harness.feeder import Feeder
from tests.harness.processing import NAME, config_of, processing
from tests.processors.agents import doubled, large

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]


async def test_a_stream_derives_rows(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    for number in range(10):
        table.create({"id": number, "n": number}, lsn=100 + number)
    table.update({"id": 3, "n": 30}, lsn=200)
    table.delete({"id": 4}, lsn=201)
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, doubled) as made:
        expected = {f'{{"id":{n}}}': {"id": n, "n": n, "twice": 2 * n} for n in range(10) if n not in (3, 4)}
        expected['{"id":3}'] = {"id": 3, "n": 30, "twice": 60}
        records = await made.rows(expected)
        assert len(records) == 13  # 10 creates, an update, a delete and its tombstone
        for record in records:
            assert record.partition == table.partition_of({"id": int(record.key[6:-1])})  # joins the input


async def test_a_function_takes_back_the_rows_it_gives_no_more(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    table.create({"id": 1, "n": 10}, lsn=1)
    table.create({"id": 2, "n": 11}, lsn=2)
    table.create({"id": 3, "n": 3}, lsn=3)
    table.update({"id": 1, "n": 9}, lsn=4)
    table.update({"id": 3, "n": 33}, lsn=5)
    table.delete({"id": 2}, lsn=6)
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, large) as made:
        await made.rows({'{"id":3}': {"id": 3, "n": 33}})


class Odd(BaseException):
    """No Exception."""


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(7),
        asyncio.CancelledError("given up"),
        MemoryError("none"),
        KeyboardInterrupt(),
        GeneratorExit(),
        Odd("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_body_raises_parks_the_row_and_nothing_else(error: BaseException) -> None:
    """A library that calls sys.exit, or gives a request up by itself, must not end the worker each time."""

    @agent
    async def own(change: Change) -> Row | None:
        if change.key["id"] == 1:
            raise error
        return change.after

    def body(row: Row) -> Row:
        if row["id"] == 1:
            raise error
        return row

    log = Log("shop")
    orders = log.table("orders", {"id": "integer"})
    for number in range(3):
        orders.create({"id": number})
    topic = "shop.public.orders"
    schemas = {topic: list(log.schemas.values())}
    for definition in (own, map_(body)):
        rehearsal = Rehearsal(
            definition, Given("made", (topic,), "out", (), schemas), partitions=log.partitions
        )
        records = [record for records in log.records.values() for record in records]
        sent = [one for record in records for one in await rehearsal.handle(record)]
        await rehearsal.close()
        reasons = [
            one.event["reason"]["code"] for one in sent if one.event and one.topic == rehearsal.dead_letters
        ]
        assert reasons == [type(error).__name__]
        assert len(sent) == 3


@pytest.mark.parametrize("error", [SystemExit(0), asyncio.CancelledError()], ids=["exit", "cancelled"])
async def test_a_body_that_gives_up_before_its_first_change_says_so(error: BaseException) -> None:
    @agent
    async def own(changes: Changes) -> AsyncIterator[Derived]:
        if error is not None:
            raise error
        async for change in changes:
            yield change.to(after=change.after)

    log = Log("shop")
    log.table("orders", {"id": "integer"}).create({"id": 1})
    given = Given("made", ("shop.public.orders",), "out", (), {})
    rehearsal = Rehearsal(own, given, partitions=log.partitions)
    [record] = [record for records in log.records.values() for record in records]
    with pytest.raises(FatalError, match=f"raised {type(error).__name__} with no change in hand"):
        await rehearsal.handle(record)
    await rehearsal.close()


@agent
async def sorted_out(changes: Changes) -> AsyncIterator[Derived | list[Derived]]:
    """A topic for each parity, and one row for all keyed by `n`."""
    async for change in changes:
        event = faust.current_event()
        assert event is not None
        assert event.value is change
        assert change.source["table"] == "orders"
        if change.after is not None:
            parity = "odd" if change.after["n"] % 2 else "even"
            yield [
                change.to(after=change.after),
                change.to(after={"p": parity}, key=change.key, table=parity),
            ]


async def test_rows_go_to_topics_of_their_own_and_by_other_keys(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)  # so a stream's rows have any key
    for number in range(4):
        orders.create({"id": number, "n": 10 + number}, lsn=100 + number)
    await feeder.flush()
    config = config_of(feeder, [orders.topic], tmp_path, key=["n"])
    async with processing(config, sorted_out) as made:
        await made.rows({f'{{"n":{10 + n}}}': {"id": n, "n": 10 + n} for n in range(4)})
        for parity in (0, 1):
            name = ("even", "odd")[parity]
            rows = {f'{{"id":{n}}}': {"id": n, "p": name} for n in range(4) if n % 2 == parity}
            [record, *_] = await made.rows(rows, f"{made.out}.{name}")
            assert json.loads(record.value)["source"]["table"] == name


@agent
async def running(changes: Changes) -> AsyncIterator[Derived]:
    """A total for each task, in its table; a refused change leaves none of its writes."""
    async for change in changes:
        assert change.after is not None
        totals = table("totals")
        total = int(totals.get(b"all") or b"0") + change.after["n"]
        totals.put(b"all", b"%d" % total)
        if change.after["n"] == 5:
            raise ValueError("five")
        yield change.to(after={"total": total})


async def test_a_refused_change_leaves_nothing_in_the_tables(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    for number in range(1, 8):
        orders.create({"id": number, "n": number}, lsn=100 + number)
    await feeder.flush()
    async with processing(config_of(feeder, [orders.topic], tmp_path), running) as made:
        totals = {1: 1, 2: 3, 3: 6, 4: 10, 6: 16, 7: 23}
        await made.rows({f'{{"id":{n}}}': {"id": n, "total": total} for n, total in totals.items()})


async def test_columns_that_come_while_it_runs_keep_their_types(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, agent(lambda change: change.after)) as made:
        await made.until(lambda: made.detail.get("tasks") == [0, 1], "to run, with nothing to read")
        orders.create({"id": 1, "n": 1}, lsn=1)
        await feeder.flush()
        await made.rows({'{"id":1}': {"id": 1, "n": 1}})
        wider = await feeder.table("orders", [*COLUMNS, ("price", "numeric(8,2)", "numeric")])
        wider.create({"id": 2, "n": 2, "price": "1.50"}, lsn=2)
        await feeder.flush()
        await made.rows({'{"id":1}': {"id": 1, "n": 1}, '{"id":2}': {"id": 2, "n": 2, "price": "1.50"}})
        assert made.detail["inferred"] == {}
        known = InputSchemas(config, NAME, [])
        await known.read()
        types = [{column.name: column.type for column in record.columns} for record in known.own]
        assert types == [
            {"id": "integer", "n": "integer"},
            {"id": "integer", "n": "integer", "price": "numeric(8,2)"},
        ]
