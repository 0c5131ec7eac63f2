"""What Kafka already holds of a source: its number, position, topic states and schema records.

Read at every start, after both transactional ids are initialised (H12, H30), and checked against the
topics themselves: an end below what the records say means that Kafka lost events (H17).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson
from aiokafka import ConsumerRecord, TopicPartition

from streamer.changes import ground
from streamer.changes.ground import Ground
from streamer.changes.position import Position, TopicState
from streamer.changes.schema import SchemaRecord
from streamer.errors import ConfigError, PositionError
from streamer.kafka import READ_DEADLINE_S, Security, offset_ranges, read_to_end
from streamer.publisher.topics import POSITION_PARTITIONS
from streamer.resetting import reset_fix

EPOCH_HEADER = "epoch"  # of a schema record: the source's epoch when it was written
COMMIT_MARKER_OFFSETS = 1  # a commit takes one offset in each partition of its transaction
NAMED_LIMIT = 8  # topics named one by one in an error

Ranges = Mapping[TopicPartition, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is in Kafka of this source.

    `position` None: nothing was ever published. `frozen_keys`: (schema, table) -> the key columns of
    the table's first schema record of this epoch (H22). `schemas_sent`: ids written in this epoch.
    `latest`: (schema, table) -> its last schema record since the last copy of everything. `ground`: tables
    and publications as this epoch first saw them.
    """

    position: Position | None
    topics: dict[str, TopicState]
    schemas: dict[str, SchemaRecord]
    frozen_keys: dict[tuple[str, str], tuple[str, ...]]
    schemas_sent: frozenset[str]
    latest: dict[tuple[str, str], SchemaRecord]
    ground: Ground


async def find_number(
    brokers: str, security: Security | None, source: str, topic: str, *, seat: int = 0
) -> int:
    """The source's partition of the positions topic: where its records are, or else the next free one from
    `seat` on. Sources that start for the first time at once have seats of their own, and meet nowhere.

    Uncommitted records count: a first record whose commit is not visible yet must not be missed, and
    another source's open transaction must not hold this one up.
    """
    partitions = [TopicPartition(topic, n) for n in range(POSITION_PARTITIONS)]
    ranges = await offset_ranges(brokers, security, partitions)
    taken: set[int] = set()
    mine: set[int] = set()
    for record in await read_to_end(brokers, security, ranges, committed=False):
        taken.add(record.partition)
        if record.key is not None and orjson.loads(record.key).get("source") == source:
            mine.add(record.partition)
    if mine:
        return min(mine)
    places = ((seat + n) % POSITION_PARTITIONS for n in range(POSITION_PARTITIONS))
    free = next((n for n in places if n not in taken), None)
    if free is None:
        raise ConfigError(
            f"all {POSITION_PARTITIONS} places for sources are taken",
            where=f"topic {topic}",
            fix="give this source's config another `name`: it has its own topics for positions then",
        )
    return free


@dataclass(slots=True)
class Positions:
    """The source's partition of the positions topic: the last committed record of each kind."""

    position: Position | None = None
    topics: dict[str, TopicState] = field(default_factory=dict)
    ground: Ground = field(default_factory=Ground)
    beside: set[bytes] = field(default_factory=set)  # keys of all of them but the position


async def read_positions(
    brokers: str,
    security: Security | None,
    source: str,
    place: TopicPartition,
    *,
    deadline_s: float = READ_DEADLINE_S,
) -> Positions:
    """What the last commit left of a source; a commit just done is not missed (H12)."""
    ranges = await offset_ranges(brokers, security, [place])
    records = await read_to_end(brokers, security, ranges, committed=True, deadline_s=deadline_s)
    latest: dict[bytes, bytes | None] = {r.key: r.value for r in records if r.key is not None}
    found = Positions()
    known: list[tuple[int, ground.Facts]] = []
    for key, value in latest.items():
        names = orjson.loads(key)
        if names.get("source") != source or value is None:
            continue
        if "topic" in names:
            found.topics[names["topic"]] = TopicState.load(value)
        elif names.keys() & ground.KINDS:
            known.append(ground.load(value))
        else:
            found.position = Position.load(value)
            continue
        found.beside.add(key)
    for epoch, facts in known:
        if found.position is not None and epoch == found.position.epoch:
            found.ground.add(facts)
    return found


async def read_schemas(
    brokers: str, security: Security | None, topic: str, *, deadline_s: float = READ_DEADLINE_S
) -> list[tuple[int, SchemaRecord]]:
    """(epoch, record) of all sources, in the order in which they were written."""
    place = TopicPartition(topic, 0)
    ranges = await offset_ranges(brokers, security, [place])
    records = await read_to_end(brokers, security, ranges, committed=True, deadline_s=deadline_s)
    return [(_epoch(r), SchemaRecord.load(r.value)) for r in records if r.value is not None]


def _epoch(record: ConsumerRecord[bytes, bytes]) -> int:
    for name, value in record.headers:
        if name == EPOCH_HEADER:
            return int(value)
    return 0


def join(source: str, found: Positions, written: Iterable[tuple[int, SchemaRecord]]) -> Loaded:
    """Records kept by id for ever; keys frozen by the first record of the source's present epoch (H22)."""
    position = found.position
    epoch, since_epoch = (position.epoch, position.since_epoch) if position is not None else (0, 0)
    schemas: dict[str, SchemaRecord] = {}
    latest: dict[tuple[str, str], SchemaRecord] = {}
    frozen: dict[tuple[str, str], tuple[str, ...]] = {}
    sent: set[str] = set()
    for written_in, record in written:
        if record.source != source:
            continue
        schemas[record.id] = record
        if written_in >= since_epoch:
            latest[record.schema, record.table] = record
        if written_in == epoch:
            sent.add(record.id)
            frozen.setdefault((record.schema, record.table), record.key_columns)
    return Loaded(position, found.topics, schemas, frozen, frozenset(sent), latest, found.ground)


def check_chain(
    position: Position | None, states: Mapping[str, TopicState], ends: Mapping[str, Mapping[int, int]]
) -> None:
    """H17: nothing that a record says was written may be missing. Pure.

    `ends`: topic -> partition -> high watermark, without the topics that are not there. Raises
    PositionError that names the topics.
    """
    if not states:
        return
    source = next(iter(states.values())).source
    lost: list[str] = []
    for name, state in sorted(states.items()):
        if name not in ends:
            lost.append(f"topic {name} was deleted")
            continue
        if position is None or state.flush > position.flush:
            known = "none" if position is None else str(position.flush)
            lost.append(f"topic {name} was written by flush {state.flush}, the last position is of {known}")
            continue
        for partition, last in sorted(state.last_offsets.items()):
            end = ends[name].get(partition, 0)
            if end < last + 1 + COMMIT_MARKER_OFFSETS:
                what = "was made again" if end == 0 else "lost its end, or was made again"
                lost.append(f"topic {name} {what}: partition {partition} had offset {last}, ends at {end}")
                break
    if lost:
        shown = "; ".join(lost[:NAMED_LIMIT])
        more = f"; and {len(lost) - NAMED_LIMIT} more" if len(lost) > NAMED_LIMIT else ""
        raise PositionError(
            f"Kafka no longer has what was published: {shown}{more}",
            where=f"source {source}",
            fix=reset_fix(source),
        )


async def check_beyond(
    brokers: str, security: Security | None, states: Mapping[str, TopicState], ranges: Ranges
) -> None:
    """H17: no committed event may lie beyond its recorded offset, else the positions topic lost its end."""
    beyond: dict[TopicPartition, tuple[int, int]] = {}
    for name, state in states.items():
        for partition, last in state.last_offsets.items():
            place = TopicPartition(name, partition)
            start, end = ranges[place]
            after = max(last + 1 + COMMIT_MARKER_OFFSETS, start)
            if end > after:
                beyond[place] = (after, end)
    for record in await read_to_end(brokers, security, beyond, committed=True):
        state = states[record.topic]
        raise PositionError(
            f"{record.topic}[{record.partition}] holds an event at offset {record.offset}, the last one "
            f"recorded is {state.last_offsets[record.partition]}: the positions topic lost its end, "
            "or another program writes to this topic",
            where=f"source {state.source}",
            fix=f"see that nobody else writes to it, then {reset_fix(state.source)}",
        )
