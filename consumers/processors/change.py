"""A record of an input topic as a Change; pure.

Owns the reading of data topics only. A truncate and the floor that ends a reset are Floors: they concern
every partition of their topic though they stand in one (H5). Tombstones and logical messages are nothing.
The version of another processor's event is (epoch, its offset, 0): the writer cannot know the offset (H15).
"""

from __future__ import annotations

from dataclasses import dataclass

from orjson import JSONDecodeError, loads

from consumers.processors.context import Change, Row, Version
from streamer.changes.envelope import decode_value
from streamer.errors import DecodeError


@dataclass(frozen=True, slots=True)
class Floor:
    """Rows of the topic at or below the version are gone."""

    topic: str
    version: Version
    commit_us: int


def decode(
    topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None
) -> Change | Floor | None:
    """Raises DecodeError."""
    if value is None:
        return None
    where = f"{topic}[{partition}]@{offset}"
    event = decode_value(value, where=where, offset=offset)
    op, epoch, commit_us = event.op, event.epoch, event.commit_us
    version = epoch, event.commit_lsn, event.ordinal
    if op == "m":
        return Floor(topic, (epoch, 0, 0), commit_us) if event.is_floor else None
    if op == "t":
        return Floor(topic, version, commit_us)
    return Change(
        topic, partition, offset, op, key_of(key, where), event.before, event.after, version, commit_us,
        event.schema_id, key or b"", None, value,
    )  # fmt: skip


def key_of(raw: bytes | None, where: str) -> Row:
    """A key is a JSON object; that of a table without a key is empty. Raises DecodeError."""
    if not raw:
        return {}
    try:
        key = loads(raw)
    except JSONDecodeError as error:
        raise DecodeError(f"the key is no JSON: {error.msg}", offset=error.pos, where=where) from None
    if not isinstance(key, dict):
        raise DecodeError(f"the key is {type(key).__name__}, and not a JSON object", offset=0, where=where)
    return key


def deleted_row(topic: str, partition: int, raw_key: bytes, floor: Version, commit_us: int) -> Change:
    """What hop 0 sees of a row below a floor."""
    key = key_of(raw_key, f"{topic}[{partition}]")
    return Change(topic, partition, -1, "d", key, None, None, floor, commit_us, "", raw_key)
