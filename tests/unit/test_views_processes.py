"""Several processes of a part: who stands by, who was replaced, who is silent, whose flows have stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.config import Config, parse
from tests.harness.statuses import CONFIG, NOW_US, S, apply, build, capture


@pytest.fixture
def config() -> Config:
    return parse(CONFIG, Path("tailrace.yaml"), environ={})


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
