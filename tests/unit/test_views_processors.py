"""What status, lag, the page, metrics and the watchdog make of a processor's heartbeats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consumers import first_proofs, screens, views
from consumers.dashboard import frames
from consumers.schedule import alarms
from consumers.schedule.watchdog import HOLD_S, PROCESS_STILL_S, START_S, Watchdog
from streamer import metrics
from streamer.config import Config, parse
from streamer.status import StatusRecord

S = 1_000_000
NOW_US = 1_800_000_000 * S
CONFIG = """
name: acme
sources:
  shop: {kind: postgres, url: "postgresql://u@h/d", tables: {public.orders: {}}}
processors:
  totals: {agent: "a:b", in: [shop.public.orders], out: totals}
targets: {copy: {kind: postgres, url: "postgresql://u@h/e"}}
flows: {table: {from: totals, to: copy.public.totals}}
"""
LOOK_S = 2.0


@pytest.fixture(scope="module")
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


def record(part: str, **changes: Any) -> StatusRecord:
    kind, name = part.split(":")
    given: dict[str, Any] = {"started_us": NOW_US - 100 * S, "at_us": NOW_US, "state": "streaming", **changes}
    given.setdefault("seen_us", given["at_us"])
    host, pid = given.pop("instance", "host-1"), given.pop("pid", 1)
    return StatusRecord(part, kind, name, host, pid, "host", **given)


def capture(**changes: Any) -> StatusRecord:
    return record("capture:shop", detail={"epoch": 3, "lag_s": 0.0, "tables": {}}, **changes)


def process(detail: dict[str, Any] | None = None, **changes: Any) -> StatusRecord:
    known = {
        "in": ["shop.public.orders"], "out": "totals", "guarantee": "exactly_once", "state": "rocksdb",
        "tasks": [0, 1], "of": 4, "offset": 100, "lag_records": 0, "lag_s": 0.0, "latency_ms": 40, "done": 90,
        "derived": 30, "dropped": 1, "refused": 2, "rate": 9.0, "derived_rate": 3.0, "parked": 0,
        "state_bytes": 2048, "epoch": 2, "rebalances": 1, "inferred": {"n": "bigint"},
    }  # fmt: skip
    return record("process:totals", detail={**known, **(detail or {})}, **changes)


def apply(flow: dict[str, Any] | None = None, **changes: Any) -> StatusRecord:
    place = {"topic": "totals", "partition": 0, "offset": 6, "end": 6, "lag_records": 0, "lag_s": 0.0}
    known = {
        "applied": 6, "parked": 0, "lag_records": 0, "lag_s": 0.0, "rate": 0.0, "state": "idle", "reason": "",
        "latency_ms": {"p50": 80.0, "capture_p50": 60.0, "kafka_p50": 5.0, "apply_p50": 15.0},
    }  # fmt: skip
    its = {**known, "partitions": [place], **(flow or {})}
    return record("apply:copy", detail={"flows": {"table": its}}, **changes)


def status(config: Config, *records: StatusRecord) -> views.Status:
    return views.build(config, records, NOW_US)


def test_what_a_helper_doubts_is_said_once(config: Config) -> None:
    doubt = "it names the column 'qqty', and rows of shop.public.orders have id, qty"
    workers = [process({"doubts": [doubt]}), process({"doubts": [doubt]}, instance="host-2")]
    found = status(config, capture(), *workers, apply())
    assert found.processors[0]["doubts"] == [doubt]
    assert [f.text for f in found.findings if doubt in f.text] == [f"processor totals: {doubt}"]
    assert found.exit_code == 0


def test_two_workers_of_a_processor_are_one_view(config: Config) -> None:
    other = process({"tasks": [2, 3], "lag_records": 5, "lag_s": 1.5, "parked": 1}, instance="host-2")
    found = status(config, capture(), process(), other, apply())
    (view,) = found.processors
    assert (view["workers"], view["tasks"], view["partitions"], view["epoch"]) == (2, 4, 4, 2)
    assert (view["done"], view["rate"], view["lag_records"], view["lag_s"]) == (180, 18.0, 5, 1.5)
    assert (view["parked"], view["state_bytes"], view["inferred"]) == (1, 4096, {"n": "bigint"})
    assert "processor totals: 1 key is parked: see `tailrace dead-letters list totals`" in [
        finding.text for finding in found.findings
    ]
    assert found.exit_code == 0
    assert found.plain()["processors"] == [view]
    console = Console(width=160, record=True, file=io.StringIO(), color_system=None)
    console.print(screens.status_screen(found))
    assert "streaming 2 workers" in console.export_text()


def test_a_derived_flow_is_as_late_as_its_processor(config: Config) -> None:
    (flow,) = status(config, capture(), process({"lag_records": 7, "lag_s": 12.0}), apply()).flows
    assert (flow["way"], flow["lag_s"], flow["lag_records"], flow["state"], flow["captured"]) == (
        ["capture:shop", "process:totals", "apply:copy"], 12.0, 7, "SLOW", None,
    )  # fmt: skip
    (flow,) = status(config, capture(), process(), apply()).flows
    assert (flow["lag_s"], flow["state"]) == (0.0, "IDLE")


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"state": "error", "reason": "7 is not liked"}, "ERROR", "process:totals: 7 is not liked"),
        ({"at_us": NOW_US - 60 * S}, "UNKNOWN", "process:totals is silent since 1m"),
        ({"state": "waiting", "reason": "no topic yet"}, "STALLED", "process:totals waits: no topic yet"),
    ],
)
def test_a_derived_flow_is_as_well_as_its_processor(
    config: Config, changes: dict[str, Any], state: str, words: str
) -> None:
    found = status(config, capture(), process(**changes), apply())
    assert found.flows[0]["state"] == state
    assert words in found.verdict
    (wrong,) = alarms.of_status(config, found, young=False)
    assert (wrong.rule, wrong.subject) == ("stalled", "process:totals")


def test_one_that_stands_still_under_run_says_so_and_is_not_to_be_started(config: Config) -> None:
    """Its body blocks: no heartbeat comes until it is ended, and the next process does the same."""
    reason = "the event loop stood still for 15 s: the process ends\n  -> nothing"
    kept = {"state": "running", "pid": 1, "restarts": 2, "reason": reason, "started_us": NOW_US - 9 * S}
    run = record("run:acme", state="running", detail={"parts": {"process:totals": kept}})
    again = "was started again 2 times, last because: the event loop stood still for 15 s: the process ends"
    still = status(config, capture(), process(at_us=NOW_US - 8 * S), apply(), run)
    assert still.flows[0]["state"] == "STALLED"
    assert still.verdict.startswith(
        f"process:totals is silent since 8s (process host-1): it runs, and stands still; it {again}"
    )
    for state in ("starting", "streaming"):
        begun = status(config, capture(), record("process:totals", state=state), apply(), run)
        assert begun.flows[0]["state"] == "STALLED"
        assert begun.flows[0]["reason"] == f"process:totals {again}; it has done nothing since"
    assert status(config, capture(), process(), apply(), run).flows[0]["state"] == "IDLE", "it works again"
    gone = process(at_us=NOW_US - 16 * S, pid=7)
    following = status(config, capture(), gone, apply(), run)
    assert following.verdict.startswith(f"process:totals is silent since 16s (process host-1): it {again}")
    elsewhere = record("run:acme", state="running", detail={"parts": {"process:totals": {**kept, "pid": 2}}})
    frozen = process(started_us=NOW_US - 9 * S, at_us=NOW_US - 6 * S)
    assert "start it with `tailrace run`" in status(config, capture(), frozen, apply(), elsewhere).verdict


def test_a_capture_that_run_starts_again_says_why(config: Config) -> None:
    kept = {"state": "running", "pid": 1, "restarts": 1, "reason": "killed by SIGKILL", "started_us": NOW_US}
    run = record("run:acme", state="running", detail={"parts": {"capture:shop": kept}})
    (flow,) = status(config, capture(state="starting"), process(), apply(), run).flows
    assert (flow["state"], flow["reason"]) == (
        "SLOW",
        "capture:shop is starting: it was started again once, last because: killed by SIGKILL",
    )


def test_one_that_never_ran_is_named_with_what_starts_it(config: Config) -> None:
    found = status(config, capture(), apply())
    assert "process:totals has not run yet: start it with `tailrace run`, or `tailrace process totals`" in (
        found.verdict
    )


def test_the_strip_shows_the_processors_place(config: Config) -> None:
    strip = frames.strip(status(config, capture(), process(), apply()))
    assert [(stage["stage"], stage["p50_ms"]) for stage in strip["stages"]] == [
        ("capture", None), ("process", 40), ("kafka", 5.0), ("apply", 15.0),
    ]  # fmt: skip
    assert strip["states"] == {"capture": "streaming", "process": "streaming", "apply": "streaming"}
    assert (strip["slowest"], strip["broken"]) == ("process", [])


def test_metrics_of_a_processor() -> None:
    text = metrics.exposition(process())
    assert 'tailrace_process_rows_total{processor="totals"} 30.0' in text
    assert 'tailrace_process_lag_records{processor="totals"} 0.0' in text
    assert 'tailrace_process_latency_seconds{processor="totals"} 0.04' in text
    assert 'tailrace_process_tasks{processor="totals"} 2.0' in text


def test_a_derived_flow_is_ready_for_its_proof_when_its_processor_is(config: Config) -> None:
    assert first_proofs.ready(status(config, capture(), process(), apply())) == [("table", 2)]
    starting = process(state="starting", detail={"tasks": []})
    assert first_proofs.ready(status(config, capture(), starting, apply())) == []


def test_one_that_stands_still_is_told_within_30_s_though_it_is_started_again_and_again(
    config: Config,
) -> None:
    dog, now_s, told_s = Watchdog(config), 0.0, None
    while now_s < START_S:
        assert dog.look(status(config, capture(), process(), apply()), [], now_s) == []
        now_s += LOOK_S
    since_s = now_s
    while told_s is None and now_s - since_s < 60:
        now_s += LOOK_S
        round_s = (now_s - since_s) % 16
        stuck = process({"lag_records": 9, "lag_s": now_s - since_s, "shares": [[0, 50, 9], [1, 50, 0]]})
        again = process({"tasks": [], "lag_records": 0, "offset": 0, "shares": []})  # it was started anew
        found = dog.look(status(config, capture(), again if round_s < 3 else stuck, apply()), [], now_s)
        if any(wrong.subject == "processor totals" and wrong.rule == "stalled" for wrong in found):
            told_s = now_s - since_s
            text = next(wrong.text for wrong in found if wrong.subject == "processor totals")
    assert told_s is not None
    assert PROCESS_STILL_S + HOLD_S["stalled"] <= told_s <= 30
    assert "processor totals stands still for" in text
    assert "with task 0 of 2, and 9 records wait" in text
    assert "log of process:totals" in text


def test_one_that_moves_is_no_alarm(config: Config) -> None:
    dog = Watchdog(config)
    for number in range(60):
        shares = [[0, number, 400], [1, 7, 600]]  # the second one's turn has not come for two minutes
        moving = process({"lag_records": 1000, "lag_s": 5.0, "done": number, "shares": shares})
        assert dog.look(status(config, capture(), moving, apply()), [], number * LOOK_S) == []


def test_a_task_that_stands_still_is_told_though_others_move_and_have_it_in_turn(config: Config) -> None:
    """One stuck task ends its worker; the next one is busy with its own, until it meets the same change."""
    dog, told_s = Watchdog(config), None
    for step in range(60):
        at_s = step * LOOK_S
        stuck_s = at_s - START_S
        # For 16 s of 20 the task is in the hand of a worker that does nothing; then the other takes it, too.
        held = stuck_s % 20 < 16
        waits = [[0, 50, 9 if stuck_s > 0 else 0]]
        other = process(
            {"tasks": [1], "done": step, "shares": [[1, step, 5], *([] if held else waits)]},
            pid=2,
            instance="h-2",
        )
        pid = 10 + int(at_s // 20)
        mine = process({"tasks": [0], "done": 7, "shares": waits}, pid=pid, instance=f"h-{pid}")
        found = dog.look(status(config, capture(), other, *([mine] if held else []), apply()), [], at_s)
        if told_s is None and any(wrong.subject == "processor totals" for wrong in found):
            told_s = stuck_s
    assert told_s is not None
    assert told_s <= 30
