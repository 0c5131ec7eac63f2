"""Windows of time as a column of a group: which ones a row belongs to. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from consumers.processors.context import Row
from streamer.errors import BadRecordError, ConfigError

WINDOWS_LIMIT = 1000  # that one row belongs to
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SIZE = re.compile(r"(\d+)(s|m|h|d)").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_US = timedelta(microseconds=1)


def seconds(text: str, what: str) -> int:
    """ "90s", "15m", "1h", "7d" """
    parts = _SIZE(text)
    if parts is None or int(parts[1]) == 0:
        raise ConfigError(f"{what} {text!r} is no length of time", fix='write "90s", "15m", "1h" or "7d"')
    return int(parts[1]) * _SECONDS[parts[2]]


def windows_of(column: str, size_s: int, every_s: int, name: str) -> Callable[[Row], Sequence[Row]]:
    """Of a row: the starts of the windows [start, start + size) that its time is in, as UTC timestamps.

    Windows begin at multiples of `every_s` since 1970 UTC. A row without a time (null, infinity, BC) is in
    none.
    """
    if size_s > every_s * WINDOWS_LIMIT or size_s < every_s:
        raise ConfigError(
            f"windows of {size_s} s every {every_s} s: a row would be in {size_s / every_s:g} of them",
            fix=f"let `every` be at most the size, and the size at most {WINDOWS_LIMIT} times as long",
        )

    def windows(row: Row) -> Sequence[Row]:
        moment_us = _microseconds(row[column])
        if moment_us is None:
            return ()
        last_s = moment_us // 1_000_000 // every_s * every_s
        found = []
        start_s = last_s
        while (start_s + size_s) * 1_000_000 > moment_us:
            found.append({name: _text(start_s)})
            start_s -= every_s
        return found

    return windows


def _microseconds(value: object) -> int | None:
    if value is None or value in ("infinity", "-infinity"):
        return None
    if not isinstance(value, str):
        raise BadRecordError(f"{value!r} is no time", fix="name a column of timestamps or dates")
    if value.endswith(" BC"):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise BadRecordError(f"{value!r} is no time", fix="name a column of timestamps or dates") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _US


def _text(start_s: int) -> str:
    return f"{_EPOCH + timedelta(seconds=start_s):%Y-%m-%dT%H:%M:%S}Z"
