"""Supervision by offsets' progress, and what a processor says of itself in `status`.

A task whose input goes on while it stands still (see standing) ends the process: a body that waits for ever,
a fetch that never comes, a group that has forgotten us. A body that blocks the whole event loop is ended by a
thread, and one that keeps Python's lock all the while (a regular expression that does not end) by the kernel:
SIGALRM, which leaves the stacks in the log.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from consumers.processors.behind import Behind, Pace
from consumers.processors.held_up import HeldUp
from consumers.processors.membership import REVOKE_S
from consumers.processors.standing import Doing, Lag, Place, Standing
from streamer.errors import EXIT_RUNTIME, KafkaUnavailable, RetryableError
from streamer.status import State

if TYPE_CHECKING:
    from consumers.processors.task import Task
    from consumers.processors.worker import Worker

STAND_STILL_S = 15.0  # with the supervisor's restart and the alarm it is under 30 s
LOOK_S = 1.0
SLACK_S = 3.0  # above what a member that gives its tasks up may take
RATE_WINDOW_S = 5.0
LOCK_S = 3.0  # in which the thread, if it gets Python's lock, ends the process with its last word


class StandsStill(RetryableError):
    """There is input, and nothing is done with it."""


Told: TypeAlias = Callable[[StandsStill], None]


class Watch:
    """Of one worker."""

    def __init__(
        self, worker: Worker, *, stand_still_s: float, look_s: float, last_word: Told | None
    ) -> None:
        self._worker = worker
        self._look_s = look_s
        self._stand_still_s = stand_still_s
        self._standing = Standing(stand_still_s)
        self._behind = Behind()
        self._rates: deque[tuple[float, int, int]] = deque()
        self._away = ""
        self._held_up = HeldUp()
        self._heard_s = time.monotonic()
        self._unsettled_s: float | None = None
        where = f"processor {worker.names.processor}"
        self._thread = _Thread(stand_still_s, where, last_word) if last_word is not None else None

    async def run(self) -> None:
        """Until cancelled. Raises StandsStill."""
        while True:
            await asyncio.sleep(self._look_s)
            worker = self._worker
            tasks = dict(worker.tasks)
            self._judge_group()
            if self._unsettled_s is not None or worker.is_opening:
                self._standing.forget()
                continue
            try:
                ends = await worker.membership.ends(tasks)
            except KafkaUnavailable as error:
                self._away = str(error)
                worker.say(State.WAITING, self._away)
                if time.monotonic() - self._heard_s > self._stand_still_s:
                    raise  # a Kafka that is back may not be found by clients that have lost it
                continue
            self._heard_s = time.monotonic()
            tasks = {n: task for n, task in tasks.items() if worker.tasks.get(n) is task}  # not given up
            away = self._held_up.look(worker.membership.stable_ends(), self._heard_s)
            if away != self._away:
                self._away = away
                worker.say(State.WAITING if away else State.STREAMING, away)
            lags: dict[Place, Lag] = {}
            for (topic, number), end in ends.items():
                if number in tasks:
                    at = tasks[number].committed.get(topic, 0)
                    lags[number, topic] = Lag(at, end - at)
            self._judge(tasks, lags)
            self._tell(tasks, lags)

    def end(self) -> None:
        if self._thread is not None:
            self._thread.end()

    def _judge_group(self) -> None:
        """The group does not settle, or the worker does not follow it, for longer than all may take."""
        membership, now_s = self._worker.membership, time.monotonic()
        if not (membership.is_waiting or membership.is_revoking or membership.fresh is not None):
            self._unsettled_s = None
            return
        if self._unsettled_s is None:
            self._unsettled_s = now_s
        waited_s = now_s - self._unsettled_s
        if waited_s > max(self._stand_still_s, REVOKE_S + SLACK_S):
            raise StandsStill(
                f"for {waited_s:.0f} s it has not been settled who has which task",
                where=f"processor {self._worker.names.processor}, group {self._worker.names.group}",
                fix="nothing: it starts again; if it comes again, look into the brokers' log",
            )

    def _judge(self, tasks: Mapping[int, Task], lags: Mapping[Place, Lag]) -> None:
        doing = {number: Doing(task.counts.handled, task.works) for number, task in tasks.items()}
        found = self._standing.look(lags, doing, self._worker.rounds, time.monotonic())
        if found is not None:
            (number, topic), what = found
            raise StandsStill(
                what,
                where=f"processor {self._worker.names.processor}, {topic}[{number}]",
                fix="nothing: it starts again; if it comes again, look at what the agent waits for",
            )

    def _tell(self, tasks: Mapping[int, Task], lags: Mapping[Place, Lag]) -> None:
        worker, now_s = self._worker, time.monotonic()
        if worker.status is None:
            return
        counts = [task.counts for task in tasks.values()]
        done, derived = sum(c.done for c in counts), sum(c.derived for c in counts)
        self._rates.append((now_s, done, derived))
        while now_s - self._rates[0][0] > RATE_WINDOW_S:
            self._rates.popleft()
        began_s, done_then, derived_then = self._rates[0]
        seconds = max(now_s - began_s, 1e-3)
        latest = [c for c in counts if c.commit_us]
        waiting = dict.fromkeys(tasks, 0)
        for (number, _), lag in lags.items():
            waiting[number] += max(0, lag.records)
        pace = {number: Pace(waiting[number], task.counts.commit_us) for number, task in tasks.items()}
        lag_s = self._behind.look(pace, time.time_ns() // 1000)
        worker.status.update(
            detail={
                "in": list(worker.plan.inputs),
                "out": worker.names.out,
                "guarantee": worker.processor.guarantee,
                "state": worker.state,
                "tasks": sorted(tasks),
                "of": worker.plan.partitions,
                "offset": sum(at for task in tasks.values() for at in task.committed.values()),
                "lag_records": sum(waiting.values()),
                "shares": [[n, sum(task.committed.values()), waiting[n]] for n, task in tasks.items()],
                "lag_s": lag_s,
                "latency_ms": max(((c.committed_at_us - c.commit_us) // 1000 for c in latest), default=None),
                "done": done,
                "derived": derived,
                "dropped": sum(c.dropped for c in counts),
                "refused": sum(c.refused for c in counts),
                "rate": round(max(0, done - done_then) / seconds, 1),
                "derived_rate": round(max(0, derived - derived_then) / seconds, 1),
                "parked": sum(task.lot.keys for task in tasks.values()),
                "state_bytes": sum(task.overlay.store.size_bytes() for task in tasks.values()),
                "epoch": max((task.epoch.epoch for task in tasks.values()), default=None),
                "rebalances": worker.membership.rebalances,
                "inferred": dict(worker.shapes.inferred),
                "doubts": worker.doubts,
            }
        )


class _Thread:
    """Ends the process when the event loop has not turned for too long: then nothing inside it can.

    A timer of the loop says that it turns, from the start on: whoever waits for Kafka lets it turn. It puts
    the kernel's alarm off, too, which needs no lock of Python's.
    """

    def __init__(self, limit_s: float, where: str, last_word: Told) -> None:
        """To be made where the loop runs."""
        self._limit_s = limit_s
        self._where = where
        self._last_word = last_word
        self._every_s = min(1.0, limit_s / 3)
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
        self._thread = threading.Thread(target=self._run, name="stands-still", daemon=True)
        self._beat()
        self._thread.start()

    def _beat(self) -> None:
        self._last_s = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self._limit_s + LOCK_S)
        self._timer = self._loop.call_later(self._every_s, self._beat)

    def end(self) -> None:
        self._timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            if time.monotonic() - self._last_s > self._limit_s:
                faulthandler.dump_traceback(file=sys.stderr)
                self._last_word(self._error())  # behind the stacks: a supervisor shows what it reads last
                os._exit(EXIT_RUNTIME)

    def _error(self) -> StandsStill:
        return StandsStill(
            f"the event loop stood still for {self._limit_s:.0f} s: the process ends",
            where=self._where,
            fix="nothing: it starts again; if it comes again, look in the log for what the agent blocks on",
        )
