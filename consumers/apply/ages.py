"""How old the oldest change of a partition is that is not applied. Pure.

Two things tell it: what was read of the partition (a change names its commit), and the log's end, looked at
once a second: what has come since the last look is not older than that. Between two marks the earlier counts.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

MARKS_LIMIT = 64  # a partition; of more every second one goes: an age is then too high rather than too low

LATEST_US = 2**63  # above every time


class Mark(NamedTuple):
    """What stands at this offset was committed at this time, by the source's clock."""

    offset: int
    commit_us: int


class Ages:
    def __init__(self) -> None:
        self._marks: list[Mark] = []  # by offset

    def note(self, offset: int, commit_us: int) -> None:
        marks = self._marks
        at = bisect_right(marks, (offset, LATEST_US))
        if at and marks[at - 1].offset == offset:
            at -= 1
            commit_us = min(commit_us, marks.pop(at).commit_us)
        marks.insert(at, Mark(offset, commit_us))
        if len(marks) > MARKS_LIMIT:
            del marks[1::2]

    def oldest_us(self, applied: int) -> int | None:
        """When the change at this offset was committed; None: nothing is known of it."""
        at = bisect_right(self._marks, (applied, LATEST_US))
        if at == 0:
            return None
        del self._marks[: at - 1]
        return self._marks[0].commit_us
