"""Runs of a scheduler that hangs, or is gone a moment: left alone while they live, over when they do not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from consumers.control.database import Database, named
from consumers.control.jobs import UNSEEN_S, Jobs, processes
from consumers.control.lease import Lease
from consumers.schedule.elsewhere import LATE_S, Elsewhere
from consumers.schedule.plan import JobState, Outcome, decide, planned
from consumers.schedule.warden import KILL_AFTER_S
from streamer.config import Config
from tests.integration.test_schedule_runner import (
    LEAP_DAY,
    Make,
    gone,
    jobs_of,
    make,
    make_in_each,
    notes,
    over,
    pids,
    running,
    scheduler,
    until,
)

__all__ = ["make", "make_in_each"]

UNSEEN_US = int(UNSEEN_S * 1e6) + 1


class Elected:
    """The scheduler that is it now, and a run that another has begun."""

    def __init__(self, config: Config) -> None:
        database = Database(config)
        self.plans, self.jobs = planned(config), Jobs(database)
        self.lease = Lease(database, "jobs", "one")
        self.lease.open()
        self.jobs.open()
        self.lease.beat()
        self.jobs.know(self.plans, 0)

    def begin(self, job: str, owner: str) -> int:
        number = self.jobs.begin(self.lease, job, owner, 0)
        assert number is not None
        return number

    def outcome(self, run: int, now_us: int) -> Outcome | None:
        """Once the one that is elected has looked."""
        self.jobs.turn(self.lease, self.plans, {}, now_us)
        found = self.jobs.run(run)
        assert found is not None
        return found.outcome


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def elected(make_in_each: Make) -> Elected:
    return Elected(make_in_each(f"a: {{exec: 'chores:quick', {LEAP_DAY}, max_runtime: 1m}}"))


def test_a_run_whose_process_is_gone_is_over_though_its_scheduler_hangs(elected: Elected) -> None:
    jobs = elected.jobs
    with sleeping() as frozen, sleeping() as process:
        run = elected.begin("a", named(frozen.pid))
        jobs.seen({run: named(process.pid)}, 0)
        assert elected.outcome(run, 10 * UNSEEN_US) is None, "its process lives"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has waited for it
        jobs.seen({run: ""}, UNSEEN_US)
        assert elected.outcome(run, 2 * UNSEEN_US - 1) is None, "its scheduler may yet say how it ended"
        assert elected.outcome(run, 2 * UNSEEN_US) is Outcome.CUT_OFF
        assert not jobs.goes_on(run, 3 * UNSEEN_US), "when it wakes it begins nothing more of it"
        again = elected.begin("a", named(frozen.pid))
        jobs.seen({again: named(process.pid)}, 0)
        assert jobs.goes_on(again, 1)
        assert elected.outcome(again, 10 * UNSEEN_US) is None, "its next process may be there already"


def test_a_run_is_not_begun_again_before_its_process_has_followed_its_scheduler(elected: Elected) -> None:
    with sleeping() as process:
        with sleeping() as killed:
            run = elected.begin("a", named(killed.pid))
            elected.jobs.seen({run: named(process.pid)}, 0)
        assert elected.outcome(run, UNSEEN_US) is None
        _, _, others = elected.jobs.turn(elected.lease, elected.plans, {}, UNSEEN_US)
        Elsewhere().look(others, elected.plans, UNSEEN_US)
        assert process.wait(timeout=60) == -signal.SIGTERM, "it does not listen: it is ended"
        assert elected.outcome(run, UNSEEN_US) is Outcome.CUT_OFF


def test_the_next_one_sees_to_max_runtime(elected: Elected) -> None:
    limit_us = int((60 + LATE_S) * 1e6)
    sent: list[int] = []
    elsewhere = Elsewhere(lambda _, number: sent.append(number))
    with sleeping() as frozen, sleeping() as process:
        run = elected.begin("a", named(frozen.pid))

        def look(now_us: int) -> list[int]:
            _, _, others = elected.jobs.turn(elected.lease, elected.plans, {}, now_us)
            elsewhere.look(others, elected.plans, now_us)
            return sent

        assert look(limit_us + 1) == [], "there is no process of it"
        elected.jobs.seen({run: named(process.pid)}, 0)
        assert look(limit_us) == []
        elected.jobs.seen({run: named(process.pid)}, limit_us)
        assert look(limit_us + 1) == [], "its own scheduler lives"
        after_us = limit_us + UNSEEN_US
        assert look(after_us) == look(after_us + 1) == [signal.SIGTERM]
        assert look(after_us + int(KILL_AFTER_S * 1e6) + 1) == [signal.SIGTERM, signal.SIGKILL]


def test_what_runs_elsewhere_takes_no_place_and_is_not_begun_beside_itself(make: Make) -> None:
    plans = planned(make(", ".join(f"{name}: {{exec: 'chores:quick', every: 1h}}" for name in "abcde")))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    states = {name: JobState(now) for name in plans}
    for name in "ab":
        states[name].running = states[name].elsewhere = True
    assert decide(plans, states, now).start == ["c", "d"]
    states["a"].elsewhere = states["b"].elsewhere = False
    assert decide(plans, states, now).start == []


@pytest.mark.thorough
async def test_the_other_jobs_go_on_while_the_scheduler_of_two_is_frozen(
    make_in_each: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two ends meanwhile and runs again; the other lives, is not begun beside itself, and is ended
    at its limit by the scheduler that has taken over."""
    monkeypatch.setattr("consumers.schedule.elsewhere.LATE_S", 5.0)
    config = make_in_each(
        "a: {exec: 'chores:waits', every: 1s, overlap: queue},"
        " c: {exec: 'chores:quick', every: 1s, args: {word: c}},"
        f" b: {{exec: 'chores:hangs', {LEAP_DAY}, max_runtime: 5s, args: {{word: b}}}}"
    )
    database, jobs = Database(config), jobs_of(config)
    jobs.know(config.schedules.jobs, 1)
    jobs.pause("c", "me", paused=True)
    jobs.ask("b", "me", 2)
    with ExitStack() as stack:
        one = scheduler(config, "one")
        stack.callback(one.wait)
        stack.callback(one.kill)
        await until(lambda: {"w", "b"} <= set(notes()) and len(pids()) == 2)
        await until(lambda: _noted(database) == 2)
        one.send_signal(signal.SIGSTOP)
        jobs.pause("c", "me", paused=False)
        async with running(config, "other"):
            await over(jobs, "c", 2)
            assert notes().count("w") == notes().count("b") == 1, "they live, and run nowhere else"
            await asyncio.to_thread(Path("go").touch)
            (cut,) = (await over(jobs, "a"))[-1:]
            assert (cut.outcome, "does not say how it ended" in cut.text) == (Outcome.CUT_OFF, True), cut
            await over(jobs, "a", 2)
            (ended,) = await over(jobs, "b")
            assert ended.outcome is Outcome.CUT_OFF
            await gone(*pids())
            before = [run.run for run in jobs.history("a", 1000)]
            one.send_signal(signal.SIGCONT)
            await over(jobs, "a", len(before) + 2)
        (known,) = jobs.history("b")
        assert known == ended, "its scheduler, awake again, leaves it as it is"


def _noted(database: Database) -> int:
    """Processes of runs that the database knows."""
    with database.begin() as connection:
        return len(connection.execute(select(processes)).all())
