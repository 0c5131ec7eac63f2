"""Jobs as real processes: begun once whoever competes, ended at their limit, lost ones found and kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from consumers.control.database import Database
from consumers.control.jobs import Jobs
from consumers.control.lease import Lease
from consumers.schedule.plan import Outcome, Planned, planned
from consumers.schedule.process import JobProcess
from consumers.schedule.runner import Runner
from consumers.schedule.view import Past
from streamer.config import Config
from tests.harness.control import control_config
from tests.harness.receiver import receiving

WAIT_S = 60.0
LEAP_DAY = "cron: '0 0 29 2 *'"  # of jobs that run when they are asked
TASKS = """
import os, subprocess, sys, time
from pathlib import Path

def note(word):
    with open("began", "a") as file:
        file.write(f"{word}\\n")

def quick(word="x"):
    note(word)
    return f"did {word}"

async def later():
    return "awaited"

def fails():
    print("password=hunter2 was used")
    raise ValueError("no such thing")

def hangs(word="h"):
    note(word)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)

def waits():
    note("w")
    while not Path("go").exists():
        time.sleep(0.05)

def step(job, run, outcome):
    note(f"{job}/{run}/{outcome}")

def bad_step(**said):
    raise ValueError("not ready")

def leaves_two():
    own = subprocess.Popen(["sleep", "4321"], start_new_session=True)
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 4321"])
    Path("pids").write_text(f"{own.pid} {deaf.pid}")

def hangs_beside_one():
    own = subprocess.Popen(["sleep", "4321"], start_new_session=True)
    Path("pids").write_text(f"{os.getpid()} {own.pid}")
    time.sleep(600)

def gives():
    note("g")
    yield 1

async def gives_later():
    note("g")
    yield 1

def shouts():
    print("x" * 100_000)
    print("the end")
"""
Make = Callable[..., Config]


def maker(folder: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> Make:
    monkeypatch.chdir(folder)
    (folder / "chores.py").write_text(TASKS)

    def made(jobs: str, more: str = "", *, enabled: bool = True) -> Config:
        text = f"schedules: {{jobs: {{{jobs}}}}}\n{more}"
        return control_config(folder, text, url=url, enabled=enabled)

    return made


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    return maker(tmp_path, monkeypatch, "sqlite:///control.db")


@pytest.fixture
def make_in_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control_url: str) -> Make:
    return maker(tmp_path, monkeypatch, control_url)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's time begins when it has told its processes, however long a Python takes to start."""
    start = JobProcess.start

    async def start_and_wait(process: JobProcess) -> None:
        await start(process)
        await until(lambda: len(pids()) == 2)

    monkeypatch.setattr(JobProcess, "start", start_and_wait)


def jobs_of(config: Config) -> Jobs:
    jobs = Jobs(Database(config))
    jobs.open()
    return jobs


@asynccontextmanager
async def running(config: Config, holder: str = "one") -> AsyncIterator[Jobs]:
    async with scheduling(config, holder) as (_, jobs):
        yield jobs


@asynccontextmanager
async def scheduling(
    config: Config, holder: str = "one", plans: Callable[[], dict[str, Planned]] | None = None
) -> AsyncIterator[tuple[Runner, Jobs]]:
    database = Database(config)
    lease, jobs = Lease(database, "jobs", holder), Jobs(database)
    lease.open()
    jobs.open()
    runner = Runner(config, plans or (lambda: planned(config)), jobs, lease)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(stop))
        try:
            yield runner, jobs
        finally:
            stop.set()


async def until(what: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    """Asked in a thread, as all of it waits for files."""

    def ask() -> None:
        end_s = time.monotonic() + wait_s
        while not what():
            assert time.monotonic() < end_s, "it did not come"
            time.sleep(0.02)

    await asyncio.to_thread(ask)


def ended(jobs: Jobs, job: str) -> list[Past]:
    return [run for run in jobs.history(job, 1000) if run.outcome is not None]


async def over(jobs: Jobs, job: str, runs: int = 1, wait_s: float = WAIT_S) -> list[Past]:
    """The runs of the job that are over, once there are so many; the newest first."""
    await until(lambda: len(ended(jobs, job)) >= runs, wait_s)
    return ended(jobs, job)


def notes() -> list[str]:
    """What the functions have noted that they began."""
    path = Path("began")
    return path.read_text().split() if path.exists() else []


def pids() -> list[int]:
    path = Path("pids")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


async def test_functions_run_and_what_they_said_is_kept(make: Make) -> None:
    config = make(
        "a: {exec: 'chores:quick', every: 1h, args: {word: tea}}, b: {exec: 'chores:later', every: 1h},"
        " c: {exec: 'chores:fails', every: 1h}, d: {exec: 'chores:nothing', every: 1h},"
        " e: {exec: 'chores:shouts', every: 1h}"
    )
    async with running(config) as jobs:
        found = {name: (await over(jobs, name))[0] for name in config.schedules.jobs}
    assert {name: (run.outcome, run.exit_code) for name, run in found.items()} == {
        "a": (Outcome.OK, 0),
        "b": (Outcome.OK, 0),
        "c": (Outcome.FAILED, 2),
        "d": (Outcome.FAILED, 64),
        "e": (Outcome.OK, 0),
    }
    assert found["a"].text == "did tea"
    assert found["b"].text == "awaited"
    assert found["c"].text.endswith("ValueError: no such thing")
    assert "hunter2" not in found["c"].text
    assert "has no function 'nothing'" in found["d"].text
    assert found["e"].text == "the end"
    assert {run.by for run in found.values()} == {"schedule"}


async def test_a_failed_run_is_tried_again_and_what_comes_after_waits_for_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.schedule.plan.RETRY_S", 0.1)
    config = make(
        "a: {exec: 'chores:fails', every: 1h, retries: 2}, b: {exec: 'chores:quick', after: [a], every: 1h}"
    )
    async with running(config) as jobs:
        assert [run.outcome for run in await over(jobs, "a", 3)] == [Outcome.FAILED] * 3
        (skipped,) = await over(jobs, "b")
    assert (skipped.outcome, skipped.text) == (Outcome.SKIPPED, "it comes after a, which failed")
    assert notes() == []


@pytest.mark.usefixtures("begun")
async def test_a_job_that_runs_too_long_is_ended_with_all_that_it_started(make: Make) -> None:
    config = make("a: {exec: 'chores:hangs', every: 1h, max_runtime: 300ms}")
    async with running(config) as jobs:
        (run,) = await over(jobs, "a")
    assert run.outcome is Outcome.CUT_OFF
    assert "it ran longer than 0.3 s" in run.text
    await gone(*pids())


async def test_steps_are_taken_before_and_after_a_job(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step before that fails keeps the job from beginning; one after it is only told."""
    monkeypatch.setattr("consumers.schedule.plan.RETRY_S", 0.1)
    async with receiving(500) as taker:
        to = f"http: '{taker.url}'"
        config = make(
            "a: {exec: 'chores:quick', every: 1h, before: [{exec: 'chores:step'}, {http: ''}], on_done:"
            f" [{{exec: 'chores:bad_step'}}, {{{to}}}, {{{to}}}, {{exec: 'chores:step'}}]}},"
            f" b: {{exec: 'chores:quick', {LEAP_DAY}, retries: 1, args: {{word: never}},"
            f" before: [{{exec: 'chores:bad_step'}}, {{{to}}}], on_done: [{{exec: 'chores:step'}}]}}"
        )
        jobs = jobs_of(config)
        async with running(config):
            (a,) = await over(jobs, "a")
            assert jobs.ask("b", "me", 2) is None
            b, first = await over(jobs, "b", 2)
    assert notes() == [f"a/{a.run}/None", "x", f"a/{a.run}/ok"]
    assert [request.json for request in taker.requests] == [{"job": "a", "run": a.run, "outcome": "ok"}] * 2
    assert (a.outcome, a.exit_code) == (Outcome.OK, 0)
    assert "did x" in a.text
    assert "on_done step 1 (exec) failed: it ended with exit code 2" in a.text
    assert "on_done step 2 (http) failed: the receiver answers 500" in a.text
    assert "step 3" not in a.text
    assert (b.outcome, first.outcome, b.exit_code) == (Outcome.FAILED, Outcome.FAILED, None)
    assert b.text.endswith("ValueError: not ready\nbefore step 1 (exec) failed: it ended with exit code 2")
    said = str([vars(line).get("fields") for line in caplog.records])
    assert "a.on_done.1" in said
    assert "hunter2" not in said + caplog.text + a.text


async def test_what_a_job_leaves_behind_ends_with_it(make: Make) -> None:
    """Though it is of a session of its own, holds the job's output open, and hears no SIGTERM."""
    config = make("a: {exec: 'chores:leaves_two', every: 1h}")
    async with running(config) as jobs:
        (run,) = await over(jobs, "a", wait_s=20.0)
    assert (run.outcome, run.exit_code) == (Outcome.OK, 0)
    assert "it left 3 processes behind, ended with it: " in run.text
    assert "sleep (" in run.text
    await gone(*pids())


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize("how", ["limit", "kill", "stop"])
async def test_a_process_in_a_session_of_its_own_ends_with_its_job(
    make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At its limit, when its warden is killed unheard, and when the scheduler is stopped."""
    if how == "kill":
        monkeypatch.setattr(JobProcess, "end", JobProcess.kill)
    limit = "" if how == "stop" else ", max_runtime: 300ms"
    config = make(f"a: {{exec: 'chores:hangs_beside_one', every: 1h{limit}}}")
    async with running(config) as jobs:
        await until(lambda: len(pids()) == 2)
        if how != "stop":
            await over(jobs, "a", wait_s=20.0)
    (run,) = ended(jobs, "a")
    assert run.outcome is Outcome.CUT_OFF
    await gone(*pids())


async def test_a_generator_is_no_job(make: Make) -> None:
    config = make("a: {exec: 'chores:gives', every: 1h}, b: {exec: 'chores:gives_later', every: 1h}")
    async with running(config) as jobs:
        runs = [(await over(jobs, name))[0] for name in ("a", "b")]
    assert [(run.outcome, run.exit_code) for run in runs] == [(Outcome.FAILED, 64)] * 2
    assert "chores:gives gives a generator: nothing of it has run" in runs[0].text
    assert "take `yield` out of it" in runs[1].text
    assert notes() == []


async def test_a_second_request_joins_and_a_pause_holds(make_in_each: Make) -> None:
    config = make_in_each(f"a: {{exec: 'chores:hangs', {LEAP_DAY}}}, b: {{exec: 'chores:quick', every: 1s}}")
    jobs = jobs_of(config)
    jobs.know(config.schedules.jobs, 1)
    jobs.pause("b", "me", paused=True)
    assert jobs.ask("a", "me", 2) is None
    async with running(config):
        await until(lambda: len(notes()) == 1 and len(pids()) == 2)
        number = jobs.ask("a", "other", 3)
        assert number is not None
        run = jobs.run(number)
        assert run is not None
        assert (run.by, run.outcome) == ("me", None)
        assert jobs.history("b") == []
        jobs.pause("b", "me", paused=False)
        await over(jobs, "b")
    assert len(jobs.history("a")) == 1
    assert jobs.history("a")[0].text.endswith("the scheduler was stopped")


async def test_a_database_that_is_away_is_told_and_jobs_go_on_when_it_is_back(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran meanwhile is ended in it afterwards, and nothing is begun beside itself."""
    monkeypatch.setattr("consumers.control.database.SQLITE_BUSY_MS", 300)
    monkeypatch.setattr("consumers.schedule.runner.PATIENCE_S", 0.1)
    config = make("a: {exec: 'chores:quick', every: 1s}")
    async with scheduling(config) as (runner, jobs):
        await over(jobs, "a")
        locked = sqlite3.connect("control.db", isolation_level=None)
        locked.execute("BEGIN EXCLUSIVE")
        await until(lambda: "not answered for" in runner.problem or "locked" in runner.problem)
        locked.execute("ROLLBACK")
        locked.close()
        before = len(jobs.history("a"))
        await over(jobs, "a", before + 2)
        await until(lambda: not runner.problem)
    runs = [run for run in reversed(jobs.history("a", 1000)) if run.outcome is not Outcome.SKIPPED]
    assert len(notes()) <= len(runs)
    for earlier, later in pairwise(runs):
        assert earlier.ended_us is not None
        assert earlier.ended_us <= later.began_us, "two runs at once"


async def test_a_turn_that_fails_is_told_and_the_next_one_comes(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a bug that nobody has foreseen."""
    config = make("a: {exec: 'chores:quick', every: 1h}")
    found: list[Exception] = [OverflowError("date value out of range")]

    def plans() -> dict[str, Planned]:
        if found:
            raise found[0]
        return planned(config)

    async with scheduling(config, plans=plans) as (runner, jobs):
        await until(lambda: "OverflowError('date value out of range')" in runner.problem)
        found.clear()
        await over(jobs, "a")
        assert not runner.problem
    assert len([line for line in caplog.records if line.exc_info]) == 1


async def test_disabled_control_starts_nothing(make: Make) -> None:
    config = make("a: {exec: 'chores:quick', every: 1s}", enabled=False)
    async with running(config) as jobs:
        await until(lambda: "a" in jobs.states())
        assert jobs.history("a") == []


SCHEDULER = """
import asyncio, sys
from pathlib import Path
from consumers.control.database import Database
from consumers.control.jobs import Jobs
from consumers.control.lease import Lease
from consumers.schedule.plan import planned
from consumers.schedule.runner import Runner
from streamer.config import load
config = load(Path(sys.argv[1]))
database = Database(config)
lease, jobs = Lease(database, "jobs", sys.argv[2]), Jobs(database)
lease.open(); jobs.open()
asyncio.run(Runner(config, lambda: planned(config), jobs, lease).run(asyncio.Event()))
"""


def scheduler(config: Config, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCHEDULER, str(config.path), name])


@pytest.mark.thorough
async def test_of_two_one_runs_the_jobs_and_the_other_takes_over_within_15_s(
    make_in_each: Make,
) -> None:
    """The first is killed with a job in hand: that ends with it, is noted as cut off, and runs once more."""
    config = make_in_each(f"a: {{exec: 'chores:hangs', {LEAP_DAY}, retries: 1}}")
    jobs = jobs_of(config)
    jobs.know(config.schedules.jobs, 1)
    jobs.ask("a", "me", 2)
    one = scheduler(config, "one")
    try:
        await until(lambda: len(notes()) == 1 and len(pids()) == 2)
        other = scheduler(config, "other")
        try:
            one.send_signal(signal.SIGKILL)
            await gone(pids()[0])
            (run,) = await over(jobs, "a", wait_s=15.0)
            assert (run.outcome, "is gone" in run.text) == (Outcome.CUT_OFF, True)
            assert notes() == ["h"]
        finally:
            other.kill()
            other.wait()
    finally:
        one.kill()
        one.wait()


@pytest.mark.thorough
async def test_a_frozen_one_starts_nothing_when_it_wakes(make_in_each: Make) -> None:
    config = make_in_each("a: {exec: 'chores:quick', every: 1s}")
    jobs = jobs_of(config)
    one = scheduler(config, "one")
    try:
        await over(jobs, "a")
        one.send_signal(signal.SIGSTOP)
        before = len(jobs.history("a", 1000))
        async with running(config, "other"):
            await over(jobs, "a", before + 2)
            one.send_signal(signal.SIGCONT)
            await over(jobs, "a", before + 4)
        runs = sorted(jobs.history("a", 1000), key=lambda run: run.run)
        for earlier, later in pairwise(runs):
            assert earlier.ended_us is not None
            assert earlier.ended_us <= later.began_us, "two runs at once"
    finally:
        one.kill()
        one.wait()


async def gone(*numbers: int) -> None:
    await until(lambda: not any(_lives(pid) for pid in numbers))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
