"""A part of the system: its processes, which of them speaks for it, what is wrong with it as a whole. Pure.

What its flows tell is `flows`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consumers.views.amounts import duration
from consumers.views.findings import RANK, Finding, FlowState, Grade
from streamer.config import Config, built_flows, unbuilt_source, unbuilt_target
from streamer.status import REASON_LIMIT, State, StatusRecord

MISSED_S = 2.5  # two heartbeats missed, and another process has begun since: it has taken the place

ENDED_LONG_S = 60.0  # beyond every wait of `tailrace run` before it starts a part again

RESTARTS_S = 600.0  # a part that was started again so recently is worth a look

SILENT = "silent"  # shown in place of the state that a silent process had last


@dataclass(slots=True)
class Part:
    """The instances of one part, and the one that speaks for it."""

    part: str
    records: list[StatusRecord]
    at_us: int
    speaker: StatusRecord | None = field(init=False)
    kept: Mapping[str, Any] = field(default_factory=dict)  # what a living `tailrace run` says of it

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
        """Its trouble is that of flows which have stopped: each flow tells its own, and the others go on."""
        speaker = self.speaker
        return speaker is not None and self.live(speaker) and _is_of_flows(speaker)

    def fallen_for(self, flow: str) -> str:
        """Why this flow had stopped when the part ended because every one had; empty: it did not so."""
        speaker = self.speaker
        if speaker is None or self.live(speaker) or speaker.state != State.ERROR:
            return ""
        flows = speaker.detail.get("flows") or {}
        if len(flows) == 1 or any(told.get("state") != State.ERROR for told in flows.values()):
            return ""  # what the part says is that one's, or the trouble is its own
        return str(flows.get(flow, {}).get("reason") or "")

    @property
    def starting(self) -> tuple[FlowState, str] | None:
        """It runs and has not begun its work; SLOW as soon as it says what it waits for."""
        speaker = self.speaker
        if speaker is None or not self.live(speaker) or speaker.state != State.STARTING:
            return None
        if speaker.reason:
            return FlowState.SLOW, f"{self.part} is starting: {speaker.reason}"
        if self._fell:
            return FlowState.SLOW, f"{self.part} is starting: it {self._fell}"
        return FlowState.OK, f"{self.part} is starting"

    @property
    def _fell(self) -> str:
        """That `tailrace run` has started it again, and why; empty: it has not."""
        speaker, kept = self.speaker, self.kept
        if speaker is None or kept.get("state") != "running" or not kept.get("restarts"):
            return ""
        is_its_next = kept.get("pid") != speaker.pid and (kept.get("started_us") or 0) > speaker.at_us
        return told_again(kept) if is_its_next or kept.get("pid") == speaker.pid else ""

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
            fell = self._fell and f"it {self._fell}"
            if self.kept.get("state") == "running" and self.kept.get("pid") == speaker.pid:
                return FlowState.STALLED, f"{text}: it runs, and stands still{fell and '; '}{fell}"
            if fell:
                return FlowState.STALLED, f"{text}: {fell}"
            return FlowState.UNKNOWN, f"{text}: {how_to_start}"
        if speaker.state == State.WAITING:
            return FlowState.STALLED, f"{self.part} waits: {speaker.reason}"
        if speaker.state == State.HELD:
            return FlowState.HELD, f"{self.part}: {speaker.reason}"
        if speaker.kind == "process" and self._fell and "offset" not in speaker.detail:
            # It may block again before it says a word of its work, and each of its processes would seem well.
            return FlowState.STALLED, f"{self.part} {self._fell}; it has done nothing since"
        return None


def shown(records: Iterable[StatusRecord], at_us: int) -> list[StatusRecord]:
    """Without the instances that a later one of the same part has taken the place of.

    What ended is replaced by any that began later, or lives; what ended with an error, by one that lives or
    began after its last word: one that was stopped beside it has mended nothing. What fell quiet is not: who
    begins after one that was killed says so of it, and one that is frozen is to be seen. Only where no
    process can tell, it is replaced by one that began after its last word on the same host.
    """
    records = list(records)

    def replaced(old: StatusRecord) -> bool:
        others = [r for r in records if r.part == old.part and r is not old]
        if old.ended:
            after_us = old.at_us if old.state == State.ERROR else old.started_us
            return any(r.started_us > after_us or not (r.ended or r.silent(at_us)) for r in others)
        quiet = old.age_s(at_us) > MISSED_S and not old.process
        return quiet and any(r.host == old.host and r.started_us >= old.at_us for r in others)

    return [r for r in records if not replaced(r)]


def kept_by_run(records: Iterable[StatusRecord], at_us: int) -> dict[str, Mapping[str, Any]]:
    """By part, what a `tailrace run` that lives says of the processes that it keeps running."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.kind == "run" and not record.ended and not record.silent(at_us):
            found.update(record.detail.get("parts") or {})
    return found


def concerns(record: StatusRecord, at_us: int) -> bool:
    """Of a part that the file does not name: whether it runs, or is the `run` that was here last."""
    return record.kind == "run" or not (record.ended or record.silent(at_us))


def expected_parts(config: Config) -> list[str]:
    """What `tailrace run` starts for this config: one capture a source, one process a processor, one apply a
    target with flows, and `serve` where the file has work for it."""
    captures = [f"capture:{s.name}" for s in config.sources.values() if not unbuilt_source(s)]
    applies = [
        f"apply:{t.name}"
        for t in config.targets.values()
        if not unbuilt_target(t) and built_flows(config, t.name)[0]
    ]
    processes = [f"process:{name}" for name in config.processors]
    return captures + processes + applies + ([f"serve:{config.name}"] if is_served(config) else [])


def is_served(config: Config) -> bool:
    """Whether the file has work for `tailrace serve`: jobs, alerts, or more of `control` than its `url`."""
    return is_watched(config) or bool(config.control.model_fields_set - {"url"})


def is_watched(config: Config) -> bool:
    """Whether somebody is to be told what goes wrong, or jobs are to run: `tailrace run` watches, too."""
    dead_man = config.alerts.dead_man
    pings = dead_man is not None and dead_man.ping is not None
    return bool(config.schedules.jobs or config.alerts.rules or pings)


def state_of(part: Part, record: StatusRecord | None) -> str:
    if record is None:
        return "unknown"
    return record.state if record.ended or part.live(record) else SILENT


def part_view(part: Part, record: StatusRecord) -> dict[str, Any]:
    port = record.metrics_port
    return {
        "part": record.part,
        "instance": record.instance,
        "pid": record.pid,
        "host": record.host,
        "state": state_of(part, record),
        "reason": record.reason,
        "since_us": record.since_us,
        "started_us": record.started_us,
        "age_s": round(max(0.0, record.age_s(part.at_us)), 1),
        "restarts": record.restarts,
        "ended": record.ended,
        "metrics": f"http://127.0.0.1:{port}/metrics" if port else None,
    }


def part_findings(config: Config, parts: dict[str, Part], findings: list[Finding]) -> None:
    """What the flows do not tell: parts without a flow, and trouble beside a healthy speaker."""
    for part in parts.values():
        kind, _, name = part.part.partition(":")
        if kind in ("capture", "process", "apply") or (kind == "serve" and is_served(config)):
            words = kind if kind == "serve" else f"{kind} {name}"
            trouble = part.problem(f"start it with `tailrace run`, or `tailrace {words}`")
            if trouble is not None and not part.is_partly_well:
                findings.append(Finding(RANK[trouble[0]], part.part, trouble[1]))
            if part.starting is not None and part.starting[0] is FlowState.SLOW:
                findings.append(Finding(Grade.SLOW, part.part, part.starting[1], counts=False))
        for record in part.records:
            if record.ended or record is part.speaker:
                continue
            if record.silent(part.at_us):
                since = duration(record.age_s(part.at_us))
                text = (
                    f"{record.part}: process {record.instance} is silent since {since}; another does its work"
                )
                findings.append(Finding(Grade.SLOW, record.part, text, counts=False))
            elif record.state == State.ERROR and not _is_of_flows(record):
                findings.append(Finding(Grade.ERROR, record.part, f"{record.part}: {record.reason}"))
        _run_findings(part, findings)


def _is_of_flows(record: StatusRecord) -> bool:
    """Whether what a process tells is the trouble of flows which it tells, too."""
    if record.state not in (State.ERROR, State.WAITING):
        return False
    flows = (record.detail.get("flows") or {}).values()
    stopped = (
        str(flow.get("reason") or "") for flow in flows if flow.get("state") in (State.ERROR, "stalled")
    )
    return any(reason and reason[:REASON_LIMIT] in record.reason for reason in stopped)


def _run_findings(part: Part, findings: list[Finding]) -> None:
    """What `tailrace run` says of its parts: what it cannot keep running, and what keeps falling."""
    speaker = part.speaker
    if speaker is None or speaker.kind != "run" or not part.live(speaker):
        return
    for name, values in (speaker.detail.get("parts") or {}).items():
        reason = values.get("reason") or ""
        if values.get("state") in ("error", "backoff"):
            findings.append(Finding(Grade.ERROR, name, f"{name}: {reason}"))
        elif values.get("restarts") and part.at_us - (values.get("started_us") or 0) < RESTARTS_S * 1e6:
            findings.append(Finding(Grade.PAST, name, f"{name} {told_again(values)}", counts=False))


def told_again(values: Mapping[str, Any]) -> str:
    """Of a part that `tailrace run` has started again, and that runs: what was to be done is done."""
    times = "once" if values["restarts"] == 1 else f"{values['restarts']} times"
    first_line = (values.get("reason") or "").split("\n", 1)[0]
    return f"was started again {times}, last because: {first_line or 'it ended'}"
