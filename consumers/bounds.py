"""Where in a log something begins or ends, as people write it, and the offsets that this means.

start | end       of the log
1500              an offset
10m, 2h, 7d       so long ago, by the time of publishing
2026-11-22T14:30  a time, UTC unless it says otherwise; a date alone is its midnight
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic_core import PydanticCustomError

from streamer.changes.lsn import format_lsn
from streamer.config.units import parse_duration
from streamer.errors import ConfigError
from streamer.kafka import READ_DEADLINE_S, kafka_errors

_OFFSET = re.compile(r"[0-9]{1,18}").fullmatch
_AGO = re.compile(r"[0-9.]+ ?[a-z]+").fullmatch

Offsets = dict[TopicPartition, int]


class Kind(StrEnum):
    START = "start"
    END = "end"
    OFFSET = "offset"
    TIME = "time"
    LSN = "lsn"  # of a replay: found by the events themselves


@dataclass(frozen=True, slots=True)
class Bound:
    """`value`: an offset, milliseconds since 1970, or an LSN."""

    kind: Kind
    value: int = 0

    @property
    def text(self) -> str:
        if self.kind is Kind.TIME:
            return f"{datetime.fromtimestamp(self.value / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
        if self.kind is Kind.LSN:
            return format_lsn(self.value)
        return str(self.value) if self.kind is Kind.OFFSET else str(self.kind)


def parse_bound(text: str, option: str, now_ms: int) -> Bound:
    """Raises ConfigError that names the option."""
    if text in (Kind.START, Kind.END):
        return Bound(Kind(text))
    if _OFFSET(text):
        return Bound(Kind.OFFSET, int(text))
    return Bound(Kind.TIME, parse_time(text, option, now_ms, or_="start, end, an offset, "))


def parse_time(text: str, option: str, now_ms: int, *, or_: str = "") -> int:
    """A time, or how long ago -> milliseconds since 1970. Raises ConfigError, which says `or_`, too."""
    if _AGO(text):
        try:
            return now_ms - round(parse_duration(text) * 1000)
        except PydanticCustomError:
            pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is no {'place in a log' if or_ else 'time'}",
            fix=f"write {or_}a time (2026-11-22T14:30, UTC unless it says otherwise) or how long ago"
            " (10m, 2h, 7d)",
        ) from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


async def ends_of(
    client: AIOKafkaConsumer, partitions: Collection[TopicPartition], brokers: str
) -> tuple[Offsets, Offsets]:
    """Starts and ends of the logs; of a client that reads what is committed, the ends of that."""
    with kafka_errors("reading offsets", brokers=brokers):
        async with _deadline():
            return await client.beginning_offsets(partitions), await client.end_offsets(partitions)


async def offsets_of(
    bound: Bound, client: AIOKafkaConsumer, starts: Mapping[TopicPartition, int], ends: Offsets, brokers: str
) -> Offsets:
    """Between start and end, whatever the bound says."""
    if bound.kind is Kind.START:
        return dict(starts)
    if bound.kind is Kind.END:
        return dict(ends)
    if bound.kind is Kind.OFFSET:
        return {p: min(max(bound.value, start), ends[p]) for p, start in starts.items()}
    with kafka_errors("looking for a time in the log", brokers=brokers):
        async with _deadline():
            found = await client.offsets_for_times(dict.fromkeys(starts, bound.value))
    at = {p: ends[p] if found[p] is None else found[p].offset for p in starts}
    return {p: min(max(offset, starts[p]), ends[p]) for p, offset in at.items()}


def _deadline() -> asyncio.Timeout:
    return asyncio.timeout(READ_DEADLINE_S)
