"""The changelog: every write to a task's state, in partition p of `<out>.__state`, and reading it back.

    key     a full key of the state; value: its bytes, or null
    wrote   key: a topic and a partition; value: the last offset taken there, of outputs that have changed
    commit  the last record of each transaction: {"id":..,"offsets":{topic: next},"partitions":N,"seen":{..}}
    epoch   {"epoch":..,"offsets":{..},"goals":{..}}: a reset; what stood before it does not count

The consumed offsets are here, in the transaction of what was made of them; the group's follow, for lag tools.
A store is brought up from its mark when the commit record that it names is still there, as then nothing after
it has been compacted away (a delete would be missing); else from the start of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson
from aiokafka import TopicPartition

from consumers.processors.shapes import FIRST_EPOCH
from consumers.processors.state import NUL, Mark, Store, table_prefix
from streamer.errors import FatalError
from streamer.kafka import Security, offset_ranges, read_batches

META = "_meta"
COMMIT_KEY = table_prefix(META) + b"commit"
EPOCH_KEY = table_prefix(META) + b"epoch"
WROTE = table_prefix("_wrote")
WRITE_KEYS = 20_000  # at once into the store while it is brought up: about 10 MB
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a task stands. `offsets`: the next of each topic that it reads. `seen`: of inputs, the offset and
    the timestamp of one of the last records before it, by which a topic that was made again is told (H14)."""

    id: str
    offsets: Mapping[str, int]
    partitions: int
    seen: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def dump(self) -> bytes:
        raw = {"id": self.id, "offsets": dict(self.offsets), "partitions": self.partitions}
        raw["seen"] = dict(self.seen)
        return orjson.dumps({"format": FORMAT, **raw})

    @classmethod
    def load(cls, value: bytes, where: str) -> Commit:
        raw = orjson.loads(value)
        _check(raw, where)
        seen = {topic: (offset, timestamp) for topic, (offset, timestamp) in raw["seen"].items()}
        return cls(raw["id"], raw["offsets"], raw["partitions"], seen)


@dataclass(frozen=True, slots=True)
class Epoch:
    """Of derived rows. After a reset: `offsets` to start at (others: the start of the log), `goals`: the ends
    of the inputs then, at which the rows of older epochs that were not derived again are given up."""

    epoch: int = FIRST_EPOCH
    offsets: Mapping[str, int] = field(default_factory=dict)
    goals: Mapping[str, int] = field(default_factory=dict)

    def dump(self) -> bytes:
        raw = {"epoch": self.epoch, "offsets": dict(self.offsets), "goals": dict(self.goals)}
        return orjson.dumps({"format": FORMAT, **raw})

    @classmethod
    def load(cls, value: bytes, where: str) -> Epoch:
        raw = orjson.loads(value)
        _check(raw, where)
        return cls(raw["epoch"], raw["offsets"], raw["goals"])


def _check(raw: Mapping[str, object], where: str) -> None:
    if raw.get("format") != FORMAT:
        raise FatalError(
            f"the changelog has format {raw.get('format')}, this program reads {FORMAT}",
            where=where,
            fix="run the version of Tailrace that wrote it, or a newer one",
        )


def commit_of(store: Store, where: str) -> Commit | None:
    value = store.get(COMMIT_KEY)
    return None if value is None else Commit.load(value, where)


def wrote_key(place: TopicPartition) -> bytes:
    topic, partition = f"{place.topic}", f"{place.partition}"
    return WROTE + topic.encode() + NUL + partition.encode()


def wrote_of(records: Iterable[tuple[bytes | None, bytes | None]]) -> dict[TopicPartition, int]:
    """The last offset that a task has taken in each partition of its outputs; by it a transaction is judged
    that Kafka has left open. `records`: (key, value) of the changelog in order, or of a store."""
    found: dict[TopicPartition, int] = {}
    for key, value in records:
        if key is not None and value is not None and key.startswith(WROTE):
            topic, _, partition = key[len(WROTE) :].partition(NUL)
            found[TopicPartition(topic.decode(), int(partition))] = int(value)
    return found


def epoch_of(store: Store, where: str) -> Epoch:
    value = store.get(EPOCH_KEY)
    return Epoch() if value is None else Epoch.load(value, where)


async def recover(brokers: str, security: Security | None, topic: str, partition: int, store: Store) -> int:
    """Bring the store up to the changelog; how many records were read. Raises KafkaUnavailable, FatalError.

    Up to the read_uncommitted end (H12): after the fence no transaction is open that could be ours.
    """
    place = TopicPartition(topic, partition)
    where = f"{topic}[{partition}]"
    start, end = (await offset_ranges(brokers, security, [place]))[place]
    mark = store.mark
    if mark is not None and start < mark.next_offset <= end:
        count = await _read(brokers, security, place, mark.next_offset - 1, end, store, where)
        if count is not None:
            return count
    if mark is not None or end > start:
        store.clear()
    return await _read(brokers, security, place, start, end, store, where) or 0


async def _read(
    brokers: str,
    security: Security | None,
    place: TopicPartition,
    start: int,
    end: int,
    store: Store,
    where: str,
) -> int | None:
    """None: the store's mark is not of this log, and nothing was read."""
    mark = expected = store.mark
    pending: dict[bytes, bytes | None] = {}
    count = 0
    async for batch in read_batches(brokers, security, {place: (start, end)}, committed=True):
        for record in batch:
            key, value = record.key or b"", record.value
            if expected is not None:
                if not _is(record.offset, key, value, expected, where):
                    return None
                expected = None
                continue
            count += 1
            if key == EPOCH_KEY:
                pending.clear()
                store.clear()
                mark = None
            pending[key] = value
            if key == COMMIT_KEY and value is not None:
                mark = Mark(record.offset + 1, Commit.load(value, where).id)
                if len(pending) >= WRITE_KEYS:
                    store.write(pending, mark)
                    pending.clear()
    if expected is not None:
        return None
    if pending:
        store.write(pending, mark)
    return count


def _is(offset: int, key: bytes, value: bytes | None, mark: Mark, where: str) -> bool:
    return (
        offset == mark.next_offset - 1
        and key == COMMIT_KEY
        and value is not None
        and Commit.load(value, where).id == mark.commit
    )
