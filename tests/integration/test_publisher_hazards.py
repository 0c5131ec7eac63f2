"""What may go wrong between a flush and its commit: each test fails when the rule it names is taken out."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from zlib import crc32

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.new_partitions import NewPartitions

from streamer.changes.position import Position
from streamer.changes.schema import Column, SchemaRecord
from streamer.changes.topics import positions_topic, schemas_topic
from streamer.errors import ConfigError, FencedError, KafkaUnavailable, PositionError
from streamer.kafka import admin
from streamer.publisher import ensure_topic
from streamer.publisher.state import read_positions
from streamer.sandbox import KafkaServer
from tests.harness.proxy import Proxy
from tests.harness.publisher import CLOSE_LIMIT_S, ORDERS, ZERO, Bench, Settings, at, key, until
from tests.harness.tiers import corners


async def test_h01_a_refused_batch_is_not_committed(bench: Bench) -> None:
    publisher = await bench.open()
    await publisher.flush(at(200))
    async with admin(bench.brokers, None) as client:
        small = ConfigResource(ConfigResourceType.TOPIC, bench.topic, {"max.message.bytes": "2000"})
        await client.alter_configs([small])
    orders = publisher.topic(bench.topic)
    orders.append(key(1), b"fits")
    orders.append(key(2), os.urandom(50_000))
    with pytest.raises(ConfigError, match=r"refused a batch for its size while publishing .*orders"):
        await publisher.flush(at(300))
    with pytest.raises(KafkaUnavailable, match="finished"):
        await publisher.flush(at(300))
    again = bench.publisher(Settings(max_message_bytes=2000))
    await again.start()
    assert (await again.load()).position == replace(at(200), flush=1)
    assert await bench.values() == []


async def test_h12_a_commit_that_is_not_visible_yet_is_waited_for(bench: Bench) -> None:
    """A commit returns before its markers are written; here the markers come late."""
    publisher = await bench.open()
    await publisher.flush(at(200))
    place = TopicPartition(positions_topic(bench.name), publisher.number)
    late = AIOKafkaProducer(bootstrap_servers=bench.brokers, transactional_id=f"{bench.name}.late")
    await late.start()
    try:
        await late.begin_transaction()
        await late.send_and_wait(place.topic, at(300).dump(), at(300).key(), partition=place.partition)
        reading = asyncio.create_task(read_positions(bench.brokers, None, "shop", place))
        await asyncio.wait([reading], timeout=0.3)
        assert not reading.done()
        await late.commit_transaction()
    finally:
        await late.stop()
    assert (await reading).position == at(300)


async def test_h12_an_open_transaction_in_the_way_is_named(bench: Bench) -> None:
    publisher = await bench.open()
    await publisher.flush(at(200))
    await publisher.close()
    stranger = AIOKafkaProducer(bootstrap_servers=bench.brokers, transactional_id=f"{bench.name}.stranger")
    await stranger.start()
    try:
        await stranger.begin_transaction()
        await stranger.send_and_wait(positions_topic(bench.name), b"{}", b"{}", partition=0)
        again = bench.publisher(read_deadline_s=0.3)
        await again.start()
        with pytest.raises(
            KafkaUnavailable, match=r"__positions\[0\] .* open transaction of another producer"
        ):
            await again.load()
        await stranger.abort_transaction()
    finally:
        await stranger.stop()
    later = bench.publisher()
    await later.start()
    assert (await later.load()).position == replace(at(200), flush=1)


@pytest.mark.thorough
async def test_h13_after_a_commit_with_unknown_outcome(bench: Bench, kafka_server: KafkaServer) -> None:
    """The line is cut at every step of a flush in turn; what was read back goes on without a gap."""
    assert kafka_server.proxy_port is not None
    published = 0
    position = ZERO
    proxy = Proxy("127.0.0.1", kafka_server.proxied_port, listen_port=kafka_server.proxy_port)
    async with proxy:
        for cut_after_bytes in range(0, 1_800, 300):
            brokers = f"127.0.0.1:{kafka_server.proxy_port}"
            publisher = await bench.open(brokers=brokers, flush_deadline_s=0.5)
            publisher.topic(bench.topic).append(key(1), b"%d" % published)
            publisher.add_schema(replace(ORDERS, table=f"t{published}"))
            flush = asyncio.create_task(publisher.flush(at(position.lsn + 1)))
            there = asyncio.create_task(proxy.wait_bytes(proxy.bytes + cut_after_bytes))
            await asyncio.wait([flush, there], return_when=asyncio.FIRST_COMPLETED)
            proxy.stall()
            there.cancel()
            async with asyncio.timeout(CLOSE_LIMIT_S):
                outcome = (await asyncio.gather(flush, return_exceptions=True))[0]
            assert isinstance(outcome, KafkaUnavailable | Position)
            proxy.flow()
            proxy.cut()
            await publisher.close()
            again = bench.publisher()
            await again.start()
            loaded = await again.load()
            known = loaded.position.lsn if loaded.position else ZERO.lsn
            assert known in (position.lsn, position.lsn + 1)
            assert isinstance(outcome, KafkaUnavailable) or known == position.lsn + 1
            # A schema record is there exactly when its flush is.
            assert len(loaded.schemas) == known - ZERO.lsn
            published = known - ZERO.lsn
            position = replace(position, lsn=known)
            assert [int(value) for value in await bench.values()] == list(range(published))
            await again.close()


async def test_h13_caches_change_only_with_the_commit(bench: Bench) -> None:
    publisher = await bench.open(flush_deadline_s=0.0)
    publisher.add_schema(ORDERS)
    publisher.topic(bench.topic).append(key(1), b"x")
    with pytest.raises(KafkaUnavailable, match="no answer within the time allowed"):
        await publisher.flush(at(200))
    assert publisher.position is None
    again = bench.publisher()
    await again.start()
    loaded = await again.load()
    assert (loaded.position, loaded.schemas, loaded.topics) == (None, {}, {})


async def test_h17_a_lost_tail_is_named(bench: Bench) -> None:
    publisher = await bench.open()
    for number in range(3):
        publisher.topic(bench.topic).append(key(1), b"x")
        await publisher.flush(at(200 + number))
    await publisher.close()
    await bench.remake()
    again = bench.publisher()
    await again.start()
    with pytest.raises(PositionError, match=rf"topic {bench.topic} was made again: partition \d") as caught:
        await again.load()
    assert "`tailrace reset shop --yes`" in caught.value.fix


async def test_h17_a_deleted_topic_is_named_and_a_reset_goes_on(bench: Bench) -> None:
    publisher = await bench.open()
    publisher.topic(bench.topic).append(key(1), b"x")
    await publisher.flush(at(200))
    await publisher.close()
    async with admin(bench.brokers, None) as client:
        await client.delete_topics([bench.topic])
    await until(lambda: bench.missing(bench.topic))
    again = bench.publisher()
    await again.start()
    with pytest.raises(PositionError, match=rf"topic {bench.topic} was deleted"):
        await again.load()

    fresh = bench.publisher()
    await fresh.start()
    loaded = await fresh.load(reset=True)
    assert loaded.position is not None
    assert loaded.topics == {}
    await fresh.flush(replace(at(200), epoch=2))
    await fresh.close()
    later = bench.publisher()
    await later.start()
    loaded = await later.load()
    assert loaded.position is not None
    assert (loaded.position.epoch, loaded.position.flush, loaded.topics) == (2, 2, {})


async def test_h17_a_topic_made_again_while_running(bench: Bench) -> None:
    publisher = await bench.open()
    for number in range(3):
        publisher.topic(bench.topic).append(key(1), b"x")
        await publisher.flush(at(200 + number))
    await bench.remake()
    publisher.topic(bench.topic).append(key(1), b"x")
    with pytest.raises(PositionError, match=r"was written up to offset \d+ and took the next event at 0"):
        await publisher.flush(at(300))
    # The transaction was aborted: its readers do not wait for its timeout.
    assert await bench.values() == []


async def test_h17_events_beyond_the_position_are_named(bench: Bench) -> None:
    publisher = await bench.open()
    publisher.topic(bench.topic).append(key(1), b"x")
    await publisher.flush(at(200))
    await publisher.close()
    stranger = AIOKafkaProducer(bootstrap_servers=bench.brokers)
    await stranger.start()
    await stranger.send_and_wait(bench.topic, b"foreign", partition=crc32(key(1)) % 4)
    await stranger.stop()
    again = bench.publisher()
    await again.start()
    with pytest.raises(PositionError, match="the positions topic lost its end, or another program writes"):
        await again.load()


async def test_h22_the_first_schema_record_of_an_epoch_freezes_the_key(bench: Bench) -> None:
    later_key = replace(ORDERS, columns=(Column("code", "text", -1, "text", True),))
    publisher = await bench.open()
    for lsn, record in ((200, ORDERS), (300, later_key), (400, ORDERS)):
        publisher.add_schema(record)
        await publisher.flush(at(lsn))
    await publisher.close()
    again = bench.publisher()
    await again.start()
    loaded = await again.load()
    assert loaded.frozen_keys == {("public", "orders"): ("id",)}
    assert set(loaded.schemas) == {ORDERS.id, later_key.id}
    again.add_schema(later_key)
    await again.flush(replace(at(500), epoch=2))
    await again.close()
    assert len(await bench.records(schemas_topic(bench.name))) == 3
    reset = bench.publisher()
    await reset.start()
    assert (await reset.load()).frozen_keys == {("public", "orders"): ("code",)}


async def test_h26_a_topic_with_another_partition_count(bench: Bench) -> None:
    async with admin(bench.brokers, None) as client:
        await ensure_topic(client, bench.topic, 3, {})
    publisher = bench.publisher()
    await publisher.start()
    await publisher.load()
    with pytest.raises(ConfigError, match=r"has 3 partitions, kafka.topics.partitions says 4") as caught:
        await publisher.ensure_topics([bench.topic])
    assert "set kafka.topics.partitions to 3" in caught.value.fix
    await bench.open(Settings(partitions=3))


async def test_h26_partitions_added_behind_our_back(bench: Bench) -> None:
    publisher = await bench.open()
    publisher.topic(bench.topic).append(key(1), b"x")
    await publisher.flush(at(200))
    await publisher.close()
    async with admin(bench.brokers, None) as client:
        await client.create_partitions({bench.topic: NewPartitions(8)})
    for settings in (Settings(partitions=8), Settings(partitions=4)):
        again = bench.publisher(settings)
        await again.start()
        with pytest.raises(ConfigError, match=r"has 8 partitions, its events were written to 4") as caught:
            await again.load()
        assert bench.topic in caught.value.where


async def test_h29_a_schema_record_is_written_before_its_event_in_the_same_transaction(bench: Bench) -> None:
    publisher = await bench.open()
    async with admin(bench.brokers, None) as client:
        small = ConfigResource(ConfigResourceType.TOPIC, bench.topic, {"max.message.bytes": "2000"})
        await client.alter_configs([small])
    publisher.add_schema(ORDERS)
    publisher.topic(bench.topic).append(key(1), os.urandom(50_000))
    with pytest.raises(ConfigError):
        await publisher.flush(at(200))
    # The event was refused: its schema record was there before it, and ended with its transaction.
    assert len(await bench.records(schemas_topic(bench.name), committed=False)) == 1
    again = await bench.open(Settings(max_message_bytes=2000))
    assert await bench.records(schemas_topic(bench.name)) == []
    again.add_schema(ORDERS)
    again.topic(bench.topic).append(key(1), b"x")
    await again.flush(at(200))
    again.add_schema(ORDERS)
    again.topic(bench.topic).append(key(1), b"y")
    await again.flush(at(300))
    (record,) = await bench.records(schemas_topic(bench.name))
    assert SchemaRecord.load(record.value or b"") == ORDERS


@pytest.mark.parametrize("flushes", corners([1, 2], 1))
async def test_h30_a_zombie_is_fenced(bench: Bench, flushes: int) -> None:
    """Whichever of its two ids would be next."""
    zombie = await bench.open()
    for number in range(flushes):
        await zombie.flush(at(200 + number))
    heir = await bench.open()
    zombie.topic(bench.topic).append(key(1), b"zombie")
    with pytest.raises(FencedError, match="a newer process took over"):
        await zombie.flush(at(300))
    heir.topic(bench.topic).append(key(1), b"heir")
    await heir.flush(at(400))
    assert await bench.values() == [b"heir"]


@pytest.mark.parametrize("ends", ["refused", "cancelled"])
async def test_h13_topics_that_are_not_made_leave_the_flush_in_flight_whole(bench: Bench, ends: str) -> None:
    publisher = await bench.open()
    publisher.topic(bench.topic).append(key(1), b"x")
    flush = asyncio.create_task(publisher.flush(at(200)))
    if ends == "refused":
        async with admin(bench.brokers, None) as client:
            await ensure_topic(client, f"{bench.topic}.other", 3, {})
        with pytest.raises(ConfigError, match="has 3 partitions"):
            await publisher.ensure_topics([f"{bench.topic}.other"])
    else:
        making = asyncio.create_task(publisher.ensure_topics([f"{bench.topic}.other"]))
        await asyncio.sleep(0)
        making.cancel()
        await asyncio.wait([making])
        assert making.cancelled()
    await flush
    publisher.topic(bench.topic).append(key(1), b"y")
    await publisher.flush(at(300))
    assert await bench.values() == [b"x", b"y"]


async def test_a_publisher_that_is_closed_makes_no_topics(bench: Bench) -> None:
    publisher = await bench.open()
    await publisher.close()
    with pytest.raises(KafkaUnavailable, match="finished"):
        await publisher.ensure_topics([f"{bench.topic}.other"])
