"""When a job is due: at intervals, at times of the day, or by a cron line, in a time zone. Pure.

A moment is named by the wall clock of the zone. One that a change of clocks leaves out (02:30 when 02:00
becomes 03:00) is taken as much later as the clock was moved (03:30); one that there is twice is the first.
So a time of day comes once a day, on every day. A cron line of every hour, of all 24 of them, comes in the
repeated hour, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from streamer.config.cron import CronLine

DAYS_AHEAD = 3  # within which each time of the day comes at least once, whatever the clocks do
CLOCKS_MOVED = timedelta(hours=2)  # at once, at most: within it the wall clock's order is not that of time
LINES_KEPT = 1_000  # read once: more than a config's jobs
MOMENTS_KEPT = 4_000  # each turn asks for the next moment after the same one, until that has come
CRON_YEARS = 40  # looked ahead: a 29 February of one weekday comes within them, across a century, too


class Times(Protocol):
    def after(self, moment: datetime) -> datetime | None:
        """The next moment later than this one, in UTC; None: never."""


@dataclass(frozen=True, slots=True)
class Every:
    """Counted from the last start."""

    seconds: float

    def after(self, moment: datetime) -> datetime | None:
        return moment.astimezone(UTC) + timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class At:
    """At times of the day."""

    clocks: Sequence[time]
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        return min(found for found in self._near(moment) if found > moment)

    def _near(self, moment: datetime) -> Iterator[datetime]:
        today = moment.astimezone(self.zone).date()
        for days in range(-1, DAYS_AHEAD):
            for clock in self.clocks:
                yield on_clock(today + timedelta(days=days), clock, self.zone)


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron line of five fields."""

    line: str
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        return _cron_after(self.line, self.zone, moment.astimezone(UTC))


@lru_cache(maxsize=MOMENTS_KEPT)
def _cron_after(text: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """By the wall clock, for which every day has 24 hours; then put into the zone."""
    line = _cron_line(text)
    folds = (0, 1) if line.every_hour else (0,)
    wall = moment.astimezone(zone).replace(tzinfo=UTC, fold=0)
    if _clocks_move(zone, moment):
        wall -= CLOCKS_MOVED
    last = wall + timedelta(days=366 * CRON_YEARS)
    best: datetime | None = None
    found = line.at_or_after(wall)
    while found is not None and found <= last:
        for fold in folds:
            real = on_clock(found.date(), found.time().replace(fold=fold), zone)
            if real > moment and (best is None or real < best):
                if not _clocks_move(zone, real):
                    return real
                best, last = real, found + CLOCKS_MOVED
        found = line.at_or_after(found + timedelta(microseconds=1))
    return best


@lru_cache(maxsize=LINES_KEPT)
def _cron_line(text: str) -> CronLine:
    return CronLine(text)


def _clocks_move(zone: ZoneInfo, at: datetime) -> bool:
    """So near to this moment that the wall clock's order there may not be that of time."""
    around = (at - 2 * CLOCKS_MOVED, at + 2 * CLOCKS_MOVED)
    before, after = (each.astimezone(zone).utcoffset() for each in around)
    return before != after


def on_clock(day: date, clock: time, zone: ZoneInfo) -> datetime:
    """When the zone's clocks show it, in UTC."""
    return datetime.combine(day, clock, zone).astimezone(UTC)


def to_us(at: datetime) -> int:
    """Microseconds since 1970 UTC."""
    return int(at.timestamp() * 1e6)
