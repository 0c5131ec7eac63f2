"""Partitions that were seen to lose their rows, of a table whose targets do not have those rows any more.

The source's capture says of each that its rows are still in the targets, until it knows of a repair that
began behind that. Where a comparison finds nothing to repair it is told so by a repair without keys. Owns
that; what the capture has seen is in its positions, and what ends its finding is streamer's.
"""

from __future__ import annotations

from dataclasses import replace

from aiokafka import TopicPartition

from streamer.backfills import ask
from streamer.changes.backfill import REPAIR, Request
from streamer.changes.topics import positions_topic
from streamer.config import Config
from streamer.publisher.state import find_number, read_positions


async def tell(config: Config, brokers: str, request: Request, *, run: str, by: str, now_us: int) -> None:
    """`request`: of a table that was equal as a whole, with the LSN before that; without one it has no
    partitions. Raises KafkaUnavailable, ConfigError."""
    if not request.compared_lsn:
        return
    security, topic = config.kafka.security, positions_topic(config.name)
    number = await find_number(brokers, security, request.source, topic)
    place = TopicPartition(topic, number)
    ground = (await read_positions(brokers, security, request.source, place)).ground
    roots = {oid for oid, facts in ground.tables.items() if facts.name == request.place}
    if not any(leaf.root in roots and leaf.emptied_lsn for leaf in ground.leaves.values()):
        return
    settled = replace(request, deletes=True, by=by, why=f"{REPAIR}{run}", asked_us=now_us)
    replication = config.kafka.topics.replication_factor
    await ask(brokers, security, config.name, settled, [], replication_factor=replication)
