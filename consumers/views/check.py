"""One verdict for cron or a probe: what of a status is beyond the limits that were asked for. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from consumers.views.amounts import duration
from consumers.views.findings import FlowState, is_finding
from consumers.views.status import Status

PROVED = ("equal", "repaired")


def beyond(
    status: Status, *, max_lag_s: float | None, max_proof_age_s: float | None, flows: Collection[str]
) -> list[str]:
    """One sentence a flow that is not well; [] when all are. `flows`: only these; empty: all."""
    found = []
    for flow in status.flows:
        if flows and flow["name"] not in flows:
            continue
        problem = _flow(flow, status.at_us, max_lag_s, max_proof_age_s)
        if problem:
            found.append(f"flow {flow['name']} {problem}")
    return found


def _flow(flow: dict[str, Any], at_us: int, max_lag_s: float | None, max_proof_age_s: float | None) -> str:
    if is_finding(flow["state"]):
        reason = flow["reason"] or "no reason is known"
        return f"is {flow['state']}: {reason.splitlines()[0]}"
    lag_s = flow["lag_s"]
    if max_lag_s is not None:
        if lag_s is None and flow["lag_records"]:
            return f"has {flow['lag_records']} records to apply, and for how long is not known"
        if lag_s is not None and lag_s > max_lag_s:
            if flow["state"] == FlowState.PAUSED:
                return f"is PAUSED, and {duration(lag_s)} behind: {flow['reason'].splitlines()[0]}"
            return f"is {duration(lag_s)} behind: more than {duration(max_lag_s)}"
    if max_proof_age_s is None:
        return ""
    proof = flow["proof"]
    if proof is None:
        return f"was never proven: `tailrace reconcile {flow['name']}`"
    if proof["verdict"] not in PROVED:
        return f"was not proven equal by its last reconcile, {proof['run']}: {proof['verdict']}"
    age_s = (at_us - proof["began_us"]) / 1e6  # its first rows were compared then
    if age_s > max_proof_age_s:
        return f"was proven {duration(age_s)} ago: longer than {duration(max_proof_age_s)}"
    return ""


def well(status: Status, flows: Collection[str]) -> str:
    """The sentence when nothing is beyond a limit."""
    checked = [flow for flow in status.flows if not flows or flow["name"] in flows]
    lags = [flow["lag_s"] for flow in checked if flow["lag_s"] is not None]
    ages = [(status.at_us - flow["proof"]["began_us"]) / 1e6 for flow in checked if flow["proof"] is not None]
    paused = [flow["name"] for flow in checked if flow["state"] == FlowState.PAUSED]
    words = [f"all {len(checked)} flows run" if len(checked) != 1 else "the flow runs"]
    if paused:
        words = [f"{len(checked) - len(paused)} of {len(checked)} flows run", f"paused: {', '.join(paused)}"]
    words += [f"at most {max(lags):.1f} s behind"] if lags else []
    words += [f"proven within {duration(max(ages))}"] if len(ages) == len(checked) and ages else []
    return ", ".join(words)
