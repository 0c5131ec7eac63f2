"""Windows of time as a column of a group: which ones a row belongs to. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from consumers.processors.context import Row
from streamer.errors import BadRecordError, ConfigError

WINDOWS_LIMIT = 1000  # that one row belongs to
_SIZE = re.compile(r"(\d+)(s|m|h|d)").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(
    r"(\d{4,7})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?"
    r"(?:Z|([-+])(\d\d)(?::?(\d\d))?)?)?( BC)?"
).fullmatch
_ENDLESS = ("infinity", "-infinity")
_DAY_S = 86_400
_ERA_DAYS = 146_097  # of 400 years, after which the calendar begins anew
_EPOCH_DAYS = 719_468  # from March 1st of year 0 to 1970
_YEARS = range(-4713, 294_277)  # that a timestamp of Postgres holds


def seconds(text: str, what: str) -> int:
    """ "90s", "15m", "1h", "7d" """
    parts = _SIZE(text) if isinstance(text, str) else None
    if parts is None or int(parts[1]) == 0:
        raise ConfigError(f"{what} {text!r} is no length of time", fix='write "90s", "15m", "1h" or "7d"')
    return int(parts[1]) * _SECONDS[parts[2]]


def binned(type_: str) -> str:
    """The type of date_bin of a column: with time zone, of a date too, unless the column's has none."""
    is_local = type_ == "timestamp" or "without time zone" in type_
    return "timestamp without time zone" if is_local else "timestamp with time zone"


def windows_of(column: str, size_s: int, every_s: int, name: str) -> Callable[[Row], Sequence[Row]]:
    """Of a row: the starts of the windows [start, start + size) that its time is in, as UTC timestamps.

    Windows begin at multiples of `every_s` since 1970 UTC, and reach back before our era. A row without a
    time (null) is in none, one at infinity in the window that begins there, as date_bin says.
    """
    if size_s > every_s * WINDOWS_LIMIT or size_s < every_s:
        raise ConfigError(
            f"windows of {size_s} s every {every_s} s: a row would be in {size_s / every_s:g} of them",
            fix=f"let `every` be at most the size, and the size at most {WINDOWS_LIMIT} times as long",
        )

    def windows(row: Row) -> Sequence[Row]:
        value = row[column]
        if value is None:
            return ()
        if value in _ENDLESS:
            return ({name: value},)
        moment_us = _microseconds(value)
        last_s = moment_us // 1_000_000 // every_s * every_s
        found = []
        start_s = last_s
        while (start_s + size_s) * 1_000_000 > moment_us:
            found.append({name: _text(start_s)})
            start_s -= every_s
        return found

    return windows


def _microseconds(value: object) -> int:
    """Since 1970 UTC, in the calendar of today, as Postgres has it for every year."""
    parts = _TIME(value) if isinstance(value, str) else None
    if parts is None:
        raise BadRecordError(f"{value!r} is no time", fix="name a column of timestamps or dates")
    year, month, day, hour, minute, second, zone_h, zone_m = (
        int(parts[i] or 0) for i in (1, 2, 3, 4, 5, 6, 9, 10)
    )
    if (1 - year if parts[11] else year) not in _YEARS:
        raise BadRecordError(
            f"{value!r} is in a year that no timestamp holds: date_bin refuses it, too",
            fix=f"let the date be before the year {_YEARS.stop}, or use `infinity`",
        )
    days = _days(1 - year if parts[11] else year, month, day)
    east_m = zone_h * 60 + zone_m
    minutes = hour * 60 + minute - (-east_m if parts[8] == "-" else east_m)
    return (days * _DAY_S + minutes * 60 + second) * 1_000_000 + int((parts[7] or "").ljust(6, "0"))


def _days(year: int, month: int, day: int) -> int:
    """Since 1970-01-01; the year before 1 is 0. A year begins with March here, so that a leap day ends it."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * _ERA_DAYS + of_era * 365 + of_era // 4 - of_era // 100 + of_year - _EPOCH_DAYS


def _text(start_s: int) -> str:
    days, clock_s = divmod(start_s, _DAY_S)
    era, of_era = divmod(days + _EPOCH_DAYS, _ERA_DAYS)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    march = (5 * of_year + 2) // 153
    month, day = (march + 2) % 12 + 1, of_year - (153 * march + 2) // 5 + 1
    year += era * 400 + (month <= 2)
    if year not in _YEARS:
        raise BadRecordError(f"its window would begin in the year {year}", fix="let the windows be smaller")
    shown = f"{year if year > 0 else 1 - year:04}-{month:02}-{day:02}"
    clock = f"{clock_s // 3600:02}:{clock_s // 60 % 60:02}:{clock_s % 60:02}"
    return f"{shown}T{clock}Z{'' if year > 0 else ' BC'}"
