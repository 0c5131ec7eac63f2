"""Why derived rows are missing: where each processor stands, hop by hop, when a test gives up.

Reads Kafka, the changelogs and the target's checkpoints; changes nothing. A line is written only for what is
behind, is held up, or is not alive, so that what is left out is known to be in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psycopg
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient

from consumers.processors.changelog import COMMIT_KEY, Commit
from consumers.processors.context import HOPS_LIMIT
from consumers.processors.names import Names
from streamer.kafka import admin, client_options, offset_ranges, read_batches, reader, shut
from streamer.publisher.describe_producers import OpenTransaction, open_transactions
from streamer.publisher.topics import describe
from streamer.status import read_status

CHANGELOG_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Of a partition: its first offset, where readers of committed records stop, and its end."""

    start: int
    stable: int
    end: int


class Standing:
    """Of the processors of one config."""

    def __init__(self, brokers: str, name: str, target_url: str) -> None:
        self._brokers = brokers
        self._name = name
        self._target_url = target_url

    async def of(self, processors: Mapping[str, tuple[str, tuple[str, ...]]]) -> str:
        """`processors`: name -> (out, inputs)."""
        lines = []
        for record in await read_status(self._brokers, None, self._name):
            lines.append(
                f"{record.kind} {record.part} pid {record.pid}: {record.state} {record.reason}"
                f" {'ended' if record.ended else ''} tasks {record.detail.get('tasks')}"
                f" lag {record.detail.get('lag_records')} parked {record.detail.get('parked')}"
            )
        checkpoints = await self._checkpoints()
        for name, (out, inputs) in processors.items():
            lines += await self._processor(Names(self._name, name, out), inputs, checkpoints)
        return "\n".join(lines)

    async def _processor(
        self, names: Names, inputs: tuple[str, ...], checkpoints: Mapping[TopicPartition, int]
    ) -> list[str]:
        async with admin(self._brokers, None) as client:
            counts = await describe(client)
            offsets = await client.list_consumer_group_offsets(names.group)
            node = await client.find_coordinator(names.group)
            described = await client.describe_consumer_groups([names.group], node)
        hops = [names.hop(number) for number in range(1, HOPS_LIMIT) if names.hop(number) in counts]
        outs = [topic for topic in counts if topic == names.out or topic.startswith(f"{names.out}.")]
        outs = [topic for topic in outs if "__" not in topic]
        read = places_of([*inputs, names.control, *hops], counts)
        ends = await self._ends([*read, *places_of([names.state, *outs], counts)])
        commits = await self._commits(names, counts)
        groups = [f"{g[2]}, {len(g[5])} members" for response in described for g in response.groups]
        lines = [f"{names.processor}: group {', '.join(groups)}"]
        for place in read:
            commit = commits.get(place.partition)
            at = None if commit is None else commit.offsets.get(place.topic, 0)
            followed = offsets[place].offset if place in offsets else None
            of = ends[place]
            if of.end not in (0, at) or of.stable != of.end or followed not in (None, at):
                lines.append(f"  in  {shown(place)} {of}: changelog at {at}, group at {followed}")
        for place in places_of([names.state], counts):
            if ends[place].stable != ends[place].end:
                lines.append(f"  log {shown(place)} {ends[place]}")
        for place in places_of(outs, counts):
            of, at = ends[place], checkpoints.get(place)
            if of.end not in (0, at) or of.stable != of.end:
                lines.append(f"  out {shown(place)} {of}: target at {at}")
        held = await self._open([*read, *places_of([names.state, *outs], counts)])
        return lines + [
            f"  open {shown(t.place)} since {t.first_offset}, producer {t.producer_id}" for t in held
        ]

    async def _ends(self, places: list[TopicPartition]) -> dict[TopicPartition, Ends]:
        ranges = await offset_ranges(self._brokers, None, places)
        async with reader(self._brokers, None, committed=True) as client:
            stable = await client.end_offsets(places)
        return {place: Ends(ranges[place][0], stable[place], ranges[place][1]) for place in places}

    async def _commits(self, names: Names, counts: Mapping[str, int]) -> dict[int, Commit]:
        """The last of each task, committed or not."""
        ranges = await offset_ranges(self._brokers, None, places_of([names.state], counts))
        found: dict[int, Commit] = {}
        async for batch in read_batches(
            self._brokers, None, ranges, committed=False, deadline_s=CHANGELOG_DEADLINE_S
        ):
            for record in batch:
                if record.key == COMMIT_KEY and record.value is not None:
                    found[record.partition] = Commit.load(record.value, names.state)
        return found

    async def _open(self, places: list[TopicPartition]) -> list[OpenTransaction]:
        client = AIOKafkaClient(**client_options(self._brokers, None))
        await client.bootstrap()
        try:
            for topic in {place.topic for place in places}:
                client.add_topic(topic)
            await client.force_metadata_update()
            return await open_transactions(client, places)
        finally:
            await shut(client.close)

    async def _checkpoints(self) -> dict[TopicPartition, int]:
        async with await psycopg.AsyncConnection.connect(self._target_url, autocommit=True) as connection:
            cursor = await connection.execute(
                "SELECT topic, partition, next_offset FROM _tailrace.checkpoints"
            )
            return {TopicPartition(topic, p): at for topic, p, at in await cursor.fetchall()}


def places_of(topics: Iterable[str], counts: Mapping[str, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for topic in topics for p in range(counts.get(topic, 0))]


def shown(place: TopicPartition) -> str:
    return f"{place.topic}[{place.partition}]"
