"""Rows that are read again from their source by their keys (H6, H7): the request, whoever asks.

A key that is not there any more becomes a delete, so that nothing waits for it for ever. The run's id is of
the keys and of the versions that they wait at: what is asked for twice is read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from streamer.backfills import ask
from streamer.changes.backfill import NEEDS_REREAD, Key, Request, Run, reread_run
from streamer.changes.names import spelt
from streamer.changes.schema import SchemaRecord
from streamer.config import Config

REREAD_S = 10.0  # between two asks
REREAD_KEYS = 1_000  # in one run: it is done within a second or two

Version = tuple[int, int, int]


def values_of(record: SchemaRecord, key: bytes) -> Key | None:
    """An event's key in the order of the record's columns; None: the table had another key then."""
    try:
        found = orjson.loads(key)
        return tuple(found[name] for name in record.key_columns)
    except (ValueError, KeyError, TypeError):
        return None


async def ask_for_rows(
    config: Config,
    record: SchemaRecord,
    rows: Sequence[tuple[Key, Version]],
    *,
    asker: str,
    by: str,
    now_us: int,
) -> Run:
    """Of the record's table, each with the version of the event that left it so. `asker`: a target or a
    processor. Durable when this returns.

    Raises KafkaUnavailable.
    """
    kafka = config.kafka
    marks = [(*key, *version) for key, version in rows]  # what is left so anew is asked for anew
    epoch = max(version[0] for _, version in rows)
    request = Request(
        reread_run(asker, spelt(record.schema, record.table), epoch, marks), record.source,
        schema=record.schema, table=record.table, by=by, why=NEEDS_REREAD, keyed=True, deletes=True,
        asked_us=now_us,
    )  # fmt: skip
    keys = list(dict.fromkeys(key for key, _ in rows))
    return await ask(
        kafka.brokers,
        kafka.security,
        config.name,
        request,
        keys,
        replication_factor=kafka.topics.replication_factor,
    )
