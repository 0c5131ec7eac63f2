"""Jobs in a scrape: what is known has a sample, what is not has none."""

from __future__ import annotations

from typing import Any

from streamer.metrics import exposition
from tests.harness.dashboard import beat

LAST = {"began_us": 5_000_000, "seconds": 1.5, "outcome": "finding"}


def job(name: str, **more: Any) -> dict[str, Any]:
    none = dict.fromkeys(("age_s", "success_rate", "next_us", "last"))
    return {"name": name, "state": "WAITING", "stale": False, **none, **more}


def test_jobs_of_a_heartbeat() -> None:
    jobs = [
        job("audit", state="OK", age_s=60.0, success_rate=0.5, next_us=9_000_000, last=LAST),
        job("tidy", stale=True),
        job("cut", state="FAILED", last={**LAST, "outcome": "cut_off", "seconds": None}),
    ]
    detail = {"elected": True, "enabled": False, "jobs": jobs}
    lines = exposition(beat("serve:acme", detail=detail)).splitlines()
    for line in (
        'tailrace_elected{part="serve:acme"} 1.0',
        'tailrace_jobs_enabled{part="serve:acme"} 0.0',
        'tailrace_job_state{job="audit",state="OK"} 1.0',
        'tailrace_job_state{job="audit",state="MISSED"} 0.0',
        'tailrace_job_age_seconds{job="audit"} 60.0',
        'tailrace_job_success_ratio{job="audit"} 0.5',
        'tailrace_job_next_seconds{job="audit"} 9.0',
        'tailrace_job_last_begun_seconds{job="audit"} 5.0',
        'tailrace_job_last_duration_seconds{job="audit"} 1.5',
        'tailrace_job_last_success{job="audit"} 1.0',
        'tailrace_job_last_success{job="cut"} 0.0',
        'tailrace_job_stale{job="tidy"} 1.0',
    ):
        assert line in lines, line
    assert [
        line for line in lines if 'job="tidy"' in line and "state" not in line and "stale" not in line
    ] == []


def test_without_a_control_database_no_job_is_known() -> None:
    text = exposition(beat("serve:acme", detail={"elected": False, "enabled": True}))
    assert "tailrace_job_" not in text
    assert 'tailrace_elected{part="serve:acme"} 0.0' in text
