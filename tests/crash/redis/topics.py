"""The topics as a read_committed consumer sees them: their fold, and what their versions must never do.

Owns the counts of what went wrong in the log itself. It knows the envelope and game.ENTITIES, nothing of
the capture.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Set
from datetime import datetime
from typing import Any

import orjson
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from streamer.changes.topics import entity_topic, message_topic
from streamer.kafka import offset_ranges, reader
from tests.crash.redis.expected import Expected, Log, Row, RowKey, id_of
from tests.crash.redis.game import ENTITIES

POLL_MS = 100
POLL_RECORDS = 2_000  # decoded at one go: the proxy lives in the same loop
SAMPLES = 8
GAP_PREFIX = "tailrace.gap"
JSON_COLUMNS = {"cards": "value", "ranks": "value", "pools": "value", "lines": "value", "logs": "content"}

Version = tuple[int, int, int]


class Topics:
    """Reads on from where it stopped at each `read`."""

    def __init__(self, brokers: str, source: str, partitions: int) -> None:
        self.events = 0
        self.doubled = 0
        self.regressed = 0
        self.repeated = 0  # events that change nothing
        self.gaps: Counter[str] = Counter()  # said, by reason
        self.healed = 0
        self.open = False  # the last word was of a gap, not of its end
        self.all_committed = False  # when the last `read` began, nothing of what it found was open
        self.samples: list[str] = []
        self.rows: dict[str, dict[RowKey, Row]] = {name: {} for name in ENTITIES}
        self._versions: dict[tuple[str, bytes], Version] = {}
        self._brokers = brokers
        self._messages = message_topic(source)
        names = {entity_topic(source, entity): entity for entity in ENTITIES}
        self._entities = names
        self._places = {
            TopicPartition(topic, n): 0 for topic in (*names, self._messages) for n in range(partitions)
        }

    async def read(self) -> int:
        """On to the ends of this moment; how many records came."""
        count = 0
        self.all_committed = False
        ranges = await offset_ranges(self._brokers, None, list(self._places))
        async with reader(self._brokers, None, committed=True) as consumer:
            stable = await consumer.end_offsets(list(self._places))
        self.all_committed = all(stable[place] >= end for place, (_, end) in ranges.items())
        waiting = {p for p, (_, end) in ranges.items() if self._places[p] < end}
        if not waiting:
            return 0
        async with reader(self._brokers, None, committed=True) as consumer:
            assigned = sorted(waiting)
            consumer.assign(assigned)
            for place in assigned:
                consumer.seek(place, self._places[place])
            while waiting:
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
                for place, records in batches.items():
                    for record in records:
                        self._record(place.topic, record)
                    count += len(records)
                for place in assigned:
                    self._places[place] = await consumer.position(place)
                    if self._places[place] >= ranges[place][1]:
                        waiting.discard(place)
                await asyncio.sleep(0)
        return count

    def _record(self, topic: str, record: ConsumerRecord[bytes, bytes]) -> None:
        if record.value is None:
            return
        event = orjson.loads(record.value)
        if event["op"] == "m":
            if topic == self._messages and event["message"]["prefix"] == GAP_PREFIX:
                self._gap(orjson.loads(b64decode(event["message"]["content"])))
            return
        self.events += 1
        entity, origin = self._entities[topic], event["source"]
        version = origin["epoch"], origin["commit_lsn"], origin["ordinal"]
        before = self._versions.get((entity, record.key))
        if before is not None and version <= before:
            self.doubled += version == before
            self.regressed += version < before
            self._sample(f"{entity} {record.key!r}: {version} after {before}")
        self._versions[entity, record.key] = version
        key = tuple(orjson.loads(record.key).values())
        rows = self.rows[entity]
        if event["op"] == "d":
            if rows.pop(key, None) is None:
                self.repeated += 1
            return
        row = plain(entity, event["after"])
        if rows.get(key) == row:
            self.repeated += 1
            self._sample(f"{entity} {key}: {version} says again {row}")
        rows[key] = row

    def _gap(self, content: dict[str, Any]) -> None:
        self.open = content["state"] == "open"
        if self.open:
            self.gaps[content["reason"]] += 1
        else:
            self.healed += 1

    def _sample(self, sample: str) -> None:
        if len(self.samples) < SAMPLES:
            self.samples.append(sample)

    def differences(self, expected: Expected) -> tuple[list[str], list[str]]:
        """(rows that Redis has and the fold has not, rows that are other or ought to be gone)."""
        lost, stale = [], []
        for entity, rows in self.rows.items():
            wanted: Mapping[RowKey, Row] = expected.rows.get(entity, {})
            if rows == wanted:
                continue
            for key, row in wanted.items():
                found = rows.get(key)
                if found is None:
                    lost.append(f"{entity} {key}: {row}")
                elif found != row:
                    stale.append(f"{entity} {key}: is {found}, Redis has {row}")
            others = rows.keys() - wanted.keys()
            if entity == "logs":
                others -= trimmed(others, expected.logs)
            for key in others:
                if (entity, key) not in expected.anything and (entity, key[0]) not in expected.unread:
                    stale.append(f"{entity} {key}: is {rows[key]}, Redis has none")
        return lost, stale


def trimmed(rows: Set[RowKey], logs: Mapping[RowKey, Log]) -> set[RowKey]:
    """Of rows that are no entries now, those that their streams may have lost: in front of the first entry,
    and no more than the stream has lost by its own count, the latest of them."""
    before: dict[RowKey, list[tuple[tuple[int, ...], RowKey]]] = {}
    for row in rows:
        log, entry = logs.get(row[:2]), id_of(row[2])
        if log is not None and entry < log.first:
            before.setdefault(row[:2], []).append((entry, row))
    return {
        row for stream, found in before.items() for _, row in sorted(found, reverse=True)[: logs[stream].lost]
    }


def plain(entity: str, row: Row) -> Row:
    """A row in the form of `expected`."""
    column = JSON_COLUMNS.get(entity)
    if column is not None:
        row[column] = orjson.loads(row[column])
    if row.get("until") is not None:
        row["until"] = round(datetime.fromisoformat(row["until"]).timestamp() * 1000)
    return row
