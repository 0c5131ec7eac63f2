"""Jobs as people and programs see them: docs/schedules.md has the keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from consumers.schedule.plan import (
    Decision,
    JobState,
    Outcome,
    Planned,
    missed,
    next_start,
    retry_at,
    stale,
    success_rate,
)
from consumers.schedule.times import to_us
from consumers.views import duration
from streamer.config.operations import Job

DISABLED = "DISABLED"  # all of them, by control.enabled


@dataclass(frozen=True, slots=True)
class Past:
    """A run that is over, or open."""

    run: int
    by: str
    began_us: int
    ended_us: int | None
    outcome: Outcome | None
    exit_code: int | None
    text: str

    def plain(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "by": self.by,
            "began_us": self.began_us,
            "ended_us": self.ended_us,
            "seconds": None if self.ended_us is None else (self.ended_us - self.began_us) / 1e6,
            "outcome": None if self.outcome is None else self.outcome.value,
            "exit_code": self.exit_code,
            "text": self.text,
        }


def job_views(
    plans: Mapping[str, Planned],
    states: Mapping[str, JobState],
    pasts: Mapping[str, Sequence[Past]],
    now: datetime,
    *,
    enabled: bool,
    decision: Decision | None = None,
) -> list[dict[str, Any]]:
    """`pasts`: the newest first. `decision`: why one that is due does not begin, if the scheduler tells."""
    late = dict(missed(plans, states, now)) if enabled else {}
    old = set(stale(plans, states, now))
    waits = {due.name: due.waits for due in decision.waiting} if decision is not None else {}
    found = []
    for name, plan in plans.items():
        view = _view(plan, states, pasts.get(name, ()), now, enabled=enabled, missed_since=late.get(name))
        found.append({**view, "stale": name in old, "waits": waits.get(name, "")})
    return found


def _view(
    plan: Planned,
    states: Mapping[str, JobState],
    past: Sequence[Past],
    now: datetime,
    *,
    enabled: bool,
    missed_since: datetime | None,
) -> dict[str, Any]:
    state, job = states[plan.name], plan.job
    runs = enabled and job.enabled and not state.paused
    retry = retry_at(plan, state) if runs else None
    moments = [state.asked, retry, next_start(plan, state, states) if runs else None]
    next_ = min((moment for moment in moments if moment is not None), default=None)
    last = next((run for run in past if run.outcome is not Outcome.SKIPPED), None)
    return {
        "name": plan.name,
        "kind": job.kind,
        "what": getattr(job, job.kind),
        "when": _when(job),
        "paused": state.paused,
        "state": _state(state, enabled=enabled, job_enabled=job.enabled, missed=missed_since is not None),
        "next_us": _us(next_),
        "retry_us": _us(retry),
        "missed_since_us": _us(missed_since),
        "age_s": None if state.last_done is None else (now - state.last_done).total_seconds(),
        "stale_after_s": job.stale_after_s,
        "after": list(job.after),
        "priority": job.priority,
        "last": None if last is None else last.plain(),
        "success_rate": success_rate([run.outcome for run in past if run.outcome is not None]),
        "runs": len(past),
    }


def _when(job: Job) -> str:
    """As the file has it, or what was changed beside it."""
    words = [
        "" if job.every_s is None else f"every {duration(job.every_s)}",
        f"at {', '.join(job.at)}" if job.at else "",
        f"cron {job.cron}" if job.cron else "",
        f"after {', '.join(job.after)}" if job.after else "",
    ]
    return "; ".join(word for word in words if word)


def _state(state: JobState, *, enabled: bool, job_enabled: bool, missed: bool) -> str:
    if state.running:
        return "RUNNING"
    if not enabled or not job_enabled:
        return DISABLED
    if state.paused:
        return "PAUSED"
    if missed:
        return "MISSED"
    if state.asked is not None:
        return "ASKED"
    if state.outcome in (Outcome.FAILED, Outcome.CUT_OFF):
        return "FAILED"
    return "WAITING" if state.outcome is None else "OK"


def _us(at: datetime | None) -> int | None:
    return None if at is None else to_us(at)
