"""Where a replay begins in every partition of a flow, and the checkpoints that lead there.

A checkpoint is set back in the target, in a moment and whoever moves it (Target.rewind). Running apply
processes find that out and read on from there; the version beside each row keeps what is newer. This only
plans, and says what Kafka's retention has taken of what was asked; what is done with a plan is the command's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from shlex import quote

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.apply.checkpoint import Checkpoint, LastRecord, Place, Rewind, checksum_of
from consumers.apply.fold import BOTTOM, Version
from consumers.bounds import Bound, Kind, Offsets, ends_of, offsets_of
from consumers.tail import Record, last_of, read
from consumers.targets.base import Target
from streamer.changes.envelope import decode_value
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import record_topics
from streamer.config import Config, Flow
from streamer.config.base import nearest
from streamer.config.derived import processor_of
from streamer.errors import ConfigError, DecodeError
from streamer.resetting import processor_reset_steps, reset_steps


@dataclass(frozen=True, slots=True)
class Asked:
    """`topics`, `partition`: only these of the flow's; empty, None: all. `to` None: up to the checkpoint."""

    from_: Bound
    to: Bound | None = None
    topics: Sequence[str] = ()
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """What of a partition is replayed: records of [begin, end), all of them applied already. `taken`: why a
    part of what was asked is not in the log any more."""

    checkpoint: Checkpoint
    log_start: int
    begin: int
    end: int
    taken: str = ""

    @property
    def place(self) -> Place:
        return self.checkpoint.place

    @property
    def partition(self) -> TopicPartition:
        return TopicPartition(self.place.topic, self.place.partition)

    @property
    def is_empty(self) -> bool:
        return self.begin >= self.end


def check_flow(flow: Flow) -> None:
    """Raises ConfigError where older events would stand above newer rows."""
    if flow.version == "none":
        raise ConfigError(
            f"flow {flow.name!r} has `version: none`: nothing would keep the rows that are newer than what is"
            " replayed, and they would go back in time until it has caught up",
            where=f"flow {flow.name!r}",
            fix="write `version: side`, which leaves the table as it is; or, to have its rows as they are in"
            f" the source now: `tailrace backfill {flow.source}`",
        )


def topics_of(flow: Flow, topics: Mapping[str, int], wanted: Collection[str]) -> dict[str, int]:
    """The flow's, and how many partitions they have. Raises ConfigError."""
    found = {topic: count for topic, count in topics.items() if flow.matches(topic)}
    if not found:
        raise ConfigError(
            f"Kafka has no topic of flow {flow.name!r} ({flow.source_pattern})",
            fix=f"start `tailrace capture {flow.source}` first",
        )
    for topic in wanted:
        if topic not in found:
            raise ConfigError(
                f"{topic!r} is no topic of flow {flow.name!r}", fix=nearest(topic, sorted(found))
            )
    return {topic: count for topic, count in found.items() if not wanted or topic in wanted}


def reset_of(config: Config, flow: Flow) -> str:
    """The steps after which everything of the flow is published again."""
    processor = processor_of(config, flow)
    return reset_steps(flow.source) if processor is None else processor_reset_steps(processor)


def brought_by(config: Config, flow: Flow, topics: Iterable[str]) -> str:
    """What publishes rows again that the topics have no more."""
    if processor_of(config, flow) is not None:
        return f"to have the rows derived again {reset_of(config, flow)}"
    tables = " ".join(sorted({quote(topic.partition(".")[2]) for topic in topics}))
    command = f"tailrace backfill {flow.source} {tables}"
    return f"`{command}` publishes the rows again as they are in the source now"


def records_of(records: Iterable[SchemaRecord], topics: Collection[str]) -> dict[str, SchemaRecord]:
    """Which table each of the topics is of, as far as it was published."""
    found = {}
    for record in records:
        for topic in record_topics(record.source, record.schema, record.table):
            if topic in topics:
                found[topic] = record
    return found


def keyless(
    flow: Flow, records: Mapping[str, SchemaRecord], topics: Collection[str], wanted: Collection[str]
) -> list[str]:
    """Topics of tables without a key, which a replay leaves out: it would add their rows again. Raises
    ConfigError where it is asked for one of them, or nothing else is there."""
    found = [topic for topic in topics if topic in records and not records[topic].key_columns]
    named = [topic for topic in found if topic in wanted]
    if found and (named or len(found) == len(topics)):
        record = records[(named or found)[0]]
        raise ConfigError(
            f"{record.schema}.{record.table} has no key: its rows cannot be told apart, and a replay"
            " would add them again",
            where=f"flow {flow.name!r}",
            fix="give the table a key in the source, or leave it out;"
            f" to have it copied anew {reset_steps(flow.source)}",
        )
    return found


async def plan(
    consumer: AIOKafkaConsumer,
    brokers: str,
    target: Target,
    flow: Flow,
    topics: Mapping[str, int],
    asked: Asked,
) -> list[Span]:
    """Of every partition that the flow has applied something of. Raises ConfigError."""
    partitions = _chosen(flow, topics, asked)
    places = {p: Place(flow.name, p.topic, p.partition) for p in partitions}
    known = (await target.look(places.values())).stands
    stands = await target.checkpoints(known)
    applied = {p: stands[place] for p, place in places.items() if place in stands}
    if not applied:
        raise ConfigError(
            f"flow {flow.name!r} has applied nothing of that yet",
            fix=f"`tailrace apply {flow.target}` begins with all that the log has",
        )
    starts, ends = await ends_of(consumer, applied.keys(), brokers)
    ends = {p: min(ends[p], stand.next_offset) for p, stand in applied.items()}
    begins = await _offsets(asked.from_, consumer, brokers, applied, starts, ends)
    until = ends if asked.to is None else await _offsets(asked.to, consumer, brokers, applied, starts, ends)
    spans = []
    for partition, stand in applied.items():
        taken = ""
        if starts[partition] > 0 and begins[partition] <= starts[partition]:
            taken = await _taken(asked.from_, consumer, brokers, partition, starts[partition], stand)
        spans.append(Span(stand, starts[partition], begins[partition], until[partition], taken))
    return spans


def _chosen(flow: Flow, topics: Mapping[str, int], asked: Asked) -> list[TopicPartition]:
    partitions = [
        TopicPartition(topic, number)
        for topic, count in sorted(topics.items())
        for number in range(count)
        if asked.partition in (None, number)
    ]
    if not partitions:
        raise ConfigError(
            f"no topic of flow {flow.name!r} has a partition {asked.partition}",
            fix=f"{next(iter(topics))} has {next(iter(topics.values()))}, counted from 0",
        )
    offsets = [bound for bound in (asked.from_, asked.to) if bound is not None and bound.kind is Kind.OFFSET]
    if offsets and len(partitions) > 1:
        raise ConfigError(
            f"an offset is one of a partition, and flow {flow.name!r} has {len(partitions)} of them",
            fix="say which with --partition (and --topic, where it has several), or give a time or an LSN",
        )
    return partitions


async def _offsets(
    bound: Bound,
    consumer: AIOKafkaConsumer,
    brokers: str,
    applied: Mapping[TopicPartition, Checkpoint],
    starts: Offsets,
    ends: Offsets,
) -> Offsets:
    if bound.kind is not Kind.LSN:
        return await offsets_of(bound, consumer, starts, ends, brokers)
    return {
        p: await _find(consumer, brokers, p, (starts[p], ends[p]), (_epoch(stand), bound.value, 0))
        for p, stand in applied.items()
    }


def _epoch(stand: Checkpoint) -> int:
    """LSNs are of the epoch that was applied last."""
    return stand.last.epoch if stand.last is not None else 0


async def _find(
    consumer: AIOKafkaConsumer,
    brokers: str,
    partition: TopicPartition,
    span: tuple[int, int],
    version: Version,
) -> int:
    """The offset before which every event is older than the version: they rise within a partition."""
    low, high = span
    while low < high:
        middle = (low + high) // 2
        found = await _first(consumer, brokers, partition, middle, high)
        if found is not None and found[1] < version:
            low = found[0].offset + 1
        else:
            high = middle
    if low < span[1] and await _first(consumer, brokers, partition, low, span[1]) is None:
        return span[1]  # the tombstone of the last delete, and markers
    return low


async def _first(
    consumer: AIOKafkaConsumer, brokers: str, partition: TopicPartition, start: int, end: int
) -> tuple[Record, Version] | None:
    """The first record of [start, end) that is an event, and its version."""
    async with aclosing(read(consumer, brokers, {partition: start}, {partition: end})) as batches:
        async for batch in batches:
            for record in batch:
                version = version_of(record)
                if version > BOTTOM:
                    return record, version
    return None


def version_of(record: Record) -> Version:
    """BOTTOM of a tombstone, and of what does not decode."""
    if record.value is None:
        return BOTTOM
    try:
        return decode_value(record.value, where="", offset=record.offset).version
    except DecodeError:
        return BOTTOM


async def _taken(
    bound: Bound,
    consumer: AIOKafkaConsumer,
    brokers: str,
    partition: TopicPartition,
    start: int,
    stand: Checkpoint,
) -> str:
    """Whether what was asked for lies before the log's start. `start` itself is no such wish."""
    where = f"{partition.topic}[{partition.partition}] starts at offset {start}"
    if bound.kind is Kind.OFFSET and bound.value < start:
        return where
    if bound.kind in (Kind.TIME, Kind.LSN):
        first = await _first(consumer, brokers, partition, start, stand.next_offset)
        if first is None:
            return where
        record, version = first
        if bound.kind is Kind.TIME and record.timestamp > bound.value:
            return f"{where}, {Bound(Kind.TIME, record.timestamp).text}"
        if bound.kind is Kind.LSN and version > (_epoch(stand), bound.value, 0):
            return f"{where}, LSN {Bound(Kind.LSN, version[1]).text} of epoch {version[0]}"
    return ""


def refuse_taken(config: Config, flow: Flow, spans: Sequence[Span]) -> None:
    """Raises ConfigError that names the logs' starts."""
    taken = [span for span in spans if span.taken]
    if taken:
        raise ConfigError(
            "Kafka's retention has removed a part of what was to be replayed: the log of"
            f" {'; of '.join(span.taken for span in taken)}",
            where=f"flow {flow.name!r}",
            fix="--from-start replays what is there; "
            + brought_by(config, flow, (span.place.topic for span in taken)),
        )


async def rewinds_of(consumer: AIOKafkaConsumer, brokers: str, spans: Sequence[Span]) -> list[Rewind]:
    """The checkpoints that lead to the beginnings, each with the record right before it (H14)."""
    found = []
    for span in spans:
        if span.is_empty:
            continue
        earlier = span.log_start, span.begin
        records = await last_of(consumer, brokers, span.partition, earlier, 1, lambda _: True)
        found.append(Rewind(span.place, span.begin, _last(span, records)))
    return found


def _last(span: Span, records: Sequence[Record]) -> LastRecord | None:
    was = span.checkpoint.last
    epoch = (_epoch(span.checkpoint), 0, 0)  # the highest stays known, as when apply moves a checkpoint
    if records:
        record = records[-1]
        checksum = checksum_of(record.key, record.value)
        return LastRecord(record.offset, checksum, *max(version_of(record), epoch))
    if span.log_start == 0 or was is None:
        return None  # all of it again, as if for the first time
    # Of what retention has taken nothing can be compared; the epoch says still that rows were written.
    return LastRecord(span.log_start - 1, 0, *epoch)
