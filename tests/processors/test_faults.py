"""Bodies that raise, records that are none, truncates, resets."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from consumers.processors import Change, Changes, Context, Derived, Forwarded, Given, Input, Row, agent, map_
from consumers.processors.names import Names
from consumers.processors.operations import ask, parked_keys, reset_processor, wait_through
from consumers.processors.testing import derive
from consumers.testing import Log
from streamer.config import DeadLetterLimits
from streamer.errors import FatalError
from tests.harness import feeder as harness_feeder
from tests.harness.feeder import Feeder, Table
from tests.harness.processing import NAME, WAIT_S, config_of, folded, processing, records_of
from tests.processors.agents import doubled

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]


class Moody:
    """An agent that refuses a number until it is told not to; half of a refused change is yielded."""

    def __init__(self) -> None:
        self.refused = {7}

        @agent
        async def moody(changes: Changes) -> AsyncIterator[Derived]:
            async for change in changes:
                if change.after is None:
                    yield change.to()
                    continue
                yield change.to(
                    after=change.after, table="half" if change.after["n"] in self.refused else None
                )
                if change.after["n"] in self.refused:
                    raise ValueError(f"{change.after['n']} is not liked")

        self.agent = moody


async def fill(table: Table, numbers: range) -> None:
    for number in numbers:
        table.create({"id": number, "n": number}, lsn=100 + number)


def row(number: int, n: int | None = None) -> tuple[str, dict[str, int]]:
    return f'{{"id":{number}}}', {"id": number, "n": number if n is None else n}


async def test_a_body_that_raises_parks_its_key_and_the_rest_goes_on(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(10))
    table.update({"id": 7, "n": 70}, lsn=300)
    await feeder.flush()
    config, moody = config_of(feeder, [table.topic], tmp_path), Moody()
    expected = dict(row(n) for n in range(10) if n != 7)
    async with processing(config, moody.agent) as made:
        await made.rows(expected)
        await made.until(lambda: made.detail.get("parked") == 1, "the key to be parked")
        [parked] = await parked_keys(config, NAME)
        assert (parked.topic, parked.key, len(parked.items)) == (table.topic, b'{"id":7}', 2)
        assert (parked.items[0].code, parked.items[0].message) == ("ValueError", "7 is not liked")
        [letter] = [json.loads(r.value) for r in await records_of(made.brokers, f"{NAME}.dead_letters")
                    if json.loads(r.value)["topic"] == table.topic]  # fmt: skip
        assert letter["reason"] == {"code": "ValueError", "message": "7 is not liked"}
        assert (letter["action"], letter["payload"]["after"]) == ("parked", {"id": 7, "n": 7})

        assert await ask(config, NAME, "retry", [parked]) == 1  # not mended yet
        await made.until(lambda: made.detail.get("refused") == 2, "the second refusal")
    moody.refused.clear()
    async with processing(config, moody.agent) as made:  # what is parked outlives the process
        [parked] = await parked_keys(config, NAME)
        assert parked.items[0].attempts == 2
        await ask(config, NAME, "retry", [parked])
        records = await made.rows(expected | dict([row(7, 70)]))
        values = [json.loads(r.value)["after"]["n"] for r in records if r.key == b'{"id":7}' and r.value]
        assert values == [7, 70]  # in order
        assert await parked_keys(config, NAME) == []
        assert await records_of(made.brokers, f"{made.out}.half") == []  # nothing of a refused unit
        table.update({"id": 7, "n": 77}, lsn=400)
        await feeder.flush()
        await made.rows(expected | dict([row(7, 77)]))


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it says nothing")


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("caf\ud800 \0"), "ud800"), (Mute(), "Mute"), (SystemExit(), "SystemExit")],
)
def test_whatever_a_body_says_when_it_raises_its_key_is_parked(error: BaseException, said: str) -> None:
    def raising(row: Row) -> Row:
        raise error

    log = Log("shop")
    log.table("orders", {"id": "integer"}).create({"id": 1})
    with pytest.raises(AssertionError, match=re.escape(said)):
        derive(map_(raising), log)


async def test_a_discarded_key_goes_on_with_its_next_change(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(6, 9))
    await feeder.flush()
    config, moody = config_of(feeder, [table.topic], tmp_path), Moody()
    async with processing(config, moody.agent) as made:
        await made.rows(dict([row(6), row(8)]))
        await made.until(lambda: made.detail.get("parked") == 1, "the key to be parked")
        await ask(config, NAME, "discard", await parked_keys(config, NAME))
        await made.until(lambda: made.detail.get("parked") == 0, "the key to be free")
        table.update({"id": 7, "n": 71}, lsn=300)
        await feeder.flush()
        await made.rows(dict([row(6), row(7, 71), row(8)]))
        letters = [json.loads(r.value) for r in await records_of(made.brokers, f"{NAME}.dead_letters")]
        assert [x["action"] for x in letters if x["topic"] == table.topic] == ["parked", "discarded"]


async def test_too_many_refusals_stop_the_processor(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    for number in range(5):
        table.create({"id": number, "n": 7}, lsn=100 + number)
    await feeder.flush()
    limits = DeadLetterLimits(limit=1)
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, Moody().agent, limits=limits) as made:
        error = await made.fails()
    assert isinstance(error, FatalError)
    assert "2 keys are parked, the limit is 1" in str(error)
    assert "7 is not liked" in str(error)


async def test_what_does_not_decode_is_a_dead_letter(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(2))
    table.raw(b'{"id":5}', b"no event")
    await fill(table, range(2, 4))
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, Moody().agent) as made:
        await made.rows(dict(row(n) for n in range(4)))
        letters = [json.loads(r.value) for r in await records_of(made.brokers, f"{NAME}.dead_letters")]
        [letter] = [x for x in letters if x["topic"] == table.topic]
        assert (letter["reason"]["code"], letter["action"]) == ("undecodable", "refused")
        assert letter["payload_encoding"] == "base64"


async def test_aborted_inputs_are_not_read(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(3))
    await feeder.flush()
    aborted = AIOKafkaProducer(bootstrap_servers=feeder.brokers, transactional_id=f"{feeder.name}-aborted")
    await aborted.start()
    table.create({"id": 66, "n": 66}, lsn=500)
    async with asyncio.timeout(60):
        await aborted.begin_transaction()
        for topic, partition, key, value, _ in feeder.pending:
            await aborted.send_and_wait(topic, value, key=key, partition=partition)
        await aborted.abort_transaction()
        await aborted.stop()
    feeder.pending.clear()
    await fill(table, range(3, 5))
    await feeder.flush()
    async with processing(config_of(feeder, [table.topic], tmp_path), Moody().agent) as made:
        await made.rows(dict(row(n) for n in range(5)))


async def test_h05_a_truncate_reaches_the_rows_of_every_partition(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS, partitions=4)
    await fill(table, range(20))
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 20, "the rows")
        table.truncate(lsn=500)
        table.create({"id": 3, "n": 4}, lsn=501)
        table.create({"id": 99, "n": 1}, lsn=499)  # of before the truncate, in a partition that is behind
        await feeder.flush()
        records = await made.rows({'{"id":3}': {"id": 3, "n": 4, "twice": 8}})
        deletes = [json.loads(r.value) for r in records if r.value and json.loads(r.value)["op"] == "d"]
        assert len(deletes) >= 19
        assert {event["op"] for event in map(json.loads, filter(None, (r.value for r in records)))} == {
            "c",
            "d",
        }


async def test_h03_a_resets_floor_gives_up_rows_of_older_epochs(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(6))
    for number in range(3):
        table.read({"id": number, "n": 50}, lsn=10, epoch=2)
    table.floor(epoch=2)
    await feeder.flush()
    async with processing(config_of(feeder, [table.topic], tmp_path), Moody().agent) as made:
        await made.rows(dict(row(n, 50) for n in range(3)))


async def test_an_event_that_is_not_newer_is_dropped(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    table.create({"id": 1, "n": 1}, lsn=100)
    table.update({"id": 1, "n": 3}, lsn=300)
    table.update({"id": 1, "n": 2}, lsn=200)
    table.update({"id": 1, "n": 3}, lsn=300)
    table.delete({"id": 2}, lsn=300)
    table.create({"id": 2, "n": 2}, lsn=200)
    await feeder.flush()
    async with processing(config_of(feeder, [table.topic], tmp_path), Moody().agent) as made:
        await made.until(lambda: made.detail.get("dropped") == 3, "three that are dropped")
        await made.rows(dict([row(1, 3)]))


class Summed:
    """Two hops: n by parity. The sum of a group is at its key's task."""

    def columns(self, given: Given) -> None:
        return None

    def hops(self, given: Given) -> list[Any]:
        return [self, _Total()]

    def handle(self, record: Input, context: Context) -> None:
        assert isinstance(record, Change)
        before = json.loads(context.note) if context.note else None
        now = None if record.after is None else {"odd": record.after["n"] % 2, "n": record.after["n"]}
        for part, sign in ((before, -1), (now, 1)):
            if part is not None:
                context.forward(b'{"odd":%d}' % part["odd"], b"%d" % (sign * part["n"]))
        context.note = json.dumps(now).encode()


class _Total:
    def handle(self, record: Input, context: Context) -> None:
        assert isinstance(record, Forwarded)
        table = context.table("sums")
        total = int(table.get(record.key) or b"0") + int(record.value)
        table.put(record.key, b"%d" % total)
        context.emit(json.loads(record.key), {"total": total})


def sums(*rows: int) -> dict[str, dict[str, int]]:
    return {f'{{"odd":{odd}}}': {"odd": odd, "total": sum(n for n in rows if n % 2 == odd)} for odd in (0, 1)}


async def test_two_hops_keep_state_and_take_back(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(10))
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, Summed(), state="rocksdb") as made:
        await made.rows(sums(*range(10)))
    table.update({"id": 4, "n": 5}, lsn=300)
    table.delete({"id": 9}, lsn=301)
    await feeder.flush()
    async with processing(config, Summed(), state="rocksdb") as made:
        async with asyncio.timeout(WAIT_S):
            assert await wait_through(config, NAME)
        records = await records_of(made.brokers, made.out)  # what was there then has come out
        assert folded(records) == sums(0, 1, 2, 3, 5, 5, 6, 7, 8)
        table.truncate(lsn=400)
        await feeder.flush()
        await made.rows(sums())


async def test_derived_rows_have_the_commit_time_of_the_source(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through every hop, and after however long a wait: apply's delay, and ages, are told from it."""
    hour_ago_us = time.time_ns() // 1000 - 3_600_000_000
    table = await feeder.table("orders", COLUMNS)
    with monkeypatch.context() as patched:
        patched.setattr(harness_feeder, "_now_us", lambda: hour_ago_us)
        await fill(table, range(10))
        await feeder.flush()
    async with processing(config_of(feeder, [table.topic], tmp_path), Summed()) as made:
        records = await made.rows(sums(*range(10)))
    sources = [json.loads(record.value)["source"] for record in records if record.value]
    assert {source["ts_us"] for source in sources} == {hour_ago_us}


async def test_h19_what_a_later_hop_has_not_committed_is_not_through(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS, partitions=1)
    await fill(table, range(10))
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path, partitions=1)
    async with processing(config, Summed()) as made:
        await made.rows(sums(*range(10)))
        async with asyncio.timeout(WAIT_S):
            assert await wait_through(config, NAME)
    hop = Names(config.name, NAME, made.out).hop(1)
    async with AIOKafkaProducer(bootstrap_servers=feeder.brokers) as producer:  # as its first hop would
        await producer.send_and_wait(hop, b"100", b'{"odd":0}', partition=0, headers=[("us", b"1")])
    assert not await wait_through(config, NAME, stopped=lambda _: True)
    async with processing(config, Summed()):
        async with asyncio.timeout(WAIT_S):
            assert await wait_through(config, NAME)
    assert folded(await records_of(made.brokers, made.out)) == sums(*range(10), 100)


class Touchy(Summed):
    """Refuses the group of odd ones in its second hop, until told not to."""

    def __init__(self) -> None:
        self.calm = False

    def hops(self, given: Given) -> list[Any]:
        return [self, self.Second(self)]

    class Second(_Total):
        def __init__(self, owner: Touchy) -> None:
            self._owner = owner

        def handle(self, record: Input, context: Context) -> None:
            super().handle(record, context)
            if not self._owner.calm and record.key == b'{"odd":1}':
                raise ValueError("odd")


async def test_a_later_hop_parks_what_it_refuses(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(10))
    await feeder.flush()
    config, touchy = config_of(feeder, [table.topic], tmp_path), Touchy()
    async with processing(config, touchy) as made:
        await made.rows({'{"odd":0}': {"odd": 0, "total": 20}})
        await made.until(lambda: made.detail.get("parked") == 1, "the group to be parked")
        await made.until(lambda: not made.detail["lag_records"], "the others to be behind it")
        [parked] = await parked_keys(config, NAME)
        assert (parked.topic, len(parked.items)) == (f"{made.out}.__hop1", 5)
        touchy.calm = True
        await ask(config, NAME, "retry", [parked])
        await made.rows(sums(*range(10)))


@pytest.mark.thorough
async def test_a_reset_derives_everything_again(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("orders", COLUMNS)
    await fill(table, range(10))
    await feeder.flush()
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, Summed(), state="rocksdb") as made:
        await made.rows(sums(*range(10)))
        with pytest.raises(Exception, match="run"):
            await reset_processor(config, NAME)
    assert await reset_processor(config, NAME) == 2
    async with processing(config, Summed(), state="rocksdb") as made:
        await made.rows(sums(*range(10)))
        await made.until(lambda: made.detail.get("epoch") == 2 and not made.detail["lag_records"], "the end")
        events = [json.loads(r.value) for r in await records_of(made.brokers, made.out) if r.value]
        again = [e for e in events if e["source"]["epoch"] == 2]
        [floor] = [e for e in again if e["op"] == "m"]
        assert floor["source"]["schema_id"] in {e["source"]["schema_id"] for e in again if e["op"] != "m"}
        assert {e["after"]["odd"]: e["after"]["total"] for e in again if e["op"] != "m"} == {0: 20, 1: 25}
