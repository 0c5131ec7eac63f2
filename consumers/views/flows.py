"""What `status` shows of a flow: it is as well as the worst on its way. Pure.

Its way is its sources' captures, the processors that derive its rows, its target's apply, and itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any

from consumers.views.amounts import duration
from consumers.views.findings import FINDINGS_FROM, RANK, Finding, FlowState, Grade
from consumers.views.parts import Part
from consumers.views.processors import Way
from streamer.changes.names import parts
from streamer.changes.topics import data_topic, entity_topic, message_topic
from streamer.config import Flow
from streamer.config.patterns import fits_topic
from streamer.status import StatusRecord

SLOW_S = 10.0  # later than this somebody waits for the data

STALLED_S = 30.0  # so late, and nothing moves

PROCESS = "process"  # kind of heartbeat

_PLACE = itemgetter("topic", "partition")


def flow_view(
    flow: Flow,
    parts: dict[str, Part],
    everything: list[StatusRecord],
    findings: list[Finding],
    way: Way,
) -> dict[str, Any]:
    target = flow.target
    apply = parts[f"apply:{target}"]
    before = [parts[name] for name in (*way.captures, *way.processes)]
    reported = (r.detail.get("flows", {}).get(flow.name) for r in apply.living)
    details = [d for d in reported if d]  # a process that has only just begun says nothing yet
    processors = [r.detail for part in before for r in part.living if r.kind == PROCESS]
    figures = _behind(_merged(details), processors)
    state, reason = _flow_state(flow, before, apply, details, figures)
    if RANK[state] >= RANK[FlowState.SLOW]:
        text = (
            reason
            if reason.startswith((*(part.part for part in before), apply.part))
            else f"flow {flow.name} is {state}: {reason}"
        )
        findings.append(Finding(RANK[state], f"flow {flow.name}", text, RANK[state] >= FINDINGS_FROM))
    past = [r.detail.get("flows", {}).get(flow.name) or {} for r in everything if r.part == apply.part]
    return {
        "name": flow.name,
        "from": flow.source_pattern,
        "to": flow.to,
        "target": target,
        "way": [*way.captures, *way.processes, apply.part],
        "state": state,
        "reason": reason,
        "captured": _captured(flow, [r for r in everything if r.part in way.captures], way),
        "applied": _total(past, "applied"),
        "guarded": _total(past, "guarded"),
        "held": _held(details),
        "paused": next((d["paused"] for d in details if d.get("paused")), None),
        **figures,
    }


def drifted(name: str, proof: Mapping[str, Any], at_us: int) -> str:
    """Of a flow whose last comparison has found drift."""
    ago = duration((at_us - proof["ended_us"]) / 1e6)
    return (
        f"flow {name} was not equal to its source {ago} ago: see `tailrace reconcile history`, run"
        f" {proof['run']}\n  -> `tailrace reconcile {name} --dry-run` says what a repair would publish"
    )


def _held(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Closed gates; each process reports those of all."""
    return list({gate["topic"]: gate for detail in details for gate in detail.get("held") or ()}.values())


def _flow_state(
    flow: Flow, before: list[Part], apply: Part, details: list[dict[str, Any]], figures: dict[str, Any]
) -> tuple[FlowState, str]:
    own = [
        (FlowState(str(d["state"]).upper()), str(d.get("reason") or ""))
        for d in details
        if str(d.get("state", "")).upper() in RANK
    ]
    how_to_start = f"start it with `tailrace run`, or `tailrace apply {flow.target}`"
    fallen = apply.fallen_for(flow.name)
    troubles = [
        (FlowState.ERROR, fallen) if fallen else None,
        None if fallen or (details and apply.is_partly_well) else apply.problem(how_to_start),
        *(_trouble(part) for part in before),
        *(o for o in own if RANK[o[0]] >= Grade.PAUSED),
    ]
    found = [t for t in troubles if t is not None]
    if found:
        return max(found, key=lambda t: RANK[t[0]])
    lag_s, records, rate = figures["lag_s"], figures["lag_records"], figures["rate"]
    if not details:
        return FlowState.UNKNOWN, f"{apply.part} does not report it yet"
    starting = [each for part in before if (each := part.starting) is not None]
    held_up = [each for each in starting if each[0] is FlowState.SLOW]
    if held_up:
        return held_up[0]
    if lag_s is not None and lag_s > SLOW_S:
        if lag_s > STALLED_S and not rate:
            return FlowState.STALLED, f"{lag_s:.0f} s behind ({records} records), and nothing moves"
        return FlowState.SLOW, f"{lag_s:.0f} s behind ({records} records)"
    if starting:
        return starting[0]
    for part in before:
        snapshot = (part.speaker.detail if part.speaker else {}).get("snapshot")
        if snapshot:
            done = f"{snapshot.get('tables_done')} of {snapshot.get('tables')}"
            return FlowState.OK, f"first copy: {done} tables"
    if not records and not rate:
        return FlowState.IDLE, ""
    return FlowState.OK, ""


def _trouble(part: Part) -> tuple[FlowState, str] | None:
    kind, _, name = part.part.partition(":")
    return part.problem(f"start it with `tailrace run`, or `tailrace {kind} {name}`")


def _behind(figures: dict[str, Any], processors: list[dict[str, Any]]) -> dict[str, Any]:
    """With what processors on the way have yet to do: a derived row's lag is counted from the source."""
    waiting = [detail for detail in processors if detail.get("lag_records")]
    if not waiting:
        return figures
    lags = [lag for lag in (figures["lag_s"], *(d.get("lag_s") for d in waiting)) if lag is not None]
    records = (figures["lag_records"] or 0) + sum(detail["lag_records"] for detail in waiting)
    return {**figures, "lag_s": max(lags, default=None), "lag_records": records}


def _merged(details: list[dict[str, Any]]) -> dict[str, Any]:
    """Several apply processes share a flow's partitions: sums, and the worst of times."""
    if len(details) == 1:  # no copies then, as 200 flows are looked at each second
        (detail,) = details
        latency: dict[str, float] = detail.get("latency_ms") or {}
        figures = {key: detail.get(key) for key in ("parked", "waiting", "lag_records", "lag_s", "rate")}
        return {
            **figures,
            "latency_ms": {key: latency[key] for key in sorted(latency)} or None,
            "partitions": sorted(detail.get("partitions") or (), key=_PLACE),
        }
    latencies = [d["latency_ms"] for d in details if d.get("latency_ms")]
    keys = {key for latency in latencies for key in latency}
    return {
        "parked": _total(details, "parked"),
        "waiting": _total(details, "waiting"),
        "lag_records": _total(details, "lag_records"),
        "lag_s": max((d["lag_s"] for d in details if d.get("lag_s") is not None), default=None),
        "rate": _total(details, "rate"),
        "latency_ms": {k: max(lat[k] for lat in latencies if k in lat) for k in sorted(keys)} or None,
        "partitions": sorted(
            (p for d in details for p in d.get("partitions") or ()),
            key=_PLACE,
        ),
    }


def _total(details: list[dict[str, Any]], key: str) -> Any:
    values = [d[key] for d in details if d.get(key) is not None]
    return sum(values) if values else None


def _captured(flow: Flow, captures: list[StatusRecord], way: Way) -> int | None:
    """None of a derived flow: many rows make one, or one makes many."""
    if not captures or way.processes:
        return None
    counted = [record.detail.get("tables") or {} for record in captures]
    captured: int = sum(
        tables[table].get("captured", 0)
        for tables in counted
        for table in _tables_of(flow.source_pattern, tuple(tables))
    )
    return captured


@lru_cache(maxsize=4096)
def _tables_of(source_pattern: str, tables: tuple[str, ...]) -> tuple[str, ...]:
    """Those that a flow takes. Each look would compare all flows of a file with all tables."""
    source = source_pattern.split(".", 1)[0]
    return tuple(table for table, topic in _topics(source, tables) if fits_topic(source_pattern, topic))


@lru_cache(maxsize=64)
def _topics(source: str, tables: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(table, topic) but for the topic of messages, which no pattern means."""
    apart = message_topic(source)
    topics = ((table, _topic_of(source, table)) for table in tables)
    return tuple((table, topic) for table, topic in topics if topic != apart)


def _topic_of(source: str, table: str) -> str:
    """`table`: schema.table, or the name of an entity, which has no dot."""
    return data_topic(source, *parts(table)) if "." in table else entity_topic(source, table)
