"""A cron line, as crontab(5) reads it: what it says of days and weekdays, and its moments. Pure.

    line  = minute hour day month weekday      fields with blanks between them
    field = part ["," part]...
    part  = ("*" | value ["-" value]) ["/" step]
    value = a number; jan..dec of a month; sun..sat or 0..7 of a weekday, of which 0 and 7 are Sunday

A moment fits that has its day and its weekday; when neither of the two fields begins with "*", one that has
either. APScheduler counts weekdays from Monday and knows no "either": it is given lists of names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

_CHARACTERS = re.compile(r"[0-9A-Za-z*,/\- \t]+")
_PART = re.compile(r"(?:\*|([a-z]+|[0-9]+)(?:-([a-z]+|[0-9]+))?)(?:/([0-9]+))?")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    low: int
    high: int
    names: Sequence[str] = ()  # of `low` and those after it


_KINDS = (
    _Kind("minute", 0, 59),
    _Kind("hour", 0, 23),
    _Kind("day", 1, 31),
    _Kind("month", 1, 12, _MONTHS),
    _Kind("weekday", 0, 7, _WEEKDAYS),
)


class CronLine:
    """Raises ValueError, in words for people, for what is none."""

    def __init__(self, line: str) -> None:
        from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415 - 0.2 s that most configs do without

        if not _CHARACTERS.fullmatch(line):
            raise ValueError("it holds characters that no cron line has")
        fields = line.split()
        if len(fields) != len(_KINDS):
            raise ValueError(f"it has {len(fields)} fields, not {len(_KINDS)}")
        minutes, hours, days, months, numbers = (
            _values(field.lower(), kind) for field, kind in zip(fields, _KINDS, strict=True)
        )
        weekdays = {number % 7 for number in numbers}

        def trigger(*, by_day: bool, by_weekday: bool) -> CronTrigger:
            return CronTrigger(
                minute=_listed(minutes, 60),
                hour=_listed(hours, 24),
                day=_listed(days, 31) if by_day else "*",
                month=_listed(months, 12),
                day_of_week=",".join(_WEEKDAYS[n] for n in sorted(weekdays)) if by_weekday else "*",
                timezone=UTC,
            )

        self.every_hour = len(hours) == 24
        if fields[2].startswith("*") or fields[4].startswith("*"):
            self._triggers = [trigger(by_day=True, by_weekday=True)]
        else:
            self._triggers = [trigger(by_day=True, by_weekday=False), trigger(by_day=False, by_weekday=True)]

    def at_or_after(self, moment: datetime) -> datetime | None:
        """Its next moment on a clock that is never moved; both are in UTC. None: it never comes."""
        found = [trigger.get_next_fire_time(None, moment) for trigger in self._triggers]
        return min((each for each in found if each is not None), default=None)


def _values(field: str, kind: _Kind) -> set[int]:
    return {value for part in field.split(",") for value in _of_part(part, kind)}


def _of_part(part: str, kind: _Kind) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is no {kind.name}")
    first_text, last_text, step_text = match.groups()
    step = int(step_text or 1)
    top = 6 if kind.name == "weekday" else kind.high  # 7 is another name of 0
    if first_text is None:
        first, last = kind.low, top
    else:
        first = _number(first_text, kind)
        last = _number(last_text, kind) if last_text else first if step_text is None else top
    if last == 0 < first and last_text == "sun":  # fri-sun: the week ends with it, too
        last = 7
    if last < first:
        raise ValueError(f"{part!r} ends before it begins")
    if not 0 < step <= max(1, last - first):
        raise ValueError(f"{part!r}: no second {kind.name} is {step} later")
    return range(first, last + 1, step)


def _number(text: str, kind: _Kind) -> int:
    if text in kind.names:
        return kind.low + kind.names.index(text)
    if not text.isdecimal() or not kind.low <= int(text) <= kind.high:
        names = f", or {kind.names[0]} to {kind.names[-1]}" if kind.names else ""
        raise ValueError(f"{text!r} is no {kind.name}: {kind.low} to {kind.high}{names}")
    return int(text)


def _listed(values: set[int], all_: int) -> str:
    return "*" if len(values) == all_ else ",".join(map(str, sorted(values)))
