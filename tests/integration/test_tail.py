"""`tailrace tail`: what it shows of a topic, from where to where, and of which keys."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from consumers.bounds import Bound, Kind, parse_bound, parse_time
from consumers.commands.tail import line_of, plain
from consumers.keys import WantedKey
from consumers.tail import Record, Wanted, tail
from streamer.errors import ConfigError
from tests.harness.feeder import Feeder, Table, config_text
from tests.harness.people import COLUMNS, drop, make

REPO = Path(__file__).parents[2]


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


async def people(feeder: Feeder, partitions: int = 2) -> Table:
    return await feeder.table("people", COLUMNS, partitions=partitions)


async def found(feeder: Feeder, topic: str, **wanted: Any) -> list[Record]:
    async with aclosing(tail(feeder.brokers, None, feeder.name, Wanted(topic, **wanted))) as records:
        return [record async for record in records]


def ids(records: list[Record]) -> list[int]:
    return [orjson.loads(record.key or b"{}")["id"] for record in records]


async def test_without_a_place_the_last_ten_of_all_partitions(feeder: Feeder) -> None:
    table = await people(feeder)
    for n in range(30):
        make(table, n, lsn=100 + n)
        await feeder.flush()
    assert ids(await found(feeder, table.topic)) == list(range(20, 30))
    assert ids(await found(feeder, table.topic, number=3)) == [27, 28, 29]


async def test_from_and_to_by_offset_time_and_words(feeder: Feeder) -> None:
    table = await people(feeder, partitions=1)
    make(table, *range(5), lsn=100)
    await feeder.flush()
    records = await found(feeder, table.topic, from_=Bound(Kind.START))
    make(table, *range(5, 10), lsn=200)
    await feeder.flush()
    last = await found(feeder, table.topic, number=5)
    assert last[0].timestamp > records[-1].timestamp, "a commit of Kafka lies between"
    at = Bound(Kind.TIME, last[0].timestamp)
    assert ids(await found(feeder, table.topic, from_=at)) == [5, 6, 7, 8, 9]
    assert ids(await found(feeder, table.topic, from_=Bound(Kind.START), to=at)) == [0, 1, 2, 3, 4]
    assert ids(await found(feeder, table.topic, from_=Bound(Kind.OFFSET, 2), to=Bound(Kind.OFFSET, 4))) == [
        2,
        3,
    ]
    assert ids(await found(feeder, table.topic, from_=Bound(Kind.START), number=2)) == [0, 1]
    assert ids(await found(feeder, table.topic, to=Bound(Kind.OFFSET, 4), number=2)) == [2, 3]
    assert await found(feeder, table.topic, from_=Bound(Kind.END)) == []


@pytest.mark.thorough
async def test_a_key_as_in_kafka_or_its_value_alone(feeder: Feeder) -> None:
    """From the end back through a partition that has many others, and only through its own."""
    table = await people(feeder)
    for lsn in range(100, 112):
        make(table, 7, lsn=lsn)
    make(table, *range(1000, 2500), lsn=200)
    await feeder.flush()
    for text in ("7", '{"id":7}', '{ "id": 7 }'):
        records = await found(feeder, table.topic, key=WantedKey(text))
        assert [plain(record)["value"]["source"]["commit_lsn"] for record in records] == [*range(102, 112)]
    assert await found(feeder, table.topic, key=WantedKey("8")) == []
    only = table.partition_of({"id": 7})
    assert await found(feeder, table.topic, key=WantedKey("7"), partition=1 - only) == []


def test_the_bytes_of_a_key_are_known_where_there_is_no_doubt() -> None:
    assert WantedKey("7").bytes_like(b'{"id":1}') == b'{"id":7}'
    assert WantedKey("x7").bytes_like(b'{"id":"a"}') == b'{"id":"x7"}'
    assert WantedKey('{"b":2,"a":"x"}').bytes_like(b'{"a":"y","b":1}') == b'{"a":"x","b":2}'
    for text, sample in (
        ("7.0", b'{"id":1}'),
        ("é", b'{"id":"a"}'),
        ('"7"', b'{"id":"a"}'),
        ("7", b'{"a":1,"b":2}'),
        ('{"a":1}', b'{"a":1,"b":2}'),
        ("true", b'{"id":true}'),
        ("7", b"no json"),
    ):
        assert WantedKey(text).bytes_like(sample) is None


async def test_only_what_is_committed(feeder: Feeder) -> None:
    table = await people(feeder, partitions=1)
    make(table, 1, lsn=100)
    await feeder.flush()
    producer = AIOKafkaProducer(bootstrap_servers=feeder.brokers, transactional_id=f"{feeder.name}-other")
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(table.topic, b"{}", key=b'{"id":2}', partition=0)
        assert ids(await found(feeder, table.topic, from_=Bound(Kind.START))) == [1]
        await producer.abort_transaction()
    finally:
        await producer.stop()
    make(table, 3, lsn=300)
    await feeder.flush()
    assert ids(await found(feeder, table.topic, from_=Bound(Kind.START))) == [1, 3]


async def test_our_own_topics_and_a_wrong_name(feeder: Feeder) -> None:
    table = await people(feeder)
    make(table, 1, lsn=100)
    await feeder.flush()
    (record,) = await found(feeder, "__schemas")
    assert record.topic == f"{feeder.name}.__schemas"
    shown = plain(record)
    assert shown["value"]["table"] == "people"
    assert table.record.id in line_of(record, 0)
    with pytest.raises(ConfigError, match=re.escape(f"did you mean '{table.topic}'?")):
        await found(feeder, table.topic + "s")
    with pytest.raises(ConfigError, match="it has 2: 0 to 1"):
        await found(feeder, table.topic, partition=2)


async def test_lines_for_people(feeder: Feeder) -> None:
    table = await people(feeder, partitions=1)
    table.create({"id": 1, "name": "Ann Lee", "note": None}, 0x16B374D848, 3)
    old = {"id": 1, "name": "Ann Lee", "note": None}
    table.update({"id": 1, "name": "Bob", "note": None}, 0x16B374D900, old=old)
    drop(table, 1, 0x16B374DA00)
    table.truncate(0x16B374DB00)
    table.raw(b"\xff", b"no \x1b[31mjson")
    await feeder.flush()
    records = await found(feeder, table.topic)
    texts = [line_of(record, 0) for record in records]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  \[0\]@0  c  id=1  1:16/B374D848.3  ", texts[0])
    assert texts[0].endswith('id=1 name="Ann Lee" note=null')
    assert texts[1].endswith("u  id=1  1:16/B374D900.0  name=Bob"), (
        "only what has changed, where that is known"
    )
    assert texts[2].endswith("d  id=1  1:16/B374DA00.0  was id=1")
    assert texts[3].endswith("-  id=1  tombstone")
    assert texts[4].endswith("t  -  1:16/B374DB00.0  truncate")
    assert "no JSON: no  [31mjson" in texts[5], "no escape reaches the terminal"
    assert len(line_of(records[0], 60)) == 60
    assert plain(records[3])["value"] is None
    assert plain(records[5])["key_base64"] == "/w=="


def test_a_place_that_is_none_says_what_one_is() -> None:
    assert parse_bound("10m", "--from", 1_000_000) == Bound(Kind.TIME, 400_000)
    assert parse_bound("1970-01-02", "--from", 0) == Bound(Kind.TIME, 86_400_000)
    assert parse_bound("1970-01-01T01:00+01:00", "--from", 0) == Bound(Kind.TIME, 0)
    assert parse_bound("17", "--to", 0) == Bound(Kind.OFFSET, 17)
    for text in ("yesterday", "10 parsecs", "-5", "2026-13-01"):
        with pytest.raises(ConfigError, match=r"--from .* is no place in a log(.|\n)*write start, end"):
            parse_bound(text, "--from", 0)
        with pytest.raises(ConfigError, match=r"--from-time .* is no time(.|\n)*write a time \("):
            parse_time(text, "--from-time", 0)


async def test_the_command_follows_until_ctrl_c(feeder: Feeder, tmp_path: Path) -> None:
    table = await people(feeder)
    make(table, 1, lsn=100)
    await feeder.flush()
    config = tmp_path / "tailrace.yaml"
    config.write_text(config_text(feeder, "postgresql://nobody@localhost/none"))
    words = ["tail", table.topic, "--follow", "--json", "-c", str(config)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "consumers", *words, cwd=REPO, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = orjson.loads(await process.stdout.readline())
            make(table, 2, lsn=200)
            await feeder.flush()
            second = orjson.loads(await process.stdout.readline())
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert [first["key"], second["key"]] == [{"id": 1}, {"id": 2}]


@pytest.mark.thorough
async def test_the_command_with_a_key_a_place_and_a_format_and_its_reader_gone(
    feeder: Feeder, tmp_path: Path
) -> None:
    """`tailrace tail ... -k 7 --from start --format raw`; and `tailrace tail ... | head` is no error."""
    table = await people(feeder)
    make(table, *range(5000), lsn=100)
    make(table, 7, lsn=200)
    await feeder.flush()
    config = tmp_path / "tailrace.yaml"
    config.write_text(config_text(feeder, "postgresql://nobody@localhost/none"))
    words = [sys.executable, "-m", "consumers", "tail", table.topic, "--from", "start", "-c", str(config)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *words, "-k", "7", "--format", "raw", cwd=REPO, stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    lsns = [orjson.loads(line)["source"]["commit_lsn"] for line in out.splitlines()]
    assert (process.returncode, lsns, err) == (0, [100, 200], b"")
    process = await asyncio.create_subprocess_exec(*words, "-k", "x7", cwd=REPO, stdout=pipe, stderr=pipe)
    _, err = await process.communicate()
    assert (process.returncode, b"an integer was expected, not 'x7'" in err) == (64, True), err
    ours, theirs = os.pipe()
    process = await asyncio.create_subprocess_exec(*words, cwd=REPO, stdout=theirs, stderr=pipe)
    os.close(theirs)
    assert await asyncio.to_thread(os.read, ours, 100)
    os.close(ours)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
