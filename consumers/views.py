"""What the heartbeats mean: sources, flows and parts with their states, and the worst of it in a sentence.

Pure: from the config and the records of the status topic to plain values, ready for JSON
(docs/status.md) and for `consumers.screens`. Reads nothing and draws nothing.

A flow is as well as the worst on its way: its source's capture, its target's apply, and itself.
Unknown is not zero: a figure of a process that is silent is null.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from streamer.changes.lsn import format_lsn
from streamer.changes.topics import data_topic, entity_topic
from streamer.config import (
    Config,
    Flow,
    PostgresSource,
    RedisSource,
    built_flows,
    unbuilt_source,
    unbuilt_target,
)
from streamer.errors import EXIT_FINDING, EXIT_OK
from streamer.status import State, StatusRecord

FORMAT = 1
SLOW_S = 10.0  # later than this somebody waits for the data
STALLED_S = 30.0  # so late, and nothing moves
MISSED_S = 2.5  # two heartbeats missed, and another process has begun since: it has taken the place
ENDED_LONG_S = 60.0  # beyond every wait of `tailrace run` before it starts a part again
RESTARTS_S = 600.0  # a part that was started again so recently is worth a look
UNKNOWN = "-"  # a figure that is not known, which is not zero
SILENT = "silent"  # shown in place of the state that a silent process had last


class FlowState(StrEnum):
    """From best to worst; the order decides what is named first."""

    OK = "OK"
    IDLE = "IDLE"
    SLOW = "SLOW"
    PAUSED = "PAUSED"
    HELD = "HELD"
    STALLED = "STALLED"
    UNKNOWN = "UNKNOWN"
    REWOUND = "REWOUND"
    ERROR = "ERROR"


_RANK = {state: rank for rank, state in enumerate(FlowState)}
FINDINGS_FROM = _RANK[FlowState.HELD]  # SLOW and PAUSED are told, and are no finding


def is_finding(state: str) -> bool:
    """Whether a flow in this state makes `status` exit 1."""
    return _RANK[FlowState(state)] >= FINDINGS_FROM


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know; `rank` orders them, the worst first."""

    rank: int
    subject: str
    text: str
    counts: bool = True  # for the exit code


@dataclass(slots=True)
class Part:
    """The instances of one part, and the one that speaks for it."""

    part: str
    records: list[StatusRecord]
    at_us: int
    speaker: StatusRecord | None = field(init=False)

    def __post_init__(self) -> None:
        self.speaker = max(self.records, key=self._weight) if self.records else None

    def _weight(self, record: StatusRecord) -> tuple[bool, bool, bool, int]:
        live = self.live(record)
        fallen = not live and record.state == State.ERROR
        return (live, live and record.state != State.STANDBY, fallen, record.started_us)

    def _age(self, record: StatusRecord) -> str:
        return duration(record.age_s(self.at_us))

    def live(self, record: StatusRecord) -> bool:
        return not record.ended and not record.silent(self.at_us)

    @property
    def living(self) -> list[StatusRecord]:
        return [r for r in self.records if self.live(r)]

    @property
    def is_partly_well(self) -> bool:
        """Its error is that of flows which have stopped: each flow tells its own, and the others go on."""
        speaker = self.speaker
        return speaker is not None and self.live(speaker) and _is_of_flows(speaker)

    def problem(self, how_to_start: str) -> tuple[FlowState, str] | None:
        """What is wrong with the part as a whole."""
        speaker = self.speaker
        if speaker is None:
            return FlowState.UNKNOWN, f"{self.part} has not run yet: {how_to_start}"
        if speaker.state == State.ERROR:
            long_ago = speaker.ended and speaker.age_s(self.at_us) > ENDED_LONG_S
            ended = f" ended {self._age(speaker)} ago" if long_ago else ""
            return FlowState.ERROR, f"{self.part}{ended}: {speaker.reason}"
        if speaker.ended:
            return FlowState.UNKNOWN, f"{self.part} was stopped {self._age(speaker)} ago: {how_to_start}"
        if not self.live(speaker):
            text = f"{self.part} is silent since {self._age(speaker)} (process {speaker.instance})"
            return FlowState.UNKNOWN, f"{text}: {how_to_start}"
        if speaker.state == State.WAITING:
            return FlowState.STALLED, f"{self.part} waits: {speaker.reason}"
        if speaker.state == State.HELD:
            return FlowState.HELD, f"{self.part}: {speaker.reason}"
        return None


def shown(records: Iterable[StatusRecord], at_us: int) -> list[StatusRecord]:
    """Without the instances that a later one of the same part has taken the place of.

    What ended is replaced by any that began later, or lives; what ended with an error, by one that lives or
    began after its last word: one that was stopped beside it has mended nothing. What fell quiet is replaced
    by one that began after its last word on the same host: there it was started again.
    """
    records = list(records)

    def replaced(old: StatusRecord) -> bool:
        others = [r for r in records if r.part == old.part and r is not old]
        if old.ended:
            after_us = old.at_us if old.state == State.ERROR else old.started_us
            return any(r.started_us > after_us or not (r.ended or r.silent(at_us)) for r in others)
        quiet = old.age_s(at_us) > MISSED_S
        return quiet and any(r.host == old.host and r.started_us >= old.at_us for r in others)

    return [r for r in records if not replaced(r)]


@dataclass(slots=True)
class Status:
    """Everything that `tailrace status` shows."""

    name: str
    at_us: int
    findings: list[Finding]
    sources: list[dict[str, Any]]
    flows: list[dict[str, Any]]
    parts: list[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """The worst thing, in one sentence."""
        if self.is_well:
            return _all_well(self.flows)
        worst = self.findings[0]
        more = len(self.findings) - 1
        first_line = worst.text.split("\n", 1)[0]
        return f"{first_line}{f' (and {more} more)' if more else ''}"

    @property
    def is_well(self) -> bool:
        """Nothing is wrong now; what is told is past."""
        return all(f.rank == _RANK[FlowState.OK] for f in self.findings)

    @property
    def exit_code(self) -> int:
        return EXIT_FINDING if any(f.counts for f in self.findings) else EXIT_OK

    def plain(self) -> dict[str, Any]:
        """For JSON; documented in docs/status.md."""
        return {
            "format": FORMAT,
            "name": self.name,
            "at_us": self.at_us,
            "ok": self.exit_code == EXIT_OK,
            "verdict": self.verdict,
            "findings": [{"subject": f.subject, "text": f.text, "finding": f.counts} for f in self.findings],
            "sources": self.sources,
            "flows": self.flows,
            "parts": self.parts,
        }


def _all_well(flows: list[dict[str, Any]]) -> str:
    if not flows:
        return "all parts run; no flow is set up"
    lags = [f["lag_s"] for f in flows if f["lag_s"] is not None]
    worst = f", at most {max(lags):.1f} s behind" if lags else ""
    return f"all {len(flows)} flows run{worst}" if len(flows) > 1 else f"the flow runs{worst}"


def build(config: Config, records: Iterable[StatusRecord], at_us: int) -> Status:
    """The records must include those that ended or fell silent: counts are summed over them too."""
    everything = list(records)
    expected = expected_parts(config)
    present = [r for r in shown(everything, at_us) if r.part in expected or _concerns(r, at_us)]
    parts = {
        part: Part(part, [r for r in present if r.part == part], at_us)
        for part in [*expected, *(r.part for r in present)]
    }
    findings: list[Finding] = []
    sources = [
        _source(source, parts[f"capture:{source.name}"], findings)
        for source in config.sources.values()
        if isinstance(source, PostgresSource | RedisSource) and not unbuilt_source(source)
    ]
    flows = []
    for flow in _flows(config):
        flows.append(_flow(config, flow, parts, everything, findings))
    _part_findings(config, parts, findings)
    for part in parts.values():
        if part.part.startswith("apply:"):
            notes = [note for record in part.living for note in record.detail.get("findings") or ()]
            findings += [Finding(_RANK[FlowState.STALLED], part.part, note) for note in notes]
    findings.sort(key=lambda f: -f.rank)
    shown_parts = [_part(part, record) for part in parts.values() for record in part.records]
    return Status(config.name, at_us, _without_repeats(findings), sources, flows, shown_parts)


def _concerns(record: StatusRecord, at_us: int) -> bool:
    """Of a part that the file does not name: whether it runs, or is the `run` that was here last."""
    return record.kind == "run" or not (record.ended or record.silent(at_us))


def expected_parts(config: Config) -> list[str]:
    """What `tailrace run` starts for this config: one capture a source, one apply a target with flows."""
    captures = [f"capture:{s.name}" for s in config.sources.values() if not unbuilt_source(s)]
    applies = [
        f"apply:{t.name}"
        for t in config.targets.values()
        if not unbuilt_target(t) and built_flows(config, t.name)[0]
    ]
    return captures + applies


def _flows(config: Config) -> list[Flow]:
    return [flow for target in config.targets for flow in built_flows(config, target)[0]]


def _without_repeats(findings: list[Finding]) -> list[Finding]:
    """A part that is down is said once, not for each of its flows."""
    return list({f.text: f for f in reversed(findings)}.values())[::-1]


def _source(source: PostgresSource | RedisSource, part: Part, findings: list[Finding]) -> dict[str, Any]:
    record = part.speaker
    live = record is not None and part.live(record)
    detail = record.detail if record is not None else {}
    known = detail if live else {}
    lsn = detail.get("lsn")
    wal_bytes = (known.get("slot") or {}).get("wal_bytes")
    notes = list(known.get("findings") or ())
    slot = source.slot if isinstance(source, PostgresSource) else None
    if slot is not None and wal_bytes is not None and wal_bytes >= slot.wal_warn_bytes:
        notes.insert(
            0,
            f"the slot {slot.name} keeps {size(wal_bytes)} of WAL at the source, "
            f"wal_warn is {size(slot.wal_warn_bytes)}: look why nothing is confirmed",
        )
    findings += [
        Finding(_RANK[FlowState.STALLED], f"source {source.name}", f"{source.name}: {n}") for n in notes
    ]
    return {
        "name": source.name,
        "state": _state(part, record),
        "reason": record.reason if record is not None else "",
        "since_us": record.since_us if record is not None else None,
        "instance": record.instance if record is not None else None,
        "standbys": sum(r.state == State.STANDBY for r in part.living),
        "epoch": detail.get("epoch"),
        "lsn": _place_in(source, lsn) if isinstance(lsn, int) else None,
        "lag_bytes": known.get("lag_bytes"),
        "lag_s": known.get("lag_s"),
        "published": detail.get("published"),
        "rate": known.get("rate"),
        "slot_wal_bytes": wal_bytes,
        "wal_warn_bytes": slot.wal_warn_bytes if slot is not None else None,
        "snapshot": known.get("snapshot"),
        "scan": known.get("scan"),
        "gaps": list(known.get("gaps") or ()),
        "findings": notes,
    }


def _place_in(source: PostgresSource | RedisSource, lsn: int) -> str:
    """How far the source is published, as its people write it: an LSN, or the server's time."""
    if isinstance(source, PostgresSource):
        return format_lsn(lsn)
    return datetime.fromtimestamp(lsn / 1e6, UTC).isoformat(timespec="seconds") if lsn else UNKNOWN


def _state(part: Part, record: StatusRecord | None) -> str:
    if record is None:
        return "unknown"
    return record.state if record.ended or part.live(record) else SILENT


def _flow(
    config: Config,
    flow: Flow,
    parts: dict[str, Part],
    everything: list[StatusRecord],
    findings: list[Finding],
) -> dict[str, Any]:
    capture, apply = parts[f"capture:{flow.source}"], parts[f"apply:{flow.target}"]
    reported = (r.detail.get("flows", {}).get(flow.name) for r in apply.living)
    details = [d for d in reported if d]  # a process that has only just begun says nothing yet
    figures = _merged(details)
    state, reason = _flow_state(flow, capture, apply, details, figures)
    if _RANK[state] >= _RANK[FlowState.SLOW]:
        text = (
            reason
            if reason.startswith((capture.part, apply.part))
            else f"flow {flow.name} is {state}: {reason}"
        )
        findings.append(Finding(_RANK[state], f"flow {flow.name}", text, _RANK[state] >= FINDINGS_FROM))
    past = [r.detail.get("flows", {}).get(flow.name) or {} for r in everything if r.part == apply.part]
    return {
        "name": flow.name,
        "from": flow.source_pattern,
        "to": flow.to,
        "target": flow.target,
        "state": state,
        "reason": reason,
        "captured": _captured(flow, [r for r in everything if r.part == capture.part]),
        "applied": _total(past, "applied"),
        "guarded": _total(past, "guarded"),
        "held": _held(details),
        **figures,
    }


def _held(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Closed gates; each process reports those of all."""
    return list({gate["topic"]: gate for detail in details for gate in detail.get("held") or ()}.values())


def _flow_state(
    flow: Flow, capture: Part, apply: Part, details: list[dict[str, Any]], figures: dict[str, Any]
) -> tuple[FlowState, str]:
    own = [
        (FlowState(str(d["state"]).upper()), str(d.get("reason") or ""))
        for d in details
        if str(d.get("state", "")).upper() in _RANK
    ]
    how_to_start = f"start it with `tailrace run`, or `tailrace apply {flow.target}`"
    troubles = [
        None if details and apply.is_partly_well else apply.problem(how_to_start),
        capture.problem(f"start it with `tailrace run`, or `tailrace capture {flow.source}`"),
        *(o for o in own if _RANK[o[0]] >= _RANK[FlowState.PAUSED]),
    ]
    found = [t for t in troubles if t is not None]
    if found:
        return max(found, key=lambda t: _RANK[t[0]])
    lag_s, records, rate = figures["lag_s"], figures["lag_records"], figures["rate"]
    if not details:
        return FlowState.UNKNOWN, f"{apply.part} does not report it yet"
    if lag_s is not None and lag_s > SLOW_S:
        if lag_s > STALLED_S and not rate:
            return FlowState.STALLED, f"{lag_s:.0f} s behind ({records} records), and nothing moves"
        return FlowState.SLOW, f"{lag_s:.0f} s behind ({records} records)"
    snapshot = (capture.speaker.detail if capture.speaker else {}).get("snapshot")
    if snapshot:
        return FlowState.OK, f"first copy: {snapshot.get('tables_done')} of {snapshot.get('tables')} tables"
    if not records and not rate:
        return FlowState.IDLE, ""
    return FlowState.OK, ""


def _merged(details: list[dict[str, Any]]) -> dict[str, Any]:
    """Several apply processes share a flow's partitions: sums, and the worst of times."""
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
            key=lambda p: (p["topic"], p["partition"]),
        ),
    }


def _total(details: list[dict[str, Any]], key: str) -> Any:
    values = [d[key] for d in details if d.get(key) is not None]
    return sum(values) if values else None


def _captured(flow: Flow, captures: list[StatusRecord]) -> int | None:
    counts = [
        values.get("captured", 0)
        for record in captures
        for table, values in (record.detail.get("tables") or {}).items()
        if flow.matches(_topic_of(flow.source, table))
    ]
    return sum(counts) if captures else None


def _topic_of(source: str, table: str) -> str:
    """`table`: schema.table, or the name of an entity, which has no dot."""
    schema, dot, name = table.partition(".")
    return data_topic(source, schema, name) if dot else entity_topic(source, table)


def _part(part: Part, record: StatusRecord) -> dict[str, Any]:
    port = record.metrics_port
    return {
        "part": record.part,
        "instance": record.instance,
        "pid": record.pid,
        "host": record.host,
        "state": _state(part, record),
        "reason": record.reason,
        "since_us": record.since_us,
        "started_us": record.started_us,
        "age_s": round(max(0.0, record.age_s(part.at_us)), 1),
        "restarts": record.restarts,
        "ended": record.ended,
        "metrics": f"http://127.0.0.1:{port}/metrics" if port else None,
    }


def _part_findings(config: Config, parts: dict[str, Part], findings: list[Finding]) -> None:
    """What the flows do not tell: parts without a flow, and trouble beside a healthy speaker."""
    for part in parts.values():
        kind, _, name = part.part.partition(":")
        if kind in ("capture", "apply"):
            trouble = part.problem(f"start it with `tailrace run`, or `tailrace {kind} {name}`")
            if trouble is not None and not part.is_partly_well:
                findings.append(Finding(_RANK[trouble[0]], part.part, trouble[1]))
        for record in part.records:
            if record.ended or record is part.speaker:
                continue
            if record.silent(part.at_us):
                since = duration(record.age_s(part.at_us))
                text = (
                    f"{record.part}: process {record.instance} is silent since {since}; another does its work"
                )
                findings.append(Finding(_RANK[FlowState.SLOW], record.part, text, counts=False))
            elif record.state == State.ERROR and not _is_of_flows(record):
                findings.append(
                    Finding(_RANK[FlowState.ERROR], record.part, f"{record.part}: {record.reason}")
                )
        _run_findings(part, findings)


def _is_of_flows(record: StatusRecord) -> bool:
    """Whether the error that a process tells is that of flows which it tells, too."""
    flows = (record.detail.get("flows") or {}).values()
    stopped = [str(flow.get("reason") or "") for flow in flows if flow.get("state") == State.ERROR]
    return record.state == State.ERROR and any(reason and reason in record.reason for reason in stopped)


def _run_findings(part: Part, findings: list[Finding]) -> None:
    """What `tailrace run` says of its parts: what it cannot keep running, and what keeps falling."""
    speaker = part.speaker
    if speaker is None or speaker.kind != "run" or not part.live(speaker):
        return
    for name, values in (speaker.detail.get("parts") or {}).items():
        reason = values.get("reason") or ""
        first_line = reason.split("\n", 1)[0]  # it runs: what was to be done is done
        if values.get("state") in ("error", "backoff"):
            findings.append(Finding(_RANK[FlowState.ERROR], name, f"{name}: {reason}"))
        elif values.get("restarts") and part.at_us - (values.get("started_us") or 0) < RESTARTS_S * 1e6:
            times = "once" if values["restarts"] == 1 else f"{values['restarts']} times"
            text = f"{name} was started again {times}, last because: {first_line or 'it ended'}"
            findings.append(Finding(_RANK[FlowState.OK], name, text, counts=False))


def lag(status: Status) -> dict[str, Any]:
    """The JSON of `tailrace lag`: each flow end to end, its three stages, and its partitions."""
    flows = []
    for flow in status.flows:
        latency = flow["latency_ms"] or {}
        stages = {
            stage: {"p50_ms": latency.get(f"{prefix}p50"), "p99_ms": latency.get(f"{prefix}p99")}
            for stage, prefix in (
                ("total", ""),
                ("capture", "capture_"),
                ("kafka", "kafka_"),
                ("apply", "apply_"),
            )
        }
        keys = ("name", "target", "state", "reason", "lag_records", "lag_s", "rate")
        flows.append({**{k: flow[k] for k in keys}, **stages, "partitions": flow["partitions"]})
    return {
        "format": FORMAT,
        "name": status.name,
        "at_us": status.at_us,
        "ok": status.exit_code == EXIT_OK,
        "verdict": status.verdict,
        "flows": flows,
    }


def size(value: int | None) -> str:
    """Bytes as people read them; unknown is a dash."""
    if value is None:
        return UNKNOWN
    number = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(value: float | None) -> str:
    """A time span in its two largest units."""
    if value is None:
        return UNKNOWN
    left = max(0, int(value))
    words: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not words):
            words.append(f"{count}{unit}")
    return " ".join(words[:2])
