"""What the jobs of a config owe their owner, as the process tells them that runs them. Pure.

What an alarm of a job is, and when, is of schedule.alarms: a status has only what the heartbeats carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from consumers.views.amounts import duration
from consumers.views.findings import Finding, Grade
from consumers.views.parts import Part

JOB = "job "  # begins the subject of each


def job_findings(part: Part) -> Iterator[Finding]:
    """`part`: those of `tailrace serve`. Of jobs that are switched off as a whole nothing is said."""
    known = [record for record in part.living if "jobs" in record.detail]
    teller = max(known, key=lambda record: bool(record.detail.get("elected")), default=None)
    if teller is None or not teller.detail.get("enabled", True):
        return
    for job in teller.detail["jobs"]:
        yield from _of_job(job, part.at_us)


def _of_job(job: Mapping[str, Any], at_us: int) -> Iterator[Finding]:
    name, state, last = job["name"], job["state"], job.get("last") or {}
    subject, see = f"{JOB}{name}", f"see `tailrace jobs show {name}`"
    if state == "MISSED":
        late = _ago(job.get("missed_since_us"), at_us)
        text = f"the job {name} should have begun{late}, and has not"
        yield Finding(Grade.UNDONE, subject, f"{text}: {see}")
    elif state == "FAILED":
        how = "was cut off" if last.get("outcome") == "cut_off" else "failed"
        text = f"the job {name} {how}{_ago(last.get('ended_us'), at_us)}"
        retry_us = job.get("retry_us")
        if retry_us is None:
            yield Finding(Grade.UNDONE, subject, f"{text}: {see}")
        else:
            text += f", and is tried again in {duration(max(0.0, (retry_us - at_us) / 1e6))}"
            yield Finding(Grade.SLOW, subject, text, counts=False)
    if job.get("stale"):
        text = f"the job {name} has had no good run for {duration(job.get('stale_after_s'))}"
        yield Finding(Grade.UNDONE, subject, f"{text}: {see}")


def _ago(since_us: int | None, at_us: int) -> str:
    return "" if since_us is None else f" {duration(max(0.0, (at_us - since_us) / 1e6))} ago"
