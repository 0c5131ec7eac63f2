"""Which target a consumer group belongs to: two in one group would get a part of the rows each (H30).

It stands in the metadata of the group's commits in Kafka. Their offsets are for lag tools: what was applied
is in the target. Once that has lost it, they tell up to where the same comes a second time:

    metadata = id [' ' until]        `until`: what is before it was applied to the store before this one
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka
from aiokafka.structs import OffsetAndMetadata

from streamer.errors import FatalError
from streamer.kafka import Security, admin, client_options, connect, kafka_errors, shut
from streamer.members import remove_dead

COMMIT_DEADLINE_S = 10.0  # aiokafka's own retries have no end


async def _commits(
    brokers: str, security: Security | None, group: str
) -> dict[TopicPartition, OffsetAndMetadata]:
    async with admin(brokers, security) as client:
        with kafka_errors("reading the group's offsets", brokers=brokers):
            offsets = await client.list_consumer_group_offsets(group)
    return {partition: at for partition, at in offsets.items() if at.offset >= 0}


class Binding(NamedTuple):
    """`target_id` None: the group has committed nothing yet. `again`: changes before these offsets were
    applied once, to a store that has lost them."""

    target_id: str | None
    again: dict[TopicPartition, int]


async def binding_of(brokers: str, security: Security | None, group: str) -> Binding:
    """Raises KafkaUnavailable."""
    target_id: str | None = None
    again: dict[TopicPartition, int] = {}
    for partition, at in (await _commits(brokers, security, group)).items():
        known, until = _read(at)
        target_id = target_id or known
        if until:
            again[partition] = until
    return Binding(target_id, again)


async def bound_to(brokers: str, security: Security | None, group: str) -> str | None:
    """The target's id; None: the group has committed nothing yet. Raises KafkaUnavailable."""
    return (await binding_of(brokers, security, group)).target_id


def commit_of(offset: int, target_id: str, until: int = 0) -> OffsetAndMetadata:
    """`until`: as in the grammar above; 0: nothing comes a second time."""
    return OffsetAndMetadata(offset, f"{target_id} {until}" if until else target_id)


def _read(at: OffsetAndMetadata) -> tuple[str | None, int]:
    target_id, _, until = at.metadata.partition(" ")
    return target_id or None, int(until) if until.isdecimal() else 0


async def bind(brokers: str, security: Security | None, group: str, target_id: str) -> None:
    """Bind a group without members to another target, to which everything comes again. Raises FatalError
    while one of its processes runs."""
    wanted = {
        partition: commit_of(at.offset, target_id, max(at.offset, _read(at)[1]))
        for partition, at in (await _commits(brokers, security, group)).items()
    }
    async with admin(brokers, security) as client:
        with kafka_errors("looking at the group's members", brokers=brokers):
            await remove_dead(client, group)
    consumer = AIOKafkaConsumer(
        **client_options(brokers, security),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    try:
        await connect(consumer, brokers, security)
        consumer.assign(list(wanted))
        with kafka_errors("binding the group", brokers=brokers):
            try:
                async with asyncio.timeout(COMMIT_DEADLINE_S):
                    await consumer.commit(wanted)
            except kafka.CommitFailedError as error:
                raise FatalError(
                    f"a process of the consumer group {group!r} still runs",
                    fix="stop every `tailrace apply` of it, then again (a killed one goes after 10 s)",
                ) from error
    finally:
        await shut(consumer.stop)


def belongs_elsewhere(group: str, bound: str, own: str | None) -> FatalError:
    """`own`: the id of the store as it is; None: it has nothing of Tailrace's."""
    target = group.rpartition(".")[2]
    here = f"this one's {own}" if own is not None else "this one has none: nothing was ever applied to it"
    return FatalError(
        f"the consumer group {group!r} belongs to another target than this store (its id is {bound}, {here});"
        " two targets in one group would get a part of the rows each",
        fix="if this is the target's store, which was emptied, replaced or made again:"
        f" `tailrace adopt {target}`, then start apply, which fills it from Kafka; otherwise correct its url,"
        " or give the new target a name of its own",
    )
