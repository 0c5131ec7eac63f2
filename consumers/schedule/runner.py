"""The scheduler of one process: while it holds the lease it starts what is due, and it ends what it started.

Owns the jobs' processes. What is due is decided in plan, what is known is kept in the control database; the
lease's guard sees to it that a process which has lost it starts nothing. A run that was begun is always ended
in the database: by its process's exit, at `max_runtime`, or by the next holder when its process is gone and
this one is, too, or hangs. A turn that fails as nobody foresaw is told and left out; the next one comes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from consumers.control.database import owner
from consumers.control.jobs import Jobs
from consumers.control.lease import BEAT_S, Lease, LeaseLost
from consumers.schedule import commands, steps
from consumers.schedule.elsewhere import Elsewhere
from consumers.schedule.plan import Decision, JobState, Outcome, Planned, decide
from consumers.schedule.process import JobProcess
from consumers.schedule.times import to_us
from streamer.config import Config
from streamer.errors import RetryableError, TailraceError
from streamer.logs import Log, redact

TAIL_LINES = 20  # of a job's output, kept as its run's text
PATIENCE_S = 5.0  # a turn takes milliseconds

log = Log("schedule")


@dataclass(slots=True)
class _Running:
    run: int
    plan: Planned
    began_s: float
    process: JobProcess | None = None  # of the step that is being done
    ended: bool = False  # by us: nothing more of it begins
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    @property
    def process_name(self) -> str:
        return "" if self.process is None else self.process.name

    def works_by(self, process: JobProcess) -> None:
        self.process = process
        if self.ended:  # while it was being started
            process.end()


class Runner:
    """`now`: the wall clock. `plans`, `states` and `decision` are what the last turn saw, for heartbeats and
    pages."""

    def __init__(
        self,
        config: Config,
        plans: Callable[[], dict[str, Planned]],
        jobs: Jobs,
        lease: Lease,
        *,
        opening: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`plans`: the jobs of the file with what people have changed, asked for at each turn. `opening`:
        makes what is not there in the control database; done until it has gone well once."""
        self._config = config
        self._plans_now = plans
        self._jobs = jobs
        self._lease = lease
        self._now = now
        self._opening = opening
        self._is_open = False
        self._asked_s: float | None = None  # since when the control database is waited for
        self._problem = ""
        self._running: dict[str, _Running] = {}
        self._elsewhere = Elsewhere()
        self.plans: dict[str, Planned] | None = None  # before the first
        self.states: dict[str, JobState] = {}
        self.decision = Decision()

    @property
    def problem(self) -> str:
        """Why no job begins: the control database does not answer. Empty: it does."""
        asked_s = self._asked_s
        if asked_s is not None and (waited_s := time.monotonic() - asked_s) > PATIENCE_S:
            return f"the control database has not answered for {waited_s:.0f} s"
        return self._problem

    @property
    def elected(self) -> bool:
        return self._lease.held

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what runs is ended, and the lease given up."""
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                await self._turn(tasks)
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await stop.wait()
            for running in self._running.values():
                self._end(running, "the scheduler was stopped")
        with suppress(RetryableError):
            await asyncio.to_thread(self._lease.give_up)

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        try:
            self._asked_s = time.monotonic()
            if await asyncio.to_thread(self._look):
                await self._decide(tasks, self.plans or {})
            if self._problem:
                log.info("the control database answers again: jobs go on")
            self._problem = ""
        except LeaseLost as lost:
            log.warning("another process runs the jobs now", lease=str(lost))
        except RetryableError as error:
            if str(error) != self._problem:
                log.error("jobs wait", reason=str(error))
            self._problem = str(error)
        except TailraceError:
            raise
        except Exception as error:
            problem = f"a look at the jobs has failed: {error!r}"
            if problem != self._problem:
                log.exception("jobs wait: please report it with these lines")
            self._problem = problem
        finally:
            self._asked_s = None

    def _look(self) -> bool:
        """Whether it is the one that starts jobs; the others look, too, for their heartbeats."""
        if not self._is_open:
            self._opening()
            self._is_open = True
        held = self._lease.beat()
        ours = {running.run: running.process_name for running in tuple(self._running.values())}
        now_us = to_us(self._now())
        if not held:
            self._jobs.seen(ours, now_us)
        self.plans = plans = self._plans_now()
        if held:
            self.states, lost, others = self._jobs.turn(self._lease, plans, ours, now_us)
            for name, run in lost:
                log.error("a job's process was lost", job=name, run=run)
            self._elsewhere.look(others, plans, now_us)
        else:
            self.states, self.decision = self._jobs.states(), Decision()
        return held

    async def _decide(self, tasks: asyncio.TaskGroup, plans: dict[str, Planned]) -> None:
        now = self._now()
        self.decision = decide(plans, {name: self.states[name] for name in plans}, now)
        if not self._config.control.enabled:
            return
        for name in self.decision.ask:
            await asyncio.to_thread(self._jobs.ask, name, "what comes after it", to_us(now))
        for name, why in self.decision.skip:
            log.warning("job skipped", job=name, why=why)
            await asyncio.to_thread(self._jobs.skip, self._lease, name, why, owner(), to_us(now))
        for name in self.decision.start:
            if name in self._running:  # whatever has become of the database that knew of it
                continue
            number = await asyncio.to_thread(self._jobs.begin, self._lease, name, owner(), to_us(now))
            if number is not None:
                running = _Running(number, plans[name], asyncio.get_running_loop().time())
                self._running[name] = running
                tasks.create_task(self._work(running), name=f"job {name}")

    # One run

    async def _work(self, running: _Running) -> None:
        """From its first step to its last. It is ours until its end is noted: nobody takes it for lost."""
        name = running.plan.name
        code: int | None = None
        outcome = Outcome.FAILED
        try:
            if await self._steps(running, "before", None):
                code, outcome = await self._main(running)
            if outcome.done:
                await self._steps(running, "on_done", outcome)
            elif running.ended:
                outcome = Outcome.CUT_OFF
            level = log.info if outcome.done else log.error
            level("job ended", job=name, run=running.run, outcome=outcome.value, exit_code=code)
            await self._note_end(running, outcome, code)
        except Exception as error:
            log.exception("a job has failed within its scheduler", job=name, run=running.run)
            running.tail.append(f"its scheduler has failed: {error!r}")
            await self._note_end(running, Outcome.FAILED, code)
        finally:
            del self._running[name]
            if running.process is not None:
                running.process.kill()

    async def _main(self, running: _Running) -> tuple[int | None, Outcome]:
        plan = running.plan
        process = JobProcess(commands.command(self._config, plan, os.getpid()), running.tail)
        if not await self._goes_on(running):
            return None, Outcome.CUT_OFF
        try:
            await process.start()
        except OSError as error:
            running.tail.append(f"its process cannot be started: {error}")
            return None, Outcome.FAILED
        running.works_by(process)
        with suppress(RetryableError):  # the next turn tells it, too
            await asyncio.to_thread(self._jobs.seen, {running.run: process.name}, to_us(self._now()))
        log.info("job begins", job=plan.name, run=running.run, pid=process.pid)
        try:
            async with asyncio.timeout(plan.job.max_runtime_s):
                code = await process.wait()
        except TimeoutError:
            self._end(running, f"it ran longer than {plan.job.max_runtime_s:g} s")
            return await process.wait(), Outcome.CUT_OFF
        return code, Outcome.CUT_OFF if code < 0 else commands.outcome(plan, code)

    async def _steps(self, running: _Running, key: str, outcome: Outcome | None) -> bool:
        """Whether all went well. Before a job the first that fails is the last; after it each has a turn."""
        plan = running.plan
        said = steps.Said(plan.name, running.run, None if outcome is None else outcome.value)

        fine = True
        for index, action in enumerate(plan.job.before if key == "before" else plan.job.on_done):
            if running.ended or (not fine and key == "before"):
                return False
            if not await self._goes_on(running):
                return False
            place = f"{plan.name}.{key}.{index}"
            problem = await steps.take(self._config, action, said, place, running.tail, running.works_by)
            if problem:
                fine = False
                kind = "exec" if action.exec is not None else "http"
                running.tail.append(f"{key} step {index + 1} ({kind}) failed: {problem}")
                log.error("a step of a job failed", job=plan.name, run=running.run, step=place, why=problem)
        return fine and not running.ended

    async def _goes_on(self, running: _Running) -> bool:
        """Whether anything more of it may begin: while this process was frozen, another may have ended it."""
        running.process = None
        while not running.ended:
            try:
                if await asyncio.to_thread(self._jobs.goes_on, running.run, to_us(self._now())):
                    return not running.ended
                running.tail.append("another scheduler has taken it for lost")
                running.ended = True
            except RetryableError as error:
                log.error("a job waits", job=running.plan.name, reason=str(error))
                await asyncio.sleep(BEAT_S)
        return False

    async def _note_end(self, running: _Running, outcome: Outcome, code: int | None) -> None:
        """Tried until it is in the database: an open run would keep its job from running again."""
        text = redact("\n".join(running.tail))
        while True:
            try:
                await asyncio.to_thread(self._jobs.end, running.run, outcome, code, text, to_us(self._now()))
                return
            except RetryableError as error:
                log.error("the end of a job waits", job=running.plan.name, reason=str(error))
                await asyncio.sleep(BEAT_S)

    def _end(self, running: _Running, why: str) -> None:
        running.tail.append(why)
        running.ended = True
        log.warning("job is ended", job=running.plan.name, why=why)
        if running.process is not None:
            running.process.end()
