"""The control database's part for jobs: what is known of each, and its runs.

A run begins in one transaction with the guard of the lease, and only where no other run of the job is open:
so no job runs twice, whoever believes to be the one that starts them. Requests, pauses and resumes may come
from any process.

A run has the scheduler that began it and, while one works for it, a process of its own. It is lost when both
are gone; or when its process is, and the scheduler, frozen perhaps, has not said a word of it for UNSEEN_S.
Whoever starts a process of a run asks `goes_on` before: from then on it has none that could be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from consumers.control.database import Database, is_gone
from consumers.control.lease import Lease
from consumers.schedule.plan import JobState, Outcome
from consumers.schedule.view import Past

FORMAT = 1
RUNS_KEPT = 1_000  # of a job: a run every ten minutes for a week
RATE_RUNS = 30  # the newest, that the success rate is made of
TEXT_LIMIT = 4_000  # characters of a run's text: its last words, not its log
UNSEEN_S = 10.0  # a scheduler that lives says each second what it runs

meta = MetaData()
jobs = Table(
    "jobs",
    meta,
    Column("job", Text, primary_key=True),
    Column("known_us", BigInteger, nullable=False),
    Column("passed_us", BigInteger),
    Column("last_start_us", BigInteger),
    Column("last_end_us", BigInteger),
    Column("last_done_us", BigInteger),
    Column("outcome", Text),
    Column("tries", Integer, nullable=False),
    Column("run", BigInteger),  # the open one
    Column("asked_us", BigInteger),
    Column("asked_by", Text),
    Column("paused", Boolean, nullable=False),
    Column("paused_by", Text),
)
runs = Table(
    "job_runs",
    meta,
    Column("run", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("job", Text, nullable=False, index=True),
    Column("by", Text, nullable=False),  # schedule, or who asked
    Column("owner", Text, nullable=False),  # the scheduler that began it: host:pid:start
    Column("began_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("outcome", Text),
    Column("exit_code", Integer),
    Column("text", Text, nullable=False),
)
processes = Table(  # of open runs
    "job_processes",
    meta,
    Column("run", BigInteger, primary_key=True, autoincrement=False),
    Column("process", Text, nullable=False),  # its first one, of whose session the others are: host:pid:start
)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """`process` empty: none, or not known."""

    run: int
    job: str
    owner: str
    process: str
    began_us: int
    seen_us: int


class Jobs:
    """Errors of the database are RetryableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self) -> None:
        self._database.prepare("jobs", FORMAT, meta)

    # What is known

    def know(self, names: Iterable[str], now_us: int) -> None:
        """Jobs of the file that the database has not seen yet."""
        with self._database.begin() as connection:
            known = set(connection.execute(select(jobs.c.job)).scalars())
            self._know(connection, [name for name in names if name not in known], now_us)

    def _know(self, connection: Connection, names: Iterable[str], now_us: int) -> None:
        for name in names:
            first = {"job": name, "known_us": now_us, "tries": 0, "paused": False}
            with suppress(IntegrityError), connection.begin_nested():  # another process was first
                connection.execute(insert(jobs), first)

    def states(self) -> dict[str, JobState]:
        with self._database.begin() as connection:
            return {row["job"]: _state(row) for row in self._rows(connection)}

    def _rows(self, connection: Connection) -> list[Any]:
        return list(connection.execute(select(jobs)).mappings())

    def history(self, job: str, limit: int = RATE_RUNS) -> list[Past]:
        """The newest first."""
        with self._database.begin() as connection:
            return self._history(connection, job, limit)

    def _history(self, connection: Connection, job: str, limit: int) -> list[Past]:
        wanted = select(runs).where(runs.c.job == job).order_by(runs.c.run.desc()).limit(limit)
        return [_run(row) for row in connection.execute(wanted).mappings()]

    def histories(self, names: Iterable[str]) -> dict[str, list[Past]]:
        """Of each, the newest RATE_RUNS first."""
        with self._database.begin() as connection:
            return {name: self._history(connection, name, RATE_RUNS) for name in names}

    def run(self, number: int) -> Past | None:
        with self._database.begin() as connection:
            row = connection.execute(select(runs).where(runs.c.run == number)).mappings().first()
        return None if row is None else _run(row)

    # What people want

    def ask(self, job: str, by: str, now_us: int) -> int | None:
        """Have it run as soon as it may; the number of the run that is open already, which it joins."""
        with self._database.begin() as connection:
            open_ = (jobs.c.job == job, jobs.c.run.is_(None), jobs.c.asked_us.is_(None))
            connection.execute(update(jobs).where(*open_).values(asked_us=now_us, asked_by=by))
            found: int | None = connection.execute(select(jobs.c.run).where(jobs.c.job == job)).scalar()
        return found

    def pause(self, job: str, by: str, *, paused: bool) -> None:
        with self._database.begin() as connection:
            values = {"paused": paused, "paused_by": by}
            connection.execute(update(jobs).where(jobs.c.job == job).values(values))

    # Runs, by the one that holds the lease

    def begin(self, lease: Lease, job: str, owner: str, now_us: int) -> int | None:
        """The run's number; None when one is open. Raises LeaseLost."""
        with self._database.begin() as connection:
            lease.guard(connection)
            row = connection.execute(select(jobs).where(jobs.c.job == job)).mappings().one()
            if row["run"] is not None:
                return None
            first = {"job": job, "by": row["asked_by"] or "schedule", "owner": owner, "text": ""}
            made = connection.execute(insert(runs), first | {"began_us": now_us, "seen_us": now_us})
            assert made.inserted_primary_key is not None
            number = int(made.inserted_primary_key[0])
            began = {"run": number, "passed_us": now_us, "last_start_us": now_us}
            asked = {"asked_us": None, "asked_by": None}
            connection.execute(update(jobs).where(jobs.c.job == job).values(began | asked))
            self._forget(connection, job)
        return number

    def skip(self, lease: Lease, job: str, why: str, owner: str, now_us: int) -> None:
        """A run that does not begin. Raises LeaseLost."""
        with self._database.begin() as connection:
            lease.guard(connection)
            row = {
                "job": job,
                "by": "schedule",
                "owner": owner,
                "text": why,
                "outcome": Outcome.SKIPPED.value,
            }
            moments = {"began_us": now_us, "seen_us": now_us, "ended_us": now_us}
            connection.execute(insert(runs), row | moments)
            passed = {"passed_us": now_us, "asked_us": None, "asked_by": None}
            connection.execute(update(jobs).where(jobs.c.job == job).values(passed))
            self._forget(connection, job)

    def turn(
        self, lease: Lease, names: Iterable[str], ours: Mapping[int, str], now_us: int
    ) -> tuple[dict[str, JobState], list[tuple[str, int]], list[OpenRun]]:
        """What is known of all, once those of the file are known; the runs that were lost: (job, run); and
        those that others have begun and that go on. `ours` run here, each with its process. It writes only
        where there is something to be written. Raises LeaseLost."""
        with self._database.begin() as connection:
            rows = self._rows(connection)
            known = {row["job"] for row in rows}
            unknown = [name for name in names if name not in known]
            open_ = [row["run"] for row in rows if row["run"] is not None]
            lost: list[tuple[str, int]] = []
            others: list[OpenRun] = []
            if any(run not in ours for run in open_):
                lost, others = self._cut_off_lost(connection, lease, ours, now_us)
            self._seen(connection, ours, now_us)
            self._know(connection, unknown, now_us)
            if lost or unknown:
                rows = self._rows(connection)
        states = {row["job"]: _state(row) for row in rows}
        for other in others:
            states[other.job].elsewhere = True
        return states, lost, others

    # By the scheduler that began a run, whoever holds the lease meanwhile

    def seen(self, ours: Mapping[int, str], now_us: int) -> None:
        """These runs go on, each with its process, if it has one."""
        if ours:
            with self._database.begin() as connection:
                self._seen(connection, ours, now_us)

    def _seen(self, connection: Connection, ours: Mapping[int, str], now_us: int) -> None:
        if not ours:
            return
        connection.execute(update(runs).where(runs.c.run.in_(ours)).values(seen_us=now_us))
        noted = select(processes.c.run, processes.c.process).where(processes.c.run.in_(ours))
        before = {row.run: row.process for row in connection.execute(noted)}
        for run, process in ours.items():
            if process and before.get(run) != process:
                connection.execute(delete(processes).where(processes.c.run == run))
                connection.execute(insert(processes), {"run": run, "process": process})

    def goes_on(self, run: int, now_us: int) -> bool:
        """Before a process of it is started: whether nobody has taken it for lost. Nobody does from now on
        because the process that it had is gone."""
        with self._database.begin() as connection:
            open_ = (runs.c.run == run, runs.c.ended_us.is_(None))
            found = connection.execute(update(runs).where(*open_).values(seen_us=now_us)).rowcount == 1
            connection.execute(delete(processes).where(processes.c.run == run))
        return found

    def end(self, run: int, outcome: Outcome, exit_code: int | None, text: str, now_us: int) -> None:
        """A run that is over already stays as it is."""
        with self._database.begin() as connection:
            self._end(connection, run, outcome, exit_code, text, now_us)

    def _cut_off_lost(
        self, connection: Connection, lease: Lease, ours: Mapping[int, str], now_us: int
    ) -> tuple[list[tuple[str, int]], list[OpenRun]]:
        """Open runs of others: those that were lost, which are over, and those that go on."""
        lost: list[tuple[str, int]] = []
        others: list[OpenRun] = []
        lease.guard(connection)
        columns = [runs.c[name] for name in ("run", "job", "owner", "began_us", "seen_us")]
        both = runs.outerjoin(processes, processes.c.run == runs.c.run)
        open_ = select(*columns, processes.c.process).select_from(both).where(runs.c.ended_us.is_(None))
        for row in connection.execute(open_).mappings().all():
            if row["run"] in ours:
                continue
            other = OpenRun(**{**row, "process": row["process"] or ""})
            what = _why_lost(other, now_us)
            if not what:
                others.append(other)
            elif self._end(connection, other.run, Outcome.CUT_OFF, None, what, now_us, other.seen_us):
                lost.append((other.job, other.run))
        return lost, others

    def _end(
        self,
        connection: Connection,
        run: int,
        outcome: Outcome,
        exit_code: int | None,
        text: str,
        now_us: int,
        seen_us: int | None = None,
    ) -> bool:
        """Whether it was open. `seen_us`: it ends only if its scheduler has said nothing since."""
        values = {"ended_us": now_us, "outcome": outcome.value, "exit_code": exit_code}
        open_ = [runs.c.run == run, runs.c.ended_us.is_(None)]
        open_ += [] if seen_us is None else [runs.c.seen_us == seen_us]
        ended = connection.execute(update(runs).where(*open_).values(**values, text=text[-TEXT_LIMIT:]))
        if ended.rowcount != 1:
            return False
        connection.execute(delete(processes).where(processes.c.run == run))
        of_job: dict[str, Any] = {"run": None, "last_end_us": now_us, "outcome": outcome.value}
        if outcome.done:
            of_job |= {"last_done_us": now_us, "tries": 0}
        else:
            of_job["tries"] = jobs.c.tries + 1
        connection.execute(update(jobs).where(jobs.c.run == run).values(of_job))
        return True

    def _forget(self, connection: Connection, job: str) -> None:
        oldest = select(func.max(runs.c.run)).where(runs.c.job == job).scalar_subquery()
        kept = select(runs.c.run).where(runs.c.job == job).order_by(runs.c.run.desc()).offset(RUNS_KEPT)
        old = connection.execute(kept.limit(1)).scalar()
        if old is not None:
            gone = (runs.c.job == job, runs.c.run <= old, runs.c.run != oldest, runs.c.ended_us.is_not(None))
            connection.execute(delete(runs).where(*gone))


def _why_lost(run: OpenRun, now_us: int) -> str:
    """Empty: it was not."""
    if run.process and not is_gone(run.process, run.seen_us, now_us):  # it would run beside itself
        return ""
    if is_gone(run.owner, run.seen_us, now_us):
        return f"its scheduler, {run.owner}, is gone"
    if run.process and now_us - run.seen_us > UNSEEN_S * 1e6:
        return (
            f"its process, {run.process}, is gone, and its scheduler, {run.owner}, does not say how it ended"
        )
    return ""


def _state(row: Any) -> JobState:
    known_since = _time(row["known_us"])
    assert known_since is not None
    return JobState(
        known_since,
        _time(row["passed_us"]),
        _time(row["last_start_us"]),
        _time(row["last_end_us"]),
        _time(row["last_done_us"]),
        None if row["outcome"] is None else Outcome(row["outcome"]),
        running=row["run"] is not None,
        asked=_time(row["asked_us"]),
        tries=row["tries"],
        paused=row["paused"],
    )


def _time(at_us: int | None) -> datetime | None:
    return None if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC)


def _run(row: Any) -> Past:
    outcome = None if row["outcome"] is None else Outcome(row["outcome"])
    return Past(
        row["run"],
        row["by"],
        row["began_us"],
        row["ended_us"],
        outcome,
        row["exit_code"],
        row["text"],
    )
