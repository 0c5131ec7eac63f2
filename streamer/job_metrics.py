"""Metrics of the scheduler and its jobs, from the heartbeat of `tailrace serve`: docs/metrics.md.

The label `job` is a name of the config file. What is unknown has no sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

JOB_STATES = ("WAITING", "ASKED", "RUNNING", "OK", "FAILED", "MISSED", "PAUSED", "DISABLED")
_GOOD = {"ok", "finding"}  # it did its work


def serve_metrics(part: str, detail: Mapping[str, Any]) -> Iterator[Metric]:
    elected = GaugeMetricFamily(
        "tailrace_elected",
        "1 for the process that runs the jobs, 0 for those that stand by.",
        labels=["part"],
    )
    elected.add_metric([part], float(bool(detail.get("elected"))))
    yield elected
    enabled = GaugeMetricFamily(
        "tailrace_jobs_enabled", "0 while control.enabled is false: no job runs.", labels=["part"]
    )
    enabled.add_metric([part], float(bool(detail.get("enabled"))))
    yield enabled
    if detail.get("jobs") is not None:
        yield from _jobs(detail["jobs"])


def _jobs(jobs: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "tailrace_job_state", "1 for the state that the job is in, 0 for the others.", labels=["job", "state"]
    )
    figures = {
        name: GaugeMetricFamily(f"tailrace_job_{name}", text, labels=["job"])
        for name, text in (
            ("stale", "1 without a good run within its stale_after."),
            ("age_seconds", "Since the end of its last good run."),
            ("success_ratio", "Share of its last 30 runs that did their work."),
            ("next_seconds", "When it runs next, seconds since 1970."),
            ("last_begun_seconds", "When its last run began, seconds since 1970."),
            ("last_duration_seconds", "How long its last run took."),
            ("last_success", "1 when its last run did its work, 0 when it failed or was cut off."),
        )
    }
    for job in jobs:
        for name in JOB_STATES:
            state.add_metric([job["name"], name], float(job["state"] == name))
        for name, value in _figures(job).items():
            if value is not None:
                figures[name].add_metric([job["name"]], float(value))
    yield from (state, *figures.values())


def _figures(job: Mapping[str, Any]) -> dict[str, float | None]:
    last = job["last"] or {}
    outcome = last.get("outcome")
    return {
        "stale": job["stale"],
        "age_seconds": job["age_s"],
        "success_ratio": job["success_rate"],
        "next_seconds": _seconds(job["next_us"]),
        "last_begun_seconds": _seconds(last.get("began_us")),
        "last_duration_seconds": last.get("seconds"),
        "last_success": None if outcome is None else outcome in _GOOD,
    }


def _seconds(at_us: int | None) -> float | None:
    return None if at_us is None else at_us / 1e6
