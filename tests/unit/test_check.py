"""`tailrace check`: what is beyond its limits, flow by flow."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.views.check import beyond, well
from consumers.views.status import Status

NOW_US = 1_000_000_000_000


def flow(name: str = "mirror", **more: Any) -> dict[str, Any]:
    proof = {"verdict": "equal", "run": "r1", "began_us": NOW_US - 3_600_000_000}
    plain = {"name": name, "state": "OK", "reason": "", "lag_s": 0.5, "lag_records": 3, "proof": proof}
    return plain | more


def problems(*flows: dict[str, Any], lag_s: float | None = 60, age_s: float | None = 86_400) -> list[str]:
    status = Status("acme", NOW_US, [], [], list(flows), [])
    return beyond(status, max_lag_s=lag_s, max_proof_age_s=age_s, flows=())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"state": "HELD", "reason": "a truncate\n  -> approve"}, "flow mirror is HELD: a truncate"),
        ({"state": "UNKNOWN"}, "flow mirror is UNKNOWN: no reason is known"),
        (
            {"state": "PAUSED", "reason": "paused by ann", "lag_s": 61.0},
            "flow mirror is PAUSED, and 1m 1s behind: paused by ann",
        ),
        ({"lag_s": 61.0}, "flow mirror is 1m 1s behind: more than 1m"),
        ({"lag_s": None}, "flow mirror has 3 records to apply, and for how long is not known"),
        ({"proof": None}, "flow mirror was never proven: `tailrace reconcile mirror`"),
        (
            {"proof": {"verdict": "drift", "run": "r2", "began_us": NOW_US}},
            "flow mirror was not proven equal by its last reconcile, r2: drift",
        ),
        (
            {"proof": {"verdict": "equal", "run": "r2", "began_us": NOW_US - 90_000_000_000}},
            "flow mirror was proven 1d 1h ago: longer than 1d",
        ),
    ],
)
def test_each_limit_has_its_sentence(more: dict[str, Any], sentence: str) -> None:
    assert problems(flow("well"), flow(**more)) == [sentence]


def test_what_is_slow_or_idle_is_within_limits_that_were_not_given() -> None:
    late = flow(state="SLOW", lag_s=500.0, proof=None)
    idle = flow(state="IDLE", lag_s=None, lag_records=0, proof=None)
    assert problems(late, idle, lag_s=None, age_s=None) == []


def test_only_the_named_flows_are_looked_at() -> None:
    status = Status("acme", NOW_US, [], [], [flow("a", proof=None), flow("b")], [])
    assert beyond(status, max_lag_s=None, max_proof_age_s=1e5, flows=["b"]) == []
    assert well(status, ["b"]) == "the flow runs, at most 0.5 s behind, proven within 1h"
    assert well(status, []) == "all 2 flows run, at most 0.5 s behind"


def test_a_paused_flow_within_its_limits_is_told_and_well() -> None:
    paused = flow("b", state="PAUSED", reason="paused by ann")
    assert problems(flow("a"), paused) == []
    status = Status("acme", NOW_US, [], [], [flow("a"), paused], [])
    assert well(status, []).startswith("1 of 2 flows run, paused: b, at most 0.5 s behind")
