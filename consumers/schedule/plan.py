"""Which jobs are to be started now, and which wait for what. Pure.

A job is due at the next of its times after its last start; one that never started, after the moment since
which it is known. What came due while nobody looked is made good once. A job that is asked for by a person is
due at once, whatever its times are. The jobs that it comes after are run first when they are not fresh: done
within their `stale_after`, or, where that is not set, since its own last start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from consumers.schedule.times import At, Cron, Every, Times
from streamer.config import Config
from streamer.config.operations import Job

RETRY_S = 30.0  # before the second try; then twice as long each time
RETRY_LIMIT_S = 3600.0
RUNNING_LIMIT = 2  # jobs at once: each may read whole tables of the same servers


class Outcome(StrEnum):
    """How a run of a job ended."""

    OK = "ok"
    FINDING = "finding"  # it did its work, and found something: drift
    FAILED = "failed"
    SKIPPED = "skipped"  # not begun: it ran already, or what it comes after has failed
    CUT_OFF = "cut_off"  # it ran longer than it may, or its process was lost

    @property
    def done(self) -> bool:
        """Whether what comes after it may begin."""
        return self in (Outcome.OK, Outcome.FINDING)


@dataclass(frozen=True, slots=True)
class Planned:
    """A job of the file, with what people have changed. `times` None: only after others, or when asked."""

    name: str
    job: Job
    times: Times | None


@dataclass(slots=True)
class JobState:
    """What is known of a job. `passed`: up to here what came due was begun, or skipped. `tries`: of the run
    that failed last, its first one included. `elsewhere`: it runs, begun by a scheduler that was elected
    before."""

    known_since: datetime
    passed: datetime | None = None
    last_start: datetime | None = None
    last_end: datetime | None = None
    last_done: datetime | None = None  # end of the last run that did its work
    outcome: Outcome | None = None
    running: bool = False
    elsewhere: bool = False
    asked: datetime | None = None  # a person, or a job that comes after it, wants it
    tries: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """`since`: when it came due. `waits`: why it does not begin yet; empty: it begins."""

    name: str
    since: datetime
    waits: str = ""


@dataclass(slots=True)
class Decision:
    """`start` in this order. `ask`: jobs that others wait for. `skip`: (job, why) of what does not begin."""

    start: list[str] = field(default_factory=list)
    waiting: list[Due] = field(default_factory=list)
    ask: list[str] = field(default_factory=list)
    skip: list[tuple[str, str]] = field(default_factory=list)


def planned(config: Config) -> dict[str, Planned]:
    zone = ZoneInfo(config.schedules.timezone)
    return {name: Planned(name, job, _times(job, zone)) for name, job in config.schedules.jobs.items()}


def _times(job: Job, zone: ZoneInfo) -> Times | None:
    if job.every_s is not None:
        return Every(job.every_s)
    if job.cron is not None:
        return Cron(job.cron, zone)
    if job.at:
        return At([time.fromisoformat(clock) for clock in job.at], zone)
    return None


def next_start(plan: Planned, state: JobState, states: Mapping[str, JobState]) -> datetime | None:
    """When it is due by itself; None: not until something else happens."""
    since = state.passed or state.known_since
    if plan.times is not None:
        if state.passed is None and isinstance(plan.times, Every):
            return state.known_since
        return plan.times.after(since)
    others = [states[name].last_done for name in plan.job.after if name in states]
    later = [done for done in others if done is not None and done > since]
    return max(later) if len(later) == len(plan.job.after) else None


def retry_at(plan: Planned, state: JobState) -> datetime | None:
    """When a run that failed is tried again; None: it is not, or that is being done."""
    if state.outcome not in (Outcome.FAILED, Outcome.CUT_OFF) or state.last_end is None or state.running:
        return None
    if not 0 < state.tries <= plan.job.retries:
        return None
    return state.last_end + timedelta(seconds=min(RETRY_LIMIT_S, RETRY_S * 2 ** (state.tries - 1)))


def is_fresh(before: Planned, state: JobState, after: JobState, now: datetime) -> bool:
    """Whether a job that comes after this one may use its last result."""
    if state.last_done is None:
        return False
    if before.job.stale_after_s is not None:
        return now - state.last_done <= timedelta(seconds=before.job.stale_after_s)
    return after.last_start is None or state.last_done > after.last_start


def decide(plans: Mapping[str, Planned], states: Mapping[str, JobState], now: datetime) -> Decision:
    """`states` has every planned job. Higher priority first, then who waits longest."""
    decision = Decision()
    # Those of a scheduler that hangs stand, perhaps for ever: the others do not wait for them.
    room = RUNNING_LIMIT - sum(state.running and not state.elsewhere for state in states.values())
    due = sorted(_due(plans, states, now), key=lambda d: (-plans[d.name].job.priority, d.since, d.name))
    for each in due:
        plan, state = plans[each.name], states[each.name]
        if state.running:
            if plan.job.overlap == "skip":
                decision.skip.append((each.name, "it still ran when it came due"))
            else:
                decision.waiting.append(Due(each.name, each.since, "it still runs"))
            continue
        failed, stale = _before(plan, plans, states, now, each.since)
        if failed:
            decision.skip.append((each.name, f"it comes after {' and '.join(failed)}, which failed"))
        elif stale:
            decision.ask += [name for name in stale if not _is_wanted(states[name])]
            decision.waiting.append(Due(each.name, each.since, f"waits for {' and '.join(stale)}"))
        elif room <= 0:
            decision.waiting.append(Due(each.name, each.since, f"waits: {RUNNING_LIMIT} jobs run"))
        else:
            room -= 1
            decision.start.append(each.name)
    return decision


def _due(plans: Mapping[str, Planned], states: Mapping[str, JobState], now: datetime) -> Iterator[Due]:
    for name, plan in plans.items():
        state = states[name]
        if state.asked is not None:
            yield Due(name, state.asked)
            continue
        if not plan.job.enabled or state.paused:
            continue
        moments = [retry_at(plan, state), next_start(plan, state, states)]
        first = min((moment for moment in moments if moment is not None), default=None)
        if first is not None and first <= now:
            yield Due(name, first)


def _before(
    plan: Planned,
    plans: Mapping[str, Planned],
    states: Mapping[str, JobState],
    now: datetime,
    since: datetime,
) -> tuple[list[str], list[str]]:
    """Of the jobs that it comes after: those that have failed since it was due, and those not fresh yet."""
    failed: list[str] = []
    stale: list[str] = []
    for name in plan.job.after:
        other, state = plans[name], states[name]
        if is_fresh(other, state, states[plan.name], now) and not state.running:
            continue
        in_vain = state.outcome is not None and not state.outcome.done and not _is_wanted(state)
        ended_in_vain = in_vain and state.last_end is not None and state.last_end >= since
        over = ended_in_vain and retry_at(other, state) is None
        (failed if over else stale).append(name)
    return failed, stale


def _is_wanted(state: JobState) -> bool:
    return state.running or state.asked is not None


def missed(
    plans: Mapping[str, Planned], states: Mapping[str, JobState], now: datetime
) -> list[tuple[str, datetime]]:
    """Jobs that should have begun, and have not within their grace: (name, when)."""
    found = []
    for name, plan in plans.items():
        state = states[name]
        if not plan.job.enabled or state.paused or state.running:
            continue
        moment = next_start(plan, state, states)
        if moment is not None and now - moment > timedelta(seconds=plan.job.grace_s):
            found.append((name, moment))
    return found


def stale(plans: Mapping[str, Planned], states: Mapping[str, JobState], now: datetime) -> list[str]:
    """Jobs whose last result is older than `stale_after`."""
    return [
        name
        for name, plan in plans.items()
        if plan.job.enabled
        and plan.job.stale_after_s is not None
        and now - (states[name].last_done or states[name].known_since)
        > timedelta(seconds=plan.job.stale_after_s)
    ]


def success_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Of the runs that began, the newest 30 at most; None: there are none."""
    began = [outcome for outcome in outcomes if outcome is not Outcome.SKIPPED]
    return sum(outcome.done for outcome in began) / len(began) if began else None
