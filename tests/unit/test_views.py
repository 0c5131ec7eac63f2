"""From heartbeats to states and the one sentence: every rule of consumers.views on plain records."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from consumers import screens, views
from consumers.views.backfills import Pace, left_s
from streamer.changes.backfill import Progress
from streamer.changes.backfill import State as BackfillState
from streamer.config import Config, parse
from tests.harness.statuses import CONFIG, NOW_US, S, apply, build, capture, record, text


@pytest.fixture
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


def test_all_is_well(config: Config) -> None:
    status = build(config, capture(), apply())
    assert status.exit_code == 0
    assert status.verdict == "the flow runs, at most 0.5 s behind"
    [flow], [source] = status.flows, status.sources
    assert (flow["state"], flow["captured"], flow["applied"], flow["lag_records"]) == ("OK", 10, 10, 4)
    assert (source["lsn"], source["epoch"], source["slot_wal_bytes"]) == ("1/10", 1, 100)
    screen = text(status)
    for shown in ("mirror", "1/10", "P50 ms", "5.0"):
        assert shown in screen


def test_nothing_runs(config: Config) -> None:
    status = build(config)
    assert status.exit_code == 1
    assert "has not run yet" in status.verdict
    assert "tailrace run" in status.verdict
    [flow] = status.flows
    assert flow["state"] == "UNKNOWN"
    assert (flow["captured"], flow["applied"], flow["lag_records"], flow["lag_s"]) == (None, None, None, None)
    assert text(status)


def test_silence_is_unknown_and_not_zero(config: Config) -> None:
    status = build(config, capture(), apply(seen_us=NOW_US - 8 * S, at_us=NOW_US - 8 * S))
    [flow] = status.flows
    assert flow["state"] == "UNKNOWN"
    assert "silent since 8s" in status.verdict
    assert flow["lag_records"] is None
    assert flow["rate"] is None
    assert flow["applied"] == 10, "what was counted before stays"
    assert [p["state"] for p in status.parts] == ["streaming", "silent"]
    assert status.exit_code == 1


def test_a_silent_source_has_no_lag(config: Config) -> None:
    status = build(config, capture(seen_us=NOW_US - 8 * S), apply())
    [source] = status.sources
    assert source["state"] == "silent"
    assert (source["lag_s"], source["lag_bytes"], source["slot_wal_bytes"]) == (None, None, None)
    assert status.flows[0]["state"] == "UNKNOWN"


@pytest.mark.parametrize(
    ("flow", "state", "code"),
    [
        ({"lag_s": 11.0, "rate": 5.0}, "SLOW", 0),
        ({"lag_s": 31.0, "rate": 0.0}, "STALLED", 1),
        ({"lag_s": 31.0, "rate": 9.0}, "SLOW", 0),
        ({"lag_s": 0.0, "lag_records": 0, "rate": 0.0}, "IDLE", 0),
        ({"state": "error", "reason": "a row was refused"}, "ERROR", 1),
        ({"state": "held", "reason": "a truncate"}, "HELD", 1),
        ({"state": "paused"}, "PAUSED", 0),
        ({"state": "rewound"}, "REWOUND", 1),
    ],
)
def test_the_states_of_a_flow(config: Config, flow: dict[str, Any], state: str, code: int) -> None:
    status = build(config, capture(), apply(flow))
    assert status.flows[0]["state"] == state
    assert status.exit_code == code
    if state != "IDLE":
        assert state in status.verdict


def test_what_is_held_is_said_once_for_two_processes(config: Config) -> None:
    gate = {"topic": "shop.public.orders", "kind": "truncate", "rows": 7, "table_rows": 7, "since_us": 1}
    flow = {"state": "held", "reason": "7 of 7 rows", "held": [gate]}
    status = build(config, capture(), apply(flow), apply(flow, instance="other-2", pid=2))
    assert status.flows[0]["held"] == [gate]
    assert status.verdict == "flow mirror is HELD: 7 of 7 rows"


def test_a_waiting_source_stalls_its_flows_and_is_said_once(config: Config) -> None:
    status = build(config, capture(state="waiting", reason="source away\n  -> start it"), apply())
    assert status.flows[0]["state"] == "STALLED"
    assert status.verdict == "capture:shop waits: source away"
    assert len(status.findings) == 1
    assert "start it" in text(status)


def test_a_flow_does_not_run_while_its_source_is_starting(config: Config) -> None:
    status = build(config, capture(state="starting"), apply())
    assert status.verdict == "source shop is starting"
    assert (status.exit_code, status.flows[0]["reason"]) == (0, "capture:shop is starting")
    reason = "the slot waits for transactions that have written: pid 7 must end first"
    status = build(config, capture(state="starting", reason=reason), apply())
    assert status.verdict == f"capture:shop is starting: {reason}"
    assert (status.exit_code, status.flows[0]["state"], len(status.findings)) == (0, "SLOW", 1)
    status = build(config, capture(state="waiting", reason=reason), apply())
    assert status.verdict == f"capture:shop waits: {reason}"
    assert (status.exit_code, status.flows[0]["state"]) == (1, "STALLED")


def test_the_worst_comes_first(config: Config) -> None:
    status = build(config, capture(state="error", reason="slot gone", ended=True), apply({"lag_s": 12.0}))
    assert status.verdict == "capture:shop: slot gone"
    assert status.sources[0]["state"] == "error"
    later = capture(state="error", reason="slot gone", ended=True, seen_us=NOW_US - 600 * S)
    assert build(config, later, apply()).verdict == "capture:shop ended 10m ago: slot gone", (
        "nor does it fade"
    )


def test_much_wal_is_a_finding(config: Config) -> None:
    status = build(config, capture(detail={"slot": {"wal_bytes": 2**21, "active": True}}), apply())
    assert status.exit_code == 1
    assert "2.0 MiB of WAL" in status.verdict
    assert status.sources[0]["findings"]


TWO_SOURCES = CONFIG.replace(
    "targets:",
    """  game:
    kind: redis
    url: "redis://h/0"
    entities: {users: {pattern: "user:{id}", type: string}, boards: {pattern: "board:{id}", type: string}}
targets:""",
)

BACKFILL = {
    "run": "20261122T115639-1f3a",
    "table": "public.orders",
    "state": "running",
    "reason": "",
    "rows": 1_200_000,
    "estimated_rows": 3_000_000,
    "rows_per_s": 40_000.0,
    "left_s": 45.0,
    "chunks": 1_200,
    "reread": 2,
}

BAD = {"lsn": NOW_US, "bad": {"users": 2, "boards": 1300}, "bad_last_us": NOW_US - 60 * S}


def test_the_worst_first_in_one_order_of_all_that_is_told(config: Config) -> None:
    """Wherever it comes from: a source, a flow, a part, `tailrace run`."""
    both = parse(
        TWO_SOURCES + "  users: {from: game.users, to: warehouse.game}\n", Path("t.yaml"), environ={}
    )
    failed = {**BACKFILL, "state": "failed", "reason": "the table is gone"}
    notes = ["public.notes had 3 UPDATEs that could not be captured"]
    shop = capture(detail={"findings": notes, "backfills": [failed]})
    game = record("capture:game", detail=BAD)
    fell = {"state": "running", "restarts": 1, "started_us": NOW_US, "reason": "killed"}
    running = record("run:acme", state="running", detail={"parts": {"apply:warehouse": fell}})
    old = record("capture:old", state="error", reason="no slot")
    told = [
        (views.Grade.ERROR, "capture:old: no slot"),
        (views.Grade.STALLED, "flow mirror is STALLED"),
        (views.Grade.AT_RISK, "shop: public.notes had 3 UPDATEs"),
        (views.Grade.HELD, "flow users is HELD"),
        (views.Grade.UNDONE, "shop: the backfill of public.orders failed"),
        (views.Grade.SET_ASIDE, "game: 1,302 values could not be used"),
        (views.Grade.PAST, "apply:warehouse was started again once"),
    ]
    applying = apply({"lag_s": 31.0, "rate": 0.0})
    applying.detail["flows"]["users"] = {"state": "held", "reason": "a truncate"}
    found = build(both, running, game, shop, applying, old).findings
    assert [finding.rank for finding in found] == [grade for grade, _ in told]
    for finding, (_, begins) in zip(found, told, strict=True):
        assert finding.text.startswith(begins)
    assert list(views.Grade) == sorted(views.Grade)


def test_bad_values_are_one_note_behind_what_waits_for_a_person(config: Config) -> None:
    both = parse(TWO_SOURCES, Path("tailrace.yaml"), environ={})
    game = record("capture:game", detail=BAD)
    for flow in ({"state": "held", "reason": "600 deletes of boards"}, {"state": "error", "reason": "gone"}):
        status = build(both, capture(), apply(flow), game)
        assert "flow mirror is" in status.verdict
        last = status.findings[-1]
        assert last.text.startswith(
            "game: 1,302 values could not be used (boards 1,300, users 2), the last at 2027-01-15T07:59:00"
        )
        assert last.text.endswith("see the topic acme.__bad.game")
    status = build(both, capture(), apply(), game)
    assert (len(status.findings), status.exit_code) == (1, 1)


@pytest.mark.parametrize(("age_s", "notes"), [(3599, 1), (3601, 0)])
def test_bad_values_are_told_for_an_hour(age_s: int, notes: int) -> None:
    both = parse(TWO_SOURCES, Path("tailrace.yaml"), environ={})
    game = record("capture:game", detail={**BAD, "bad_last_us": NOW_US - age_s * S})
    status = build(both, capture(), apply(), game)
    assert len(status.findings) == len(status.sources[1]["findings"]) == notes


def test_a_source_without_a_slot_keeps_nothing_in_one(config: Config) -> None:
    both = parse(TWO_SOURCES, Path("tailrace.yaml"), environ={})
    game = record("capture:game", detail={"lsn": NOW_US})
    shown = text(build(both, capture(), apply(), game))
    assert "100 B of 1.0 MiB" in shown
    assert "- of -" not in shown
    lines = TWO_SOURCES.splitlines()
    only = "\n".join(
        [*(line for line in lines if "shop" not in line), "  m: {from: game.users, to: warehouse.m}"]
    )
    shown = text(build(parse(only, Path("tailrace.yaml"), environ={}), game))
    assert "POSITION" in shown
    assert "SLOT KEEPS" not in shown


def test_what_run_cannot_keep_up(config: Config) -> None:
    parts = {
        "capture:shop": {"state": "error", "reason": "wrong password"},
        "apply:warehouse": {"state": "running", "restarts": 1, "started_us": NOW_US, "reason": "killed"},
    }
    running = record("run:acme", state="running", detail={"parts": parts})
    status = build(config, capture(), apply(), running)
    assert status.exit_code == 1
    assert status.verdict == "capture:shop: wrong password (and 1 more)"
    assert "apply:warehouse was started again once" in text(status)


def test_what_is_mended_is_past_and_comes_after_what_is(config: Config) -> None:
    """A reason of the past names no cure: followed once more, it would copy everything again."""
    reason = "slot is gone\n  -> run tailrace reset shop"
    part = {"state": "running", "restarts": 4, "started_us": NOW_US, "reason": reason}
    running = record("run:acme", state="running", detail={"parts": {"capture:shop": part}})
    status = build(config, capture(), apply(), running)
    assert status.exit_code == 0
    assert status.verdict == "the flow runs, at most 0.5 s behind"
    shown = text(status)
    assert shown.lstrip().startswith("✓ acme: the flow runs")
    assert "capture:shop was started again 4 times, last because: slot is gone" in shown
    assert "tailrace reset" not in str(status.plain())


def test_a_part_that_the_file_no_longer_names(config: Config) -> None:
    gone = record("capture:old", seen_us=NOW_US - 60 * S, at_us=NOW_US - 60 * S)
    assert build(config, capture(), apply(), gone).exit_code == 0
    still_there = record("capture:old", state="error", reason="no slot")
    assert build(config, capture(), apply(), still_there).verdict == "capture:old: no slot"


def test_a_first_copy_is_told(config: Config) -> None:
    snapshot = {"table": "public.orders", "rows": 5000, "tables_done": 1, "tables": 3}
    status = build(config, capture(state="snapshot", detail={"snapshot": snapshot}), apply())
    assert status.flows[0]["reason"] == "first copy: 1 of 3 tables"
    assert "5,000 rows" in text(status)


def test_backfills_are_told_with_their_source(config: Config) -> None:
    paused = {**BACKFILL, "table": "public.notes", "state": "paused", "rows_per_s": 0.0, "left_s": None}
    done = {**BACKFILL, "table": "public.old", "state": "done"}
    found = views.build(config, [capture(detail={"backfills": [BACKFILL, paused, done]}), apply()], NOW_US)
    assert found.exit_code == 0
    assert [each["table"] for each in found.sources[0]["backfills"]] == [
        "public.orders",
        "public.notes",
        "public.old",
    ]
    console = Console(file=io.StringIO(), width=110)
    screens.show(console, screens.status_screen(found))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    running = "running: 1,200,000 of about 3,000,000 rows, 40,000/s, 45s left"
    assert f"shop: backfill of public.orders {running}" in text
    assert "shop: backfill of public.notes paused: 1,200,000 of about 3,000,000 rows" in text
    assert "public.old" not in text


def test_a_backfill_that_failed_is_a_finding(config: Config) -> None:
    failed = {**BACKFILL, "state": "failed", "reason": "the table is gone", "left_s": None}
    found = views.build(config, [capture(detail={"backfills": [failed]}), apply()], NOW_US)
    assert found.exit_code == 1
    (finding,) = found.findings
    assert finding.text.startswith("shop: the backfill of public.orders failed: the table is gone\n")
    assert "`tailrace backfills resume 20261122T115639-1f3a`" in finding.text


def test_a_reset_settles_the_drift_that_was_found_before(config: Config) -> None:
    began_us = NOW_US - 60_000_000
    proof = {
        "run": "r",
        "verdict": "drift",
        "drift": 0.1,
        "rows": 9,
        "began_us": began_us,
        "ended_us": NOW_US,
    }
    for since_us, proofs in ((began_us - 1, [proof]), (began_us + 1, [None])):
        records = [capture(detail={"since_us": since_us}), apply()]
        found = views.build(config, records, NOW_US, {"mirror": proof})
        assert [flow["proof"] for flow in found.flows] == proofs
        assert ["was not equal" in finding.text for finding in found.findings] == [True for p in proofs if p]


def test_the_pace_of_a_backfill_is_that_of_its_last_seconds() -> None:
    pace = Pace()
    rows = [0, 1_000, 3_000, 3_000]
    rates = [
        pace.rows_per_s(Progress(BackfillState.RUNNING, rows=n, updated_us=at_s * S))
        for at_s, n in enumerate(rows)
    ]
    assert rates == [None, 1_000.0, 1_500.0, 1_000.0]
    progress = Progress(BackfillState.RUNNING, rows=50_000, estimated_rows=53_000, updated_us=30 * S)
    late = pace.rows_per_s(progress)
    assert late == 47_000 / 27  # from the last look that is older than ten seconds
    assert left_s(progress, 1_000.0) == 3.0
    assert pace.rows_per_s(replace(progress, state=BackfillState.PAUSED)) is None
    assert left_s(progress, None) is None


@pytest.mark.parametrize(
    ("more", "served", "watched"),
    [
        ({}, False, False),
        ({"control": {"url": "sqlite:///c.db"}}, False, False),
        ({"control": {"http": "127.0.0.1:1"}}, True, False),
        ({"schedules": {"jobs": {"tidy": {"exec": "a:b", "every": "1h"}}}}, True, True),
        ({"alerts": {"channels": {"log": {}}, "rules": [{"when": ["held"], "to": ["log"]}]}}, True, True),
        ({"alerts": {"channels": {"log": {}}, "dead_man": {"ping": ""}}}, False, False),
        ({"alerts": {"dead_man": {"ping": "http://h/"}}}, True, True),
    ],
)
def test_what_a_file_wants_of_serve(more: dict[str, Any], served: bool, watched: bool) -> None:
    wanted = parse(yaml.safe_dump(yaml.safe_load(CONFIG) | more), Path("tailrace.yaml"), environ={})
    assert views.expected_parts(wanted) == ["capture:shop", "apply:warehouse"] + ["serve:acme"] * served
    assert views.is_watched(wanted) == watched
    status = views.build(wanted, [capture(), apply()], NOW_US)
    assert status.exit_code == served
    if served:
        assert (
            "serve:acme has not run yet: start it with `tailrace run`, or `tailrace serve`" in status.verdict
        )
        frozen = record("serve:acme", state="running", seen_us=NOW_US - 8 * S, at_us=NOW_US - 8 * S)
        assert (
            "serve:acme is silent since 8s"
            in views.build(wanted, [capture(), apply(), frozen], NOW_US).verdict
        )
    standby = record("serve:acme", state="standby")
    assert views.build(wanted, [capture(), apply(), standby], NOW_US).exit_code == 0


JOB = {"name": "audit", "state": "OK", "last": {"outcome": "failed", "ended_us": NOW_US - 60 * S}}
SEE = "see `tailrace jobs show audit`"


@pytest.mark.parametrize(
    ("job", "text", "counts"),
    [
        ({"state": "FAILED"}, f"the job audit failed 1m ago: {SEE}", True),
        (
            {"state": "FAILED", "retry_us": NOW_US + 30 * S},
            "the job audit failed 1m ago, and is tried again in 30s",
            False,
        ),
        (
            {"state": "FAILED", "last": {"outcome": "cut_off", "ended_us": NOW_US}},
            f"the job audit was cut off 0s ago: {SEE}",
            True,
        ),
        (
            {"state": "MISSED", "missed_since_us": NOW_US - 120 * S},
            f"the job audit should have begun 2m ago, and has not: {SEE}",
            True,
        ),
        (
            {"stale": True, "stale_after_s": 3600.0},
            f"the job audit has had no good run for 1h: {SEE}",
            True,
        ),
        ({"state": "RUNNING"}, "", False),
    ],
)
def test_what_is_wrong_with_a_job_is_a_finding(
    config: Config, job: dict[str, Any], text: str, counts: bool
) -> None:
    def told(**detail: Any) -> views.Status:
        jobs = {"elected": True, "enabled": True, "jobs": [JOB | job]}
        standby = record("serve:acme", detail={"elected": False, "jobs": []}, instance="host-2")
        serve = record("serve:acme", detail=jobs | detail)
        return build(config, capture(), apply(), standby, serve)

    status = told()
    assert [(f.text, f.counts) for f in status.findings] == ([(text, counts)] if text else [])
    assert status.exit_code == counts
    assert told(enabled=False).findings == []
