"""Which channels are told of which events, when again, and when it is over. Pure.

A channel is told once when an event begins, again after each `repeat` of the rule that names it while the
event is open, and once when it is over, if it was told that it began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from consumers.control.feed import RESOLVED, Event, Told
from streamer.config.operations import AlertRule

OPEN, REPEAT = "open", "repeat"

Owed = tuple[int, str, str, int]  # event, channel, kind, number of the repeat


def repeats_s(rule: str, rules: Sequence[AlertRule]) -> dict[str, float]:
    """Channel -> the shortest time between two messages, for an event of this rule."""
    found: dict[str, float] = {}
    for each in rules:
        if rule in each.when:
            for channel in each.to:
                found[channel] = min(each.repeat_s, found.get(channel, each.repeat_s))
    return found


def owed(
    known: Iterable[tuple[Event, Mapping[str, Told]]], rules: Sequence[AlertRule], now_us: int
) -> list[Owed]:
    """What is to be sent now. `known`: that are open or ended of late; what channels were told."""
    found: list[Owed] = []
    for event, channels in known:
        if event.resolved_us is not None:
            over = [name for name, told in channels.items() if told.count and not told.resolved]
            found += [(event.event, name, RESOLVED, 0) for name in over]
            continue
        for name, repeat_s in repeats_s(event.rule, rules).items():
            told = channels.get(name, Told())
            if told.count == 0:
                found.append((event.event, name, OPEN, 0))
            elif now_us - told.last_us >= repeat_s * 1e6:
                found.append((event.event, name, REPEAT, told.count))
    return found
