"""For tests of agents, without Kafka: what a processor makes of the changes in a `consumers.testing.Log`.

    log = Log("shop")
    orders = log.table("orders", {"id": "integer", "total": "numeric"})
    orders.create({"id": 1, "total": "250.00"})
    assert derive(large_orders, log).rows == [{"id": 1, "total": "250.00"}]

The code is that of a worker, in memory; a body that raises is told here, and parks nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from consumers.processors.context import Definition, Given, Row
from consumers.processors.rehearsal import Rehearsal, Sent
from consumers.testing import Log
from streamer.changes.topics import data_topic

OUT = "derived"


@dataclass(frozen=True, slots=True)
class Derivation:
    """`sent`: every event, in order."""

    sent: list[Sent]

    @property
    def rows(self) -> list[Row]:
        """Those that are there in the end, ordered by their keys; of a router without their tables."""
        return self.rows_of("")

    def rows_of(self, table: str) -> list[Row]:
        """Of a router's table; "": of all."""
        found: dict[tuple[str, str], Row] = {}
        for sent in self.sent:
            place = sent.topic, (sent.key or b"").decode()
            if sent.row is None:
                found.pop(place, None)
            elif not table or sent.topic == f"{OUT}.{table}":
                found[place] = sent.row
        return [found[place] for place in sorted(found, key=lambda place: (place[0], _order(place[1])))]


def _order(key: str) -> list[tuple[str, Any]]:
    return [(type(value).__name__, str(value).zfill(20)) for value in orjson.loads(key).values()]


def derive(definition: Definition, log: Log, *, key: Sequence[str] = ()) -> Derivation:
    """Of all that the log holds. `key`: as in the config. Raises AssertionError where the body raises."""
    return asyncio.run(_derive(definition, log, tuple(key)))


async def _derive(definition: Definition, log: Log, key: tuple[str, ...]) -> Derivation:
    schemas: dict[str, list[Any]] = {}
    for record in log.schemas.values():
        schemas.setdefault(data_topic(record.source, record.schema, record.table), []).append(record)
    given = Given("tested", tuple(schemas), OUT, key, schemas)
    rehearsal = Rehearsal(definition, given, partitions=log.partitions)
    sent: list[Sent] = []
    try:
        records = (record for records in log.records.values() for record in records)
        for record in sorted(records, key=lambda record: (record.timestamp, record.topic, record.offset)):
            for one in await rehearsal.handle(record):
                if one.topic == rehearsal.dead_letters:
                    assert one.event is not None
                    raise AssertionError(f"{record.topic} {record.key!r}: {one.event['reason']}")
                sent.append(one)
    finally:
        await rehearsal.close()
    return Derivation(sent)
