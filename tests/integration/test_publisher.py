"""The publisher against a real Kafka: flushes, order, sources, limits, and a Kafka that is silent."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from zlib import crc32

import orjson
import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import PolicyViolationError

from streamer.errors import ConfigError, KafkaUnavailable
from streamer.kafka import admin
from streamer.publisher import OversizeError, ensure_topic, topics
from streamer.publisher.topics import describe
from streamer.sandbox import KafkaServer
from tests.harness.proxy import Proxy
from tests.harness.publisher import CLOSE_LIMIT_S, Bench, Settings, at, key
from tests.harness.tiers import corners


async def test_a_flush_carries_rows_and_position_and_survives_a_restart(bench: Bench) -> None:
    publisher = await bench.open()
    orders = publisher.topic(bench.topic)
    orders.append(key(1), b'{"n":1}')
    orders.append(key(1), None)
    orders.append(None, b'{"op":"t"}')
    assert publisher.waiting_records == 3
    written = await publisher.flush(at(200))
    assert (written.lsn, written.flush, written.number) == (200, 1, 0)
    assert publisher.waiting_bytes == publisher.waiting_records == publisher.in_flight_bytes == 0
    await publisher.close()

    records = await bench.records(bench.topic)
    place = crc32(key(1)) % 4
    assert [(r.partition, r.value) for r in records if r.key == key(1)] == [
        (place, b'{"n":1}'),
        (place, None),
    ]
    assert [(r.partition, r.value) for r in records if r.key is None] == [(0, b'{"op":"t"}')]

    again = bench.publisher()
    await again.start()
    loaded = await again.load()
    assert loaded.position == written
    assert loaded.topics[bench.topic].partitions == 4
    await again.ensure_topics([bench.topic])
    assert (await again.flush(at(300))).flush == 2  # an idle advance has no rows
    assert await again.findings() == []


async def test_what_is_appended_after_flush_was_called_belongs_to_the_next(bench: Bench) -> None:
    publisher = await bench.open()
    orders = publisher.topic(bench.topic)
    orders.append(key(1), b"first")
    flush = publisher.flush(at(200))
    orders.append(key(2), b"second")
    await flush
    assert await bench.values() == [b"first"]
    assert publisher.waiting_records == 1
    await publisher.flush(at(300))
    assert sorted(await bench.values()) == [b"first", b"second"]


async def test_a_hundred_thousand_records_keep_their_order_by_key(bench: Bench) -> None:
    publisher = await bench.open(Settings(max_message_bytes=4 * 2**20))
    orders = publisher.topic(bench.topic)
    for number in range(100_000):
        orders.append(key(number % 5_000), b'{"n":%d,"pad":"%b"}' % (number, b"x" * 100))
    assert publisher.waiting_bytes < 8 * 2**20  # full batches are compressed while they wait
    await publisher.flush(at(200))
    last: dict[bytes, int] = {}
    count = 0
    for record in await bench.records(bench.topic):
        assert record.key is not None
        assert record.value is not None
        number = orjson.loads(record.value)["n"]
        assert record.partition == crc32(record.key) % 4
        assert number > last.get(record.key, -1)
        last[record.key] = number
        count += 1
    assert count == 100_000


@pytest.mark.parametrize("compression", corners(["none", "gzip", "snappy", "lz4", "zstd"], "zstd"))
async def test_every_compression_can_be_read(bench: Bench, compression: str) -> None:
    publisher = await bench.open(Settings(compression=compression))
    values = [b"%d " % n * 200 for n in range(5)]
    for number, value in enumerate(values):
        publisher.topic(bench.topic).append(key(number), value)
    await publisher.flush(at(200))
    assert sorted(await bench.values()) == sorted(values)


async def test_two_ids_in_turn_keep_each_partitions_order(bench: Bench) -> None:
    publisher = await bench.open()
    orders = publisher.topic(bench.topic)
    for number in range(30):
        orders.append(key(7), b"%d" % number)
        await publisher.flush(at(200 + number))
    assert [int(value) for value in await bench.values()] == list(range(30))


async def test_sources_have_a_number_each_and_keep_it(bench: Bench) -> None:
    numbers = []
    for source in ("shop", "game", "shop", "game"):
        publisher = await bench.open(source=source)
        await publisher.flush(replace(at(200), source=source))
        numbers.append(publisher.number)
        await publisher.close()
    assert numbers == [0, 1, 0, 1]


async def test_a_row_above_the_limit_is_refused_by_name(bench: Bench) -> None:
    publisher = await bench.open(Settings(max_message_bytes=100_000))
    orders = publisher.topic(bench.topic)
    orders.append(key(1), b"x" * 60_000)  # above half of the limit: a batch of its own
    with pytest.raises(OversizeError) as caught:
        orders.append(key(2), b"x" * 100_000)
    for part in (bench.topic, '{"id":2}', "100,008", "kafka.topics.max_message", "`exclude`"):
        assert part in str(caught.value)
    assert publisher.waiting_records == 1
    orders.append(key(2), os.urandom(99_800))
    await publisher.flush(at(200))
    assert len(await bench.values()) == 2


async def test_a_topic_with_a_lower_limit_than_the_config_is_refused(bench: Bench) -> None:
    async with admin(bench.brokers, None) as client:
        await ensure_topic(client, bench.topic, 4, {"max.message.bytes": "5000"})
    with pytest.raises(ConfigError, match=r"max.message.bytes is 5,000, kafka.topics.max_message says"):
        await bench.open()


async def test_a_topic_made_by_two_at_once_is_there_once(bench: Bench) -> None:
    async with admin(bench.brokers, None) as one, admin(bench.brokers, None) as two:
        await asyncio.gather(*(ensure_topic(a, bench.topic, 4, {}) for a in (one, two, one, two)))
        assert (await describe(one))[bench.topic] == 4


@pytest.mark.parametrize("limit", [topics.REQUEST_RECORDS, 50_000])
async def test_topics_of_thousands_of_tables_are_made_in_requests_that_kafka_takes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """More than 10,000 records at once are refused for all of them: what the limit is for."""
    monkeypatch.setattr(topics, "REQUEST_RECORDS", limit)
    config = topics.data_config(Settings())
    many = [NewTopic(f"{bench.name}.{n}", 4, 1, topic_configs=config) for n in range(1_100)]
    async with admin(bench.brokers, None) as client:
        answers = topics.create_topics(client, many, validate_only=True)
        codes = {name: code async for name, code, _ in answers}
    assert codes.keys() == {topic.name for topic in many}
    assert {*codes.values()} == ({0} if limit < 10_000 else {PolicyViolationError.errno})


async def test_topics_are_made_in_several_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "REQUEST_RECORDS", 5)
    wanted = {f"{bench.name}.{n}": (n + 1, {}) for n in range(6)}
    async with admin(bench.brokers, None) as client:
        assert await topics.ensure_topics(client, wanted) == {*wanted}
        assert await topics.describe(client, wanted) == {name: count for name, (count, _) in wanted.items()}


async def test_more_replicas_than_brokers(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="cannot have 2 replicas, the cluster has 1 brokers"):
        await bench.open(Settings(replication_factor=2))


async def test_close_is_quick_and_complete_when_kafka_is_silent(
    bench: Bench, kafka_server: KafkaServer
) -> None:
    assert kafka_server.proxy_port is not None
    proxy = Proxy("127.0.0.1", kafka_server.proxied_port, listen_port=kafka_server.proxy_port)
    before = asyncio.all_tasks()
    async with proxy:
        publisher = await bench.open(brokers=f"127.0.0.1:{kafka_server.proxy_port}")
        publisher.topic(bench.topic).append(key(1), b"x")
        proxy.stall()
        flush = asyncio.create_task(publisher.flush(at(200)))
        await asyncio.wait([flush], timeout=0.2)
        flush.cancel()
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await asyncio.gather(flush, return_exceptions=True)
            await publisher.close()
    assert flush.cancelled()
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert left == set()


async def test_kafka_that_does_not_answer(bench: Bench) -> None:
    publisher = bench.publisher(brokers="127.0.0.1:1")
    with pytest.raises(KafkaUnavailable, match=r"kafka 127.0.0.1:1: Kafka failed while connecting"):
        await publisher.start()


async def test_sources_that_start_at_once_have_places_of_their_own(bench: Bench) -> None:
    names = [f"shop{n}" for n in range(4)]
    publishers = [bench.publisher(source=name, seat=seat) for seat, name in enumerate(names)]
    await asyncio.gather(*(publisher.start() for publisher in publishers))
    await asyncio.gather(*(publisher.load() for publisher in publishers))  # none has written anything
    assert [publisher.number for publisher in publishers] == [0, 1, 2, 3]
    await asyncio.gather(*(publisher.flush(at(100)) for publisher in publishers))

    await publishers[2].close()
    later = await bench.open(source="later", seat=1)  # another config has given the seat away
    assert later.number == 4
    back = await bench.open(source="shop2", seat=9)
    assert back.number == 2
