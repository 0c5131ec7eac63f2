"""Which input stands still although it grows. Pure.

An offset that does not move says little by itself: one floor may cover a million rows, a body may take a
second for each change, and a worker with many partitions reads them in turn. So it stands still in two ways:

    in hand     a task has changes in hand, and is done with none of them; one that has none in hand stands
                when the whole worker does nothing, because it may be the others' turn
    passed by   rounds go on, and the place has had its turn in none of them: its fetch does not come
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Place: TypeAlias = tuple[int, str]  # task, topic

TURNS = 2  # that a place gets in so many rounds as there are places: what is fetched late misses one


class Lag(NamedTuple):
    at: int  # the offset that is committed
    records: int


class Doing(NamedTuple):
    """A task at a look. `done`: of its units, whatever became of them. `works`: it has a batch in hand."""

    done: int
    works: bool


@dataclass(slots=True)
class _Known:
    at: int
    done: int  # as is counted for the place
    moved_s: float
    moved_round: int
    active_s: float


class Standing:
    """Of one worker."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._known: dict[Place, _Known] = {}

    def forget(self) -> None:
        """Tasks come and go: what is known says nothing."""
        self._known.clear()

    def look(
        self, lags: Mapping[Place, Lag], tasks: Mapping[int, Doing], rounds: int, now_s: float
    ) -> tuple[Place, str] | None:
        """What stands still for too long, and how it shows."""
        everything = rounds + sum(task.done for task in tasks.values())
        known, found = dict[Place, _Known](), None
        for place, lag in lags.items():
            task = tasks[place[0]]
            done = task.done if task.works else everything
            its = self._known.get(place)
            if its is None or lag.records <= 0 or lag.at != its.at:
                its = _Known(lag.at, done, now_s, rounds, now_s)
            elif done != its.done:
                its.done, its.active_s = done, now_s
            known[place] = its
            found = found or self._judged(place, lag, its, rounds - its.moved_round, len(lags), now_s)
        self._known = known
        return found

    def _judged(
        self, place: Place, lag: Lag, its: _Known, rounds: int, places: int, now_s: float
    ) -> tuple[Place, str] | None:
        waits = f"{lag.records:,} records wait at offset {lag.at}, and"
        if (still_s := now_s - its.active_s) > self._limit_s:
            return place, f"{waits} nothing was done for {still_s:.0f} s"
        if (passed_s := now_s - its.moved_s) > self._limit_s and rounds > TURNS * (places + 1):
            return place, f"{waits} they were not read for {passed_s:.0f} s, in {rounds} rounds"
        return None
