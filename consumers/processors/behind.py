"""For how long a task is behind the source's commits. Pure.

The newest change that is committed says it while it works. After a pause that one is old, and what waits is
not: it has come since the task was seen to have done everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Pace(NamedTuple):
    """A task at a look. `commit_us`: the source's time of the newest change that is committed, 0: of none."""

    lag_records: int
    commit_us: int


class Behind:
    """Of one worker."""

    def __init__(self) -> None:
        self._through: dict[int, tuple[int, int]] = {}  # task: when it had done all, and commit_us then

    def look(self, tasks: Mapping[int, Pace], now_us: int) -> float:
        """Seconds of the task that is furthest behind; 0.0 when none is, or nothing is known."""
        through, worst_us = dict[int, tuple[int, int]](), 0
        for number, (lag, commit_us) in tasks.items():
            if lag <= 0:
                through[number] = now_us, commit_us
                continue
            since_us = commit_us
            if (seen := self._through.get(number)) is not None:
                through[number] = seen
                if seen[1] == commit_us:
                    since_us = seen[0]
            if since_us:
                worst_us = max(worst_us, now_us - since_us)
        self._through = through
        return round(worst_us / 1e6, 1)
