"""`tailrace process NAME --dry-run`: what a processor would send for some records of its inputs.

Reads Kafka, and sends, commits and keeps nothing: its state begins empty, so that what stood before the
records is not known to it. What there is of workers goes on beside it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from consumers.bounds import Bound, Kind
from consumers.processors.context import Definition, Given
from consumers.processors.ground import look
from consumers.processors.rehearsal import Rehearsal, Sent
from consumers.processors.schemas import InputSchemas
from consumers.tail import Record, Wanted, in_time, tail
from streamer.config import Config


async def dry_run(
    config: Config, name: str, definition: Definition, *, from_start: bool, limit: int
) -> AsyncGenerator[tuple[Record, list[Sent], list[str]], None]:
    """Of the first, or the last, `limit` records of the inputs: each, what is sent for it, and which types
    were inferred. Raises KafkaUnavailable where an input is missing, ConfigError."""
    kafka, processor = config.kafka, config.processors[name]
    ground = await look(config, name, brokers=kafka.brokers)
    schemas = InputSchemas(config, name, ground.inputs)
    await schemas.read()
    given = Given(name, ground.inputs, processor.out, processor.key, schemas.inputs, grows=processor.grows)
    rehearsal = Rehearsal(
        definition,
        given,
        partitions=ground.partitions,
        config_name=config.name,
        guarantee=processor.guarantee,
        own=schemas.own,
        topics=kafka.topics,
    )
    records: list[Record] = []
    for topic in ground.inputs:
        wanted = Wanted(topic, from_=Bound(Kind.START) if from_start else None, number=limit)
        async with aclosing(tail(kafka.brokers, kafka.security, config.name, wanted)) as found:
            records += [record async for record in found]
    ordered = in_time(records)
    try:
        for record in ordered[:limit] if from_start else ordered[-limit:]:
            said = len(rehearsal.inferred)
            sent = await rehearsal.handle(record)
            yield record, sent, rehearsal.inferred[said:]
    finally:
        await rehearsal.close()
