"""The page's snapshot: its size, its one sentence, and the hop that is marked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from consumers import views
from consumers.control.feed import Event
from consumers.dashboard import frames
from streamer.config import Config, parse
from streamer.status import StatusRecord, now_us
from tests.harness.dashboard import beat

FLOWS = 200
FRAME_BYTES = 50_000
S = 1_000_000
LATENCY = {"p50": 40.0, "p99": 90.0, "capture_p50": 5.0, "kafka_p50": 25.0, "apply_p50": 10.0}


def config_with(flows: int) -> Config:
    lines = [
        f"  flow_of_customers_{n:03}: {{from: shop.public.t{n:03}, to: copy.mirror}}" for n in range(flows)
    ]
    text = "\n".join(
        [
            "name: acme",
            "sources: {shop: {kind: postgres, url: 'postgresql://h/db', tables: {'public.*': {}}}}",
            "targets: {copy: {kind: postgres, url: 'postgresql://h/db'}}",
            "flows:",
            *lines,
        ]
    )
    return parse(text, Path("tailrace.yaml"), environ={})


def built(
    config: Config, proof: str = "equal", age_s: float = 100.0, jobs: Any = None, **changes: Any
) -> tuple[views.Status, StatusRecord]:
    """`jobs`: as the process tells them that runs them. `changes`: of each flow's figures."""
    flow = {"state": "streaming", "applied": 12_345, "rate": 123.4, "lag_records": 1234, "lag_s": 1.234}
    flow |= {"parked": 0, "latency_ms": LATENCY, "held": [], "partitions": [], **changes}
    apply = beat("apply:copy", detail={"flows": dict.fromkeys(config.flows, flow)})
    slot = {"wal_bytes": 2**30}
    capture = beat("capture:shop", state="streaming", detail={"published": 1, "lag_s": 0.1, "slot": slot})
    at_us = apply.at_us
    one = {"run": "r", "verdict": proof, "drift": 0.0, "rows": 1, "began_us": at_us, "ended_us": at_us}
    one["ended_us"] = at_us - int(age_s * S)
    proofs = dict.fromkeys(config.flows, one) if proof else {}
    serve = beat("serve:acme", detail={"elected": True, "enabled": True, "jobs": jobs or []})
    return views.build(config, [capture, apply, serve], at_us, proofs), apply


def snapshot(status: views.Status, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "jobs": [],
        "events": [],
        "enabled": True,
        "scheduler": None,
        "admin": False,
        "wal_rates": {},
    }
    return frames.snapshot(status, **{**known, **changes})


@pytest.mark.parametrize("reason", ["", "x" * 2000])
def test_a_frame_of_200_flows_is_below_50_kb(reason: str) -> None:
    """At its worst: each flow with a long reason of its own, and as many events and jobs as are shown."""
    config = config_with(FLOWS)
    status, _ = built(config)
    for number, flow in enumerate(status.flows):
        flow["reason"] = f"{number} {reason}" if reason else ""
    status.findings += [views.Finding(views.Grade.ERROR, "flow", "y" * 3000)] * (30 if reason else 0)
    events = [Event(n, "dead_letter", f"flow {n}", "z" * 2000, "host", 1, None) for n in range(100)]
    job = {"name": "job_of_the_night", "kind": "reconcile", "what": "audit", "state": "OK", "stale": False}
    last = {"text": "z" * 4000, "began_us": status.at_us, "outcome": "ok"}
    jobs = [{**job, "last": last} for _ in range(100)]
    frame = orjson.dumps(snapshot(status, events=events if reason else [], jobs=jobs))
    assert len(frame) < FRAME_BYTES


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "All 3 flows are within 2 s and proven equal within an hour"),
        ({"age_s": 86_400 * 3}, "All 3 flows are within 2 s and proven equal within 3 days"),
        ({"proof": ""}, "All 3 flows are within 2 s and not proven equal yet"),
        ({"lag_s": None}, "All 3 flows are running and proven equal within an hour"),
        ({"lag_s": 20.0}, "flow flow_of_customers_000 is SLOW: 20 s behind (1234 records) (and 2 more)"),
    ],
)
def test_the_sentence(changes: dict[str, Any], sentence: str) -> None:
    status, _ = built(config_with(3), **changes)
    assert frames.sentence(status) == sentence


JOB: dict[str, Any] = {"name": "audit", "state": "OK", "last": None, "stale": False}
FAILED = {**JOB, "state": "FAILED", "last": {"outcome": "failed", "ended_us": None}}


def test_a_job_that_has_failed_is_the_sentence() -> None:
    status, _ = built(config_with(3), jobs=[JOB, FAILED])
    frame = snapshot(status)
    sentence = "the job audit failed: see `tailrace jobs show audit`"
    assert (frame["sentence"], frame["ok"]) == (sentence, False)


def event(subject: str, *, resolved: bool = False, text: str = "it stands") -> Event:
    since_us = now_us() - 90 * S
    return Event(1, "stalled", subject, text, "host", since_us, since_us if resolved else None)


def test_all_is_not_well_while_an_alarm_is_open() -> None:
    """Also one of which nothing else tells; one that something tells is told once."""
    status, apply = built(config_with(3))
    frame = snapshot(status, events=[event("flow mirror", resolved=True)])
    assert (frame["sentence"].partition(" are ")[0], frame["findings"]) == ("All 3 flows", [])
    frame = snapshot(status, events=[event("flow mirror")])
    assert re.fullmatch(r"an alarm is open since 1m \d+s: it stands", frame["sentence"])
    assert [finding["subject"] for finding in frame["findings"]] == ["flow mirror"]
    silent = views.build(config_with(3), [apply, beat("capture:shop")], apply.at_us + 10 * S)
    alone = snapshot(silent)["findings"]
    for subject in ("apply:copy", "apply:copy host-1", "flow flow_of_customers_000"):
        assert snapshot(silent, events=[event(subject)])["findings"] == alone, subject
    assert snapshot(silent, events=[event("watcher")])["findings"] != alone


def test_alarms_that_are_not_known_are_not_none() -> None:
    status, _ = built(config_with(3))
    assert "control database does not answer" in snapshot(status, events=None)["sentence"]


def test_the_slowest_hop_is_marked() -> None:
    config = config_with(2)
    status, apply = built(config)
    strip = frames.strip(status)
    assert (strip["slowest"], strip["broken"]) == ("kafka", [])
    assert {stage["stage"]: stage["p50_ms"] for stage in strip["stages"]} == {
        "capture": 5.0,
        "kafka": 25.0,
        "apply": 10.0,
    }
    silent = views.build(config, [apply], apply.at_us + 10 * S)
    strip = frames.strip(silent)
    assert (strip["slowest"], strip["broken"]) == (None, ["apply"])
    assert strip["states"] == {"capture": None, "apply": "silent"}
    assert all(stage["p50_ms"] is None for stage in strip["stages"])
    both = frames.strip(views.build(config, [apply, beat("capture:shop")], apply.at_us + 10 * S))
    assert both["broken"] == ["capture", "apply"], "each part that does not run is framed"


def test_unknown_is_null_and_the_time_to_the_limit_is_told() -> None:
    status, _ = built(config_with(1), lag_s=None, rate=None, parked=None)
    frame = snapshot(status, jobs=None, events=None, wal_rates={"shop": 2**20})
    row = dict(zip(frame["flow_columns"], frame["flows"][0], strict=True))
    assert (row["lag_s"], row["rate"], row["parked"]) == (None, None, None)
    assert (frame["jobs"], frame["events"]) == (None, None)
    (source,) = frame["sources"]
    assert source["to_limit_s"] == 4 * 1024  # 4 GiB are left to 5 GiB
    (source,) = snapshot(status)["sources"]
    assert (source["to_limit_s"], source["wal_bytes_s"]) == (None, None)
