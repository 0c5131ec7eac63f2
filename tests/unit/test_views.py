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
from streamer.status import StatusRecord

NOW_US = 1_800_000_000_000_000
S = 1_000_000

CONFIG = """
name: acme
kafka: {brokers: "localhost:9092"}
sources:
  shop: {kind: postgres, url: "postgresql://u:secret@h/db", tables: {"public.*": {}}, slot: {wal_warn: 1MiB}}
targets:
  warehouse: {kind: postgres, url: "postgresql://u:secret@h/db"}
flows:
  mirror: {from: "shop.public.*", to: warehouse.mirror}
"""


@pytest.fixture
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


def record(part: str, **changes: Any) -> StatusRecord:
    kind, name = part.split(":")
    fields: dict[str, Any] = {
        "part": part,
        "kind": kind,
        "name": name,
        "instance": "host-1",
        "pid": 1,
        "host": "host",
        "started_us": NOW_US - 100 * S,
        "at_us": NOW_US,
        "seen_us": NOW_US,
        "state": "streaming",
    }
    return StatusRecord(**{**fields, **changes})


def capture(**changes: Any) -> StatusRecord:
    detail = {
        "epoch": 1,
        "lsn": 0x1_00000010,
        "lag_bytes": 0,
        "lag_s": 0.0,
        "published": 12,
        "rate": 3.0,
        "tables": {"public.orders": {"captured": 10}, "other.orders": {"captured": 2}},
        "slot": {"wal_bytes": 100, "active": True},
        "findings": [],
        "snapshot": None,
    }
    return record("capture:shop", **{"detail": {**detail, **changes.pop("detail", {})}, **changes})


def apply(flow: dict[str, Any] | None = None, **changes: Any) -> StatusRecord:
    detail = {
        "applied": 10,
        "guarded": 0,
        "rate": 3.0,
        "lag_records": 4,
        "lag_s": 0.5,
        "latency_ms": {"p50": 5.0, "p99": 9.0, "capture_p50": 1.0, "capture_p99": 2.0},
        "partitions": [
            {
                "topic": "shop.public.orders",
                "partition": 0,
                "offset": 6,
                "end": 10,
                "lag_records": 4,
                "lag_s": 0.5,
            }
        ],
        "state": "streaming",
        "reason": "",
    }
    return record(
        "apply:warehouse", **{"detail": {"flows": {"mirror": {**detail, **(flow or {})}}}, **changes}
    )


def build(config: Config, *records: StatusRecord) -> views.Status:
    return views.build(config, records, NOW_US)


def text(status: views.Status, width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(screens.status_screen(status))
    console.print(screens.lag_screen(status, views.lag(status)))
    return console.export_text()


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


def test_eighty_columns_cut_no_header_and_no_figure(config: Config) -> None:
    """The tables leave columns out instead."""
    times = {f"{stage}{p}": 123.4 for stage in ("", "capture_", "kafka_", "apply_") for p in ("p50", "p99")}
    status = build(config, capture(), apply({"applied": 1_234_567, "latency_ms": times}))
    shown = text(status, width=80)
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    for word in ("mirror", "streaming", "1,234,567", "POSITION", "BEHIND", "SLOT KEEPS", "123 / 123"):
        assert word in shown
    wide = text(status, width=140)
    for word in ("EPOCH", "warehouse.mirror", "TOTAL ms", "LAG s"):
        assert word in wide


def test_a_long_finding_is_folded_below_its_first_word(config: Config) -> None:
    reason = "the slot is gone " * 12 + "\n  -> " + "make it again, " * 10
    ill = capture(state="error", reason=reason), apply(state="error", reason=reason)
    above, _, _ = text(build(config, *ill), width=80).partition("FLOW")
    lines = above.splitlines()
    marks = [n for n, line in enumerate(lines) if "✗" in line]
    assert [lines[n].index("✗") for n in marks] == [0, 2]
    assert all(line.startswith("  ") for n, line in enumerate(lines) if n and line.strip())
    assert all(line.startswith("    ") for line in lines[marks[1] + 1 :] if line.strip())


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


def test_a_standby_is_counted_and_is_no_finding(config: Config) -> None:
    standby = capture(state="standby", instance="other-2", host="other", started_us=NOW_US)
    status = build(config, capture(), standby, apply())
    assert status.exit_code == 0
    assert status.sources[0]["standbys"] == 1
    assert status.sources[0]["instance"] == "host-1"


def test_one_that_was_started_again_hides_the_silent_one(config: Config) -> None:
    died = capture(seen_us=NOW_US - 20 * S, at_us=NOW_US - 20 * S)
    again = capture(instance="host-2", pid=2, started_us=NOW_US - 19 * S, restarts=1)
    status = build(config, died, again, apply())
    assert status.exit_code == 0
    assert [p["instance"] for p in status.parts] == ["host-2", "host-1"]
    assert status.flows[0]["captured"] == 20, "both have counted"


def test_one_that_froze_as_another_began_is_told(config: Config) -> None:
    """Had it been killed, the one that began after it would have said so."""
    frozen = capture(seen_us=NOW_US - 20 * S, at_us=NOW_US - 20 * S, process="tailrace-capture/host.1/2/3/4")
    beside = capture(instance="host-2", pid=2, started_us=NOW_US - 20 * S + 1)
    assert "host-1 is silent" in build(config, frozen, beside, apply()).verdict
    killed = replace(frozen, ended=True)
    assert build(config, killed, beside, apply()).exit_code == 0
    assert [p["instance"] for p in build(config, killed, beside).parts if p["part"] == "capture:shop"] == [
        "host-2"
    ]


def test_what_a_killed_process_said_last_is_not_the_state_of_the_one_that_follows(config: Config) -> None:
    """It is not silent yet, and its successor has not spoken of its flows."""
    at_us = NOW_US - 3 * S
    died = apply({"state": "error", "reason": "a row was refused"}, at_us=at_us, seen_us=at_us)
    begun = apply(instance="host-2", pid=2, started_us=NOW_US - 2 * S, state="starting", detail={"flows": {}})
    status = build(config, capture(), died, replace(begun, detail={}))
    assert [p["instance"] for p in status.parts if p["part"] == "apply:warehouse"] == ["host-2"]
    [flow] = status.flows
    assert (flow["state"], flow["lag_records"]) == ("UNKNOWN", None)
    assert "does not report it yet" in flow["reason"]
    assert "a row was refused" not in str(status.plain())
    busy = build(config, capture(), died, replace(begun, started_us=at_us - S))
    assert busy.flows[0]["state"] == "ERROR", "both may run: the second began while the first still spoke"


def test_a_silent_one_elsewhere_is_told_and_is_no_finding(config: Config) -> None:
    died = apply(instance="other-9", host="other", seen_us=NOW_US - 20 * S, at_us=NOW_US - 20 * S)
    status = build(config, capture(), died, apply())
    assert status.exit_code == 0
    assert "other-9 is silent" in status.verdict


def test_two_processes_share_a_flow(config: Config) -> None:
    second = apply({"lag_s": 2.0, "latency_ms": {"p50": 7.0, "p99": 8.0}}, instance="host-2", pid=2)
    [flow] = build(config, capture(), apply(), second).flows
    assert (flow["applied"], flow["lag_records"], flow["rate"], flow["lag_s"]) == (20, 8, 6.0, 2.0)
    assert flow["latency_ms"] == {"p50": 7.0, "p99": 9.0, "capture_p50": 1.0, "capture_p99": 2.0}
    assert len(flow["partitions"]) == 2


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


def test_a_stopped_flow_is_an_error_of_its_own_and_of_no_other(config: Config) -> None:
    """The process is in error because of it, and the target's other flows go on."""
    other = {"flows": {"other": {"from": "shop.other.*", "to": "warehouse.other"}}}
    both = config.model_copy(update={"flows": {**config.flows, **_flows_of(other)}})
    reason = "column 'a' is text\n  -> ALTER TABLE a"
    stopped = {"state": "error", "reason": reason, "lag_records": 2798, "lag_s": None, "rate": 0.0}
    broken = apply(stopped, state="error", reason=reason)
    broken.detail["flows"]["other"] = apply().detail["flows"]["mirror"]
    status = build(both, capture(), broken)
    assert {flow["name"]: flow["state"] for flow in status.flows} == {"mirror": "ERROR", "other": "OK"}
    assert status.verdict == "flow mirror is ERROR: column 'a' is text"
    assert len(status.findings) == 1
    assert status.flows[0]["lag_s"] is None
    waits = apply({**stopped, "state": "stalled"}, state="waiting", reason=reason)
    waits.detail["flows"]["other"] = apply().detail["flows"]["mirror"]
    status = build(both, capture(), waits)
    assert {flow["name"]: flow["state"] for flow in status.flows} == {"mirror": "STALLED", "other": "OK"}
    assert [finding.text for finding in status.findings] == ["flow mirror is STALLED: " + reason]
    paused = replace(broken, reason="too much is refused")
    assert {flow["state"] for flow in build(both, capture(), paused).flows} == {"ERROR"}, "the process's own"


def test_flows_that_all_stopped_keep_each_its_own_reason_when_the_part_has_ended() -> None:
    second = CONFIG + '  history: {from: "shop.public.*", to: warehouse.history}\n'
    config = parse(second, Path("tailrace.yaml"), environ={})
    one, other = {"state": "error", "reason": "no such key"}, {"state": "error", "reason": "no such type"}
    ended = {"ended": True, "state": "error", "reason": "no such type"}
    status = build(config, capture(), apply(detail={"flows": {"mirror": one, "history": other}}, **ended))
    assert {f["name"]: (f["state"], f["reason"]) for f in status.flows} == {
        "mirror": ("ERROR", "no such key"),
        "history": ("ERROR", "no such type"),
    }
    running = {**one, "state": "streaming"}
    status = build(config, capture(), apply(detail={"flows": {"mirror": running, "history": other}}, **ended))
    assert {f["reason"] for f in status.flows} == {"apply:warehouse: no such type"}, "it ended for itself"


def _flows_of(changes: dict[str, Any]) -> dict[str, Any]:
    return dict(
        parse(yaml.safe_dump({**yaml.safe_load(CONFIG), **changes}), Path("t.yaml"), environ={}).flows
    )


def test_a_standby_that_was_stopped_does_not_hide_what_has_fallen(config: Config) -> None:
    fallen = capture(state="error", reason="slot gone", ended=True)
    standby = capture(
        instance="other-2",
        pid=2,
        started_us=NOW_US - 60 * S,
        at_us=NOW_US - 19 * S,
        ended=True,
        state="stopped",
    )
    for records in ([fallen, standby], [standby, fallen]):
        status = build(config, *records, apply())
        assert status.verdict == "capture:shop: slot gone"
        assert status.sources[0]["state"] == "error"
    after = replace(standby, started_us=NOW_US + S, at_us=NOW_US + 2 * S)
    assert "was stopped" in build(config, fallen, after, apply()).verdict, "begun since: its word counts"
    lives = replace(standby, ended=False, state="streaming", at_us=NOW_US)
    assert build(config, fallen, lives, apply()).exit_code == 0


def _places(count: int, behind: int) -> list[dict[str, Any]]:
    return [
        {
            "topic": f"shop.public.{'very_' * 6}long_name_of_a_table_{n // 2}_of_many",
            "partition": n % 2,
            "offset": 10,
            "end": 10 + (n if n < behind else 0),
            "lag_records": n if n < behind else 0,
            "lag_s": float(n) if n < behind else 0.0,
        }
        for n in range(count)
    ]


def test_the_lag_is_one_screen_with_the_worst_first(config: Config) -> None:
    status = build(config, capture(), apply({"partitions": _places(160, 21)}))
    console = Console(width=140, record=True, file=io.StringIO(), color_system=None)
    console.print(screens.lag_screen(status, views.lag(status)))
    lines = console.export_text().splitlines()
    assert len(lines) < 24
    rows = [line.split() for line in lines if line.startswith("mirror") and "shop.public" in line]
    assert len(rows) == screens.PARTITIONS_LIMIT
    assert [int(row[5]) for row in rows] == list(range(20, 10, -1))
    assert any(
        "... and 10 more behind and 140 partitions at their end; --json has all" in line for line in lines
    )
    assert len(views.lag(status)["flows"][0]["partitions"]) == 160
    well = build(config, capture(), apply({"partitions": _places(3, 0)}))
    assert "3 partitions at their end; --json has all" in text(well)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0.0"), (0.04, "0.0"), (99.94, "99.9"), (99.96, "100"), (183_000.4, "183,000")],
)
def test_a_figure_of_a_column(value: float | None, shown: str) -> None:
    assert screens.figure(value) == shown


def test_a_column_has_one_unit_whatever_its_figures_are(config: Config) -> None:
    """Milliseconds of the quiet minute and of the one after an outage, seconds and hours of lag."""
    for latency_ms, lag_s, times, lag in (
        (4.2, 0.3, "4.2 / 4.2", "0.3"),
        (95e3, 7265.0, "95,000 / 95,000", "7,265"),
    ):
        status = build(
            config, capture(), apply({"lag_s": lag_s, "latency_ms": {"p50": latency_ms, "p99": latency_ms}})
        )
        console = Console(width=140, record=True, file=io.StringIO(), color_system=None)
        console.print(screens.lag_screen(status, views.lag(status)))
        header, row = [
            line for line in console.export_text().splitlines() if line.startswith(("FLOW", "mirror"))
        ][:2]
        assert header.split("  ")[0] == "FLOW"
        assert [header.count(unit) for unit in (" ms", " s")] == [4, 1]
        assert times in row
        assert lag in row.split()
        assert views.lag(status)["flows"][0]["lag_s"] == lag_s


def test_long_names_are_cut_where_they_stay_apart() -> None:
    names = [f"{'a' * 20}{n}{'b' * 20}" for n in (1, 2)] + [
        "short",
        f"{'x' * 30}_orders",
        f"{'x' * 30}_people",
    ]
    found = screens.short_names(names, 24)
    assert len(set(found.values())) == len(names)
    assert found["short"] == "short"
    orders = found[names[3]]
    assert len(orders) == 24
    assert orders.startswith("xx")
    assert orders.endswith("_orders")
    assert "…" in orders


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


def test_the_lag_view(config: Config) -> None:
    found = views.lag(build(config, capture(), apply()))
    [flow] = found["flows"]
    assert flow["total"] == {"p50_ms": 5.0, "p99_ms": 9.0}
    assert flow["capture"] == {"p50_ms": 1.0, "p99_ms": 2.0}
    assert flow["kafka"] == {"p50_ms": None, "p99_ms": None}
    assert flow["partitions"][0]["lag_records"] == 4


def test_markup_in_a_reason_is_text(config: Config) -> None:
    assert "[/nope]" in text(build(config, capture(state="waiting", reason="broken [/nope] [red]"), apply()))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0s"), (59.9, "59s"), (61, "1m 1s"), (3600, "1h"), (90_061, "1d 1h")],
)
def test_durations(value: float | None, shown: str) -> None:
    assert views.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**41, "2.0 TiB")],
)
def test_sizes(value: int | None, shown: str) -> None:
    assert views.size(value) == shown


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
