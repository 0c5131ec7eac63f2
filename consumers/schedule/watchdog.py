"""From looks to events: what has been wrong for long enough, and what is over for long enough. Pure.

A state that comes and goes is one event, and not one a second: an alarm is told when it has been wrong for
its HOLD_S, and is over when it has been right for CLEAR_S, twice as long each time that it comes back soon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from consumers.control.feed import Wrong
from consumers.schedule import alarms
from consumers.views import FlowState, Status
from streamer.config import Config

# All of them, with what a look takes, are told within 60 s of their beginning.
HOLD_S = {
    "stalled": 10.0,  # a part that falls is back within these; the views have waited for 5 to 30 s already
    "held": 5.0,
    "dead_letter": 5.0,
    "slot_at_risk": 10.0,
    "drift": 0.0,  # what was compared does not flap
    "stale": 0.0,
    "missed_job": 0.0,  # it has had its grace
}
SCHEDULER_HOLD_S = 18.0  # another one takes the jobs over within 15 s
CLEAR_S = 15.0
CLEAR_LIMIT_S = 600.0
RETURN_S = 3600.0  # so soon, it has come back, and is not another
TEXT_S = 30.0  # a text that counts the seconds is not written anew at each look
START_S = 20.0  # in which parts that are started with the watcher say their first word
STILL_S = 30.0  # nothing applied for so long, while the topic grows
PROCESS_STILL_S = 15.0  # a processor's committed offsets, whatever became of its process meanwhile
KAFKA_S = 15.0  # not one heartbeat for so long; a broker that moves is back before


@dataclass(slots=True)
class _Told:
    """An event that is open."""

    wrong: Wrong
    written_s: float
    clear_s: float
    right_s: float | None = None  # since when it is wrong no more


class Holds:
    """`now_s` never goes back."""

    def __init__(self) -> None:
        self._since_s: dict[tuple[str, str], float] = {}
        self._told: dict[tuple[str, str], _Told] = {}
        self._over: dict[tuple[str, str], tuple[float, float]] = {}  # when, after which clear_s

    def adopt(self, open_: Iterable[Wrong], now_s: float) -> None:
        """Events that another watcher has told."""
        for wrong in open_:
            self._told.setdefault((wrong.rule, wrong.subject), _Told(wrong, now_s, CLEAR_S))

    def look(
        self, wrong: Iterable[Wrong], now_s: float, unjudged: Collection[str] = (), *, clears: bool = True
    ) -> list[Wrong]:
        """The events that are open now. Those of `unjudged` subjects are not over because nobody tells them;
        `clears` False: none is."""
        seen = {(each.rule, each.subject): each for each in wrong}
        self._since_s = {key: self._since_s.get(key, now_s) for key in seen}
        for key, each in seen.items():
            told = self._told.get(key)
            if told is not None:
                told.right_s = None
                if now_s - told.written_s >= TEXT_S:
                    told.wrong, told.written_s = each, now_s
            elif now_s - self._since_s[key] >= _hold_s(each):
                self._told[key] = _Told(each, now_s, self._clear_s(key, now_s))
        for key, told in list(self._told.items()):
            if key in seen:
                continue
            if not clears or (key[0] != "stalled" and key[1] in unjudged):
                told.right_s = None
                continue
            if told.right_s is None:
                told.right_s = now_s
            if now_s - told.right_s >= told.clear_s:
                del self._told[key]
                self._over[key] = now_s, told.clear_s
        self._over = {key: each for key, each in self._over.items() if now_s - each[0] < RETURN_S}
        return [told.wrong for told in self._told.values()]

    def _clear_s(self, key: tuple[str, str], now_s: float) -> float:
        over_s, clear_s = self._over.get(key, (None, 0.0))
        came_back = over_s is not None and now_s - over_s < RETURN_S
        return min(CLEAR_LIMIT_S, clear_s * 2) if came_back else CLEAR_S


def _hold_s(wrong: Wrong) -> float:
    return SCHEDULER_HOLD_S if wrong.subject == alarms.SCHEDULER else HOLD_S[wrong.rule]


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a flow was, and its topics' ends, when it last moved."""

    offsets: int
    ends: int
    at_s: float


class Progress:
    """Flows that stand while their topics grow, whatever they say of themselves."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def look(self, status: Status, now_s: float) -> list[Wrong]:
        found = []
        for flow in status.flows:
            name, partitions = flow["name"], flow["partitions"]
            moves = flow["state"] in (FlowState.OK, FlowState.IDLE, FlowState.SLOW)
            if not moves or not partitions or not flow["lag_records"]:
                self._places.pop(name, None)  # told otherwise, or nothing is to be done
                continue
            offsets, ends = (sum(p[key] or 0 for p in partitions) for key in ("offset", "end"))
            place = self._places.get(name)
            if place is None or place.offsets != offsets:
                self._places[name] = place = _Place(offsets, ends, now_s)
            still_s = now_s - place.at_s
            if still_s >= STILL_S and ends > place.ends:
                grown = ends - place.ends
                text = (
                    f"flow {name} has applied nothing for {still_s:.0f} s, and {grown:,} records have come:"
                    f" see `tailrace lag`, and the log of apply:{flow['target']}"
                )
                found.append(Wrong("stalled", f"flow {name}", text))
        return found


@dataclass(slots=True)
class _Share:
    """A task of a processor. `active_s`: when it last moved, or the worker that had it then did anything."""

    offset: int
    waiting: int
    worker: str
    done: int | None
    active_s: float


class Processors:
    """Tasks of processors that stand still while they have input, whoever has them meanwhile: also those of
    workers that are started again and again, or take each other's place, each of which says for a while that
    it works."""

    def __init__(self) -> None:
        self._shares: dict[str, dict[int, _Share]] = {}

    def look(self, status: Status, now_s: float) -> list[Wrong]:
        found = []
        for view in status.processors:
            name = view["name"]
            shares = self._shares.setdefault(name, {})
            for told in view["shares"]:
                for number, offset, waiting in told["tasks"]:
                    its = shares.get(number)
                    if its is None or not waiting or its.offset != offset:
                        shares[number] = _Share(offset, waiting, told["worker"], told["done"], now_s)
                        continue
                    its.waiting = waiting
                    if its.worker == told["worker"] and its.done != told["done"]:
                        its.done, its.active_s = told["done"], now_s
            still = {
                number: now_s - its.active_s
                for number, its in shares.items()
                if its.waiting and now_s - its.active_s >= PROCESS_STILL_S
            }
            if still:
                records = sum(shares[number].waiting for number in still)
                which = "" if len(still) == len(shares) else f" with {_tasks(sorted(still), len(shares))}"
                text = (
                    f"processor {name} stands still for {max(still.values()):.0f} s{which}, and {records:,}"
                    f" records wait: see `tailrace status`, and the log of process:{name}"
                )
                found.append(Wrong("stalled", f"processor {name}", text))
        return found


def _tasks(numbers: Sequence[int], of: int) -> str:
    names = ", ".join(map(str, numbers))
    return f"task {names} of {of}" if len(numbers) == 1 else f"tasks {names} of {of}"


class Watchdog:
    """One watcher's memory. `now_s`: of a clock that never goes back; each look's is later."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._first_s: float | None = None  # when heartbeats were read first
        self._holds = Holds()
        self._progress = Progress()
        self._processors = Processors()
        self._last: list[Wrong] = []  # of the last heartbeats that were read
        self._unjudged: set[str] = set()

    def adopt(self, open_: Iterable[Wrong], now_s: float) -> None:
        """Events that another watcher has told: they are over when this one has seen so for long enough."""
        self._holds.adopt(open_, now_s)

    def look(
        self,
        status: Status | None,
        schedule: Sequence[Wrong],
        now_s: float,
        *,
        kafka: str = "",
    ) -> list[Wrong]:
        """The events that are open now. `status` None: the heartbeats cannot be read, as `kafka` says, and
        what they said last stays. `schedule`: what is wrong with the jobs and who runs them."""
        found = list(schedule)
        if status is not None and self._first_s is None:
            self._first_s = now_s
        young = self._first_s is None or now_s - self._first_s < START_S
        if young:
            found = [wrong for wrong in found if wrong.subject != alarms.SCHEDULER]
        if status is not None:
            self._last = alarms.of_status(self._config, status, young=young)
            self._unjudged = alarms.unjudged(status)
            self._last += self._progress.look(status, now_s)
            self._last += self._processors.look(status, now_s)
        elif kafka:
            # What moved meanwhile nobody has seen: nothing stood still for so long.
            self._progress, self._processors = Progress(), Processors()
            found.append(Wrong("stalled", "kafka", f"no heartbeat can be read: {kafka}"))
        return self._holds.look([*self._last, *found], now_s, self._unjudged, clears=not young)
