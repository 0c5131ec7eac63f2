"""What of the suspects is drift where no stream is between the two: what stays the same on both sides.

A derived table that somebody else keeps has no log that a fence could wait for. So both sides' rows are
read again after a pause, and a difference counts when so many looks in a row have shown the same one. That
the target is only behind by more than these looks cannot be told from drift: the report says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from consumers.reconcile.fence import DIFFERENT, EXTRA, MISSING, Fault, Judged, Rows
from consumers.reconcile.sides.base import Key, Row, both

PAUSE_S = 2.0  # between two looks: longer than a trigger or a refresh of one row takes
SAME_LOOKS = 3  # that show the same difference
LOOKS = 8  # a row whose difference was another one all the while is changed all the time
NOTE = (
    "no stream is between the query and the table, and so no fence: what is different, and the same in"
    f" {SAME_LOOKS} looks within {PAUSE_S * (SAME_LOOKS - 1):.0f} s, is drift; a table that is behind by more"
    " looks like it"
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """`times`: looks in a row that have shown it."""

    source: Row | None
    target: Row | None
    times: int


class Settling:
    """For one table."""

    def __init__(
        self,
        ours: Rows,
        theirs: Rows,
        *,
        pause_s: float = PAUSE_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._pause_s = pause_s
        self._pause = pause

    async def judge(self, suspects: Sequence[Key]) -> Judged:
        """Raises the errors of the stores."""
        judged = Judged()
        open_: dict[Key, _Seen | None] = dict.fromkeys(suspects)
        for look in range(LOOKS):
            if not open_:
                break
            if look:
                await self._pause(self._pause_s)
            await self._look(open_, judged)
        judged.in_flight = list(open_)
        return judged

    async def _look(self, open_: dict[Key, _Seen | None], judged: Judged) -> None:
        keys = list(open_)
        ours, theirs = await both(self._ours.rows(keys), self._theirs.rows(keys))
        for key in keys:
            seen = _seen(open_[key], ours.get(key), theirs.get(key))
            if _texts(seen.source) == _texts(seen.target):
                judged.settled += 1
                del open_[key]
            elif seen.times >= SAME_LOOKS:
                judged.faults.append(Fault(_kind(seen), key, seen.source, seen.target))
                del open_[key]
            else:
                open_[key] = seen


def _seen(before: _Seen | None, source: Row | None, target: Row | None) -> _Seen:
    same = before is not None and (before.source, before.target) == (source, target)
    return _Seen(source, target, before.times + 1 if before is not None and same else 1)


def _texts(row: Row | None) -> tuple[str | None, ...] | None:
    return None if row is None else row.texts


def _kind(seen: _Seen) -> str:
    if seen.target is None:
        return MISSING
    return EXTRA if seen.source is None else DIFFERENT
