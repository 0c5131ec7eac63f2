"""The snapshot that the page gets each second: all of a status on one screen, in under 50 kB. Pure.

Flows are rows of FLOW_COLUMNS, and a reason that many share is sent once. Unknown is null. What is cut for
its size is whole in the API.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from consumers.control.feed import Event
from consumers.views import Finding, FlowState, Grade, Status, duration
from consumers.views.check import PROVED
from consumers.views.findings import RANK, ordered

FORMAT = 1
FINDINGS = 8
EVENTS = 25
JOBS = 40
PARTS = 60
TEXT_CHARS = 240
WORST_CHARS = 1_200  # of the worst finding: what is to be done about it can be read to its end
SENTENCE_CHARS = 400
REASON_CHARS = 160
SOON_S = 30 * 86_400  # what comes later than that nobody plans for
REASONS_CHARS = 8_000  # of all flows together; the rest is on the flows' own pages

FLOW_COLUMNS = (
    "name",
    "state",
    "reason",  # an index of `reasons`, or null
    "lag_s",
    "lag_records",
    "rate",
    "parked",
    "held",
    "p50_ms",
    "proof",
    "proved_us",
)

_STAGES = (("capture", "capture_p50"), ("kafka", "kafka_p50"), ("apply", "apply_p50"))
_PARTS_OF = {"capture": "capture:", "process": "process:", "apply": "apply:"}  # nodes that are processes
_BROKEN = {"error", "silent", "unknown", "stopped", "waiting", "held"}


def snapshot(
    status: Status,
    *,
    jobs: Sequence[Mapping[str, Any]] | None,
    events: Sequence[Event] | None,
    enabled: bool,
    scheduler: str | None,
    admin: bool,
    wal_rates: Mapping[str, float | None],
) -> dict[str, Any]:
    """`jobs`, `events` None: not known now. `scheduler`: the process that runs the jobs, None: none does.
    `admin`: whether there is a key with which things can be changed. `wal_rates`: bytes/s a slot grows by."""
    status = with_alarms(status, events)
    reasons, flows = _flows(status.flows)
    return {
        "format": FORMAT,
        "name": status.name,
        "at_us": status.at_us,
        "ok": status.exit_code == 0,
        "sentence": sentence(status)[:SENTENCE_CHARS],
        "findings": [
            {
                "subject": f.subject,
                "text": _cut(f.text, WORST_CHARS if number == 0 else TEXT_CHARS),
                "finding": f.counts,
            }
            for number, f in enumerate(status.findings[:FINDINGS])
        ],
        "more_findings": max(0, len(status.findings) - FINDINGS),
        "strip": strip(status),
        "sources": [_source(source, wal_rates.get(source["name"])) for source in status.sources],
        "flow_columns": FLOW_COLUMNS,
        "flows": flows,
        "reasons": reasons,
        "parts": [_part(part) for part in status.parts[:PARTS]],
        "enabled": enabled,
        "scheduler": scheduler,
        "jobs": None if jobs is None else [_job(job) for job in jobs[:JOBS]],
        "more_jobs": max(0, len(jobs or ()) - JOBS),
        "events": None if events is None else [_event(event) for event in events[:EVENTS]],
        "admin": admin,
    }


def with_alarms(status: Status, events: Sequence[Event] | None) -> Status:
    """The status, with the alarms that are open and of which it tells nothing: what only the watcher can see,
    and what has not been right for long enough yet. While one is open, all is not well."""
    if events is None:
        text = "whether an alarm is open is not known: the control database does not answer"
        more = [Finding(Grade.SLOW, "control", text, counts=False)]
    else:
        open_ = [event for event in events if event.resolved_us is None]
        more = [_alarm(event, status.at_us) for event in open_ if not _is_told(event, status.findings)]
    return replace(status, findings=ordered([*status.findings, *more]))


def _alarm(event: Event, at_us: int) -> Finding:
    since = duration((at_us - event.since_us) / 1e6)
    return Finding(Grade.PAUSED, event.subject, f"an alarm is open since {since}: {event.text}", counts=False)


def _is_told(event: Event, findings: Sequence[Finding]) -> bool:
    """A part that is down is told by its flows, whose reason begins with it."""
    subject = event.subject.partition(",")[0]  # as of `source shop, wal_stop`
    part = subject.partition(" ")[0] if ":" in subject else ""
    return any(
        finding.rank >= Grade.PAUSED and (finding.subject in (subject, part) or _is_of(part, finding.text))
        for finding in findings
    )


def _is_of(part: str, text: str) -> bool:
    return bool(part) and text.startswith((f"{part} ", f"{part}: "))


def _cut(text: str, limit: int) -> str:
    """At a word, and shown to be cut."""
    return text if len(text) <= limit else f"{text[:limit].rsplit(' ', 1)[0]} …"


def sentence(status: Status) -> str:
    """All is well, and since when that is proven; or the worst thing first."""
    flows = status.flows
    if not status.is_well or not flows:
        return status.verdict
    lags = [flow["lag_s"] for flow in flows if flow["lag_s"] is not None]
    who = f"All {len(flows)} flows are" if len(flows) > 1 else f"The flow {flows[0]['name']} is"
    within = f" within {_whole(max(lags))}" if len(lags) == len(flows) else " running"
    return f"{who}{within} and {_proven(status, flows)}"


def _whole(seconds: float) -> str:
    whole = max(1, math.ceil(seconds))
    return f"{whole} s" if whole < 60 else duration(whole)


def _proven(status: Status, flows: Sequence[Mapping[str, Any]]) -> str:
    proofs = [flow["proof"] for flow in flows]
    done = [proof for proof in proofs if proof is not None and proof["verdict"] in PROVED]
    if len(done) < len(flows):
        missing = len(flows) - len(done)
        if missing == len(flows):
            return "not proven equal yet"
        return f"{len(done)} of them proven equal, {missing} not yet"
    age_s = max(status.at_us - proof["ended_us"] for proof in done) / 1e6
    return f"proven equal within {_ago(age_s)}"


def _ago(age_s: float) -> str:
    """The smallest round span that holds it: an hour, a day, 3 days."""
    for limit_s, text in ((60, "a minute"), (3600, "an hour"), (86400, "a day")):
        if age_s <= limit_s:
            return text
    return f"{math.ceil(age_s / 86400)} days"


def strip(status: Status) -> dict[str, Any]:
    """Source -> capture -> Kafka (-> process -> Kafka) -> apply -> target: the worst of each stage, and where
    the time goes."""
    states = {
        node: _worst(part for part in status.parts if part["part"].startswith(prefix))
        for node, prefix in _PARTS_OF.items()
        if node != "process" or status.processors
    }
    stages: list[dict[str, Any]] = []
    for name, key in _STAGES:
        known = [
            (flow["latency_ms"][key], flow["name"])
            for flow in status.flows
            if (flow["latency_ms"] or {}).get(key) and not (name == "capture" and _is_derived(flow))
        ]
        p50, flow = max(known, default=(None, None))
        stages.append({"stage": name, "p50_ms": None if p50 is None else round(p50, 1), "flow": flow})
    if status.processors:
        times = [(p["latency_ms"], p["name"]) for p in status.processors if p["latency_ms"] is not None]
        worst_ms, processor = max(times, default=(None, None))
        stages.insert(1, {"stage": "process", "p50_ms": worst_ms, "flow": processor})
    broken = [name for name, state in states.items() if state in _BROKEN]
    timed = [(stage["p50_ms"], stage["stage"]) for stage in stages if stage["p50_ms"] is not None]
    slowest = max(timed)[1] if timed else None
    return {
        "stages": stages,
        "states": states,
        "kafka_away": any(finding.subject == "kafka" for finding in status.findings),
        "slowest": None if broken else slowest,
        "broken": broken,
    }


def _is_derived(flow: Mapping[str, Any]) -> bool:
    """Then the time up to its topic is also that of processors."""
    return any(part.startswith("process:") for part in flow["way"])


def _worst(parts: Iterable[Mapping[str, Any]]) -> str | None:
    """None: no such part has ever been seen. One that stands by is not worse than the one that works."""
    states = [part["state"] for part in parts]
    for state in ("error", "silent", "unknown", "waiting", "held", "stopped", "stopping", "starting"):
        if state in states:
            return state
    return next((state for state in states if state != "standby"), states[0] if states else None)


def _flows(flows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The worst first; of one grade as in the file."""
    reasons: dict[str, int] = {}
    room = REASONS_CHARS
    rows = []
    for flow in sorted(flows, key=lambda flow: -RANK[FlowState(flow["state"])]):
        reason = flow["reason"].split("\n", 1)[0][:REASON_CHARS]
        if reason and reason not in reasons and room >= len(reason):
            reasons[reason] = len(reasons)
            room -= len(reason)
        proof = flow["proof"] or {}
        rows.append(
            [
                flow["name"],
                str(flow["state"]),
                reasons.get(reason),
                _short(flow["lag_s"]),
                flow["lag_records"],
                _short(flow["rate"]),
                flow["parked"],
                len(flow["held"]),
                _short((flow["latency_ms"] or {}).get("p50")),
                proof.get("verdict"),
                proof.get("ended_us"),
            ]
        )
    return list(reasons), rows


def _short(value: float | None) -> float | None:
    """Three digits that are read, and no more bytes than they need."""
    if value is None:
        return None
    rounded = round(value, 2 if value < 10 else 1 if value < 100 else 0)
    return int(rounded) if rounded == int(rounded) else rounded


def _source(source: Mapping[str, Any], wal_rate: float | None) -> dict[str, Any]:
    kept, limit = source["slot_wal_bytes"], source["wal_warn_bytes"]
    left_s: int | None = None
    if wal_rate is not None and wal_rate > 0 and kept is not None and limit is not None:
        left_s = round(max(0, limit - kept) / wal_rate)
        left_s = left_s if left_s <= SOON_S else None
    names = ("name", "state", "lag_s", "lag_bytes", "rate", "slot_wal_bytes", "wal_warn_bytes", "snapshot")
    return {
        **{name: source[name] for name in names},
        "reason": source["reason"].split("\n", 1)[0][:REASON_CHARS],
        "wal_bytes_s": None if wal_rate is None else round(wal_rate),
        "to_limit_s": left_s,
        "backfills": len(source["backfills"]),
        "gaps": sum(gap.get("healed_us") is None for gap in source["gaps"]),
    }


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    names = ("part", "instance", "state", "age_s", "started_us", "restarts")
    return {**{name: part[name] for name in names}, "reason": part["reason"].split("\n", 1)[0][:REASON_CHARS]}


def _job(job: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "kind", "what", "state", "next_us", "stale", "age_s", "success_rate", "overridden")
    last = job.get("last") or {}
    return {
        **{name: job.get(name) for name in names},
        "waits": str(job.get("waits") or "")[:REASON_CHARS],
        "last": {name: last.get(name) for name in ("began_us", "seconds", "outcome", "by")} if last else None,
    }


def _event(event: Event) -> dict[str, Any]:
    names = ("event", "rule", "subject", "since_us", "resolved_us")
    return {**{name: getattr(event, name) for name in names}, "text": event.text[:TEXT_CHARS]}
