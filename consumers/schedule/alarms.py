"""What is wrong at this moment, by the names of the alarms of a config: docs/alerts.md. Pure.

A look has no memory: for how long something must be wrong before it is told is of watchdog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from consumers.control.feed import Wrong
from consumers.schedule.plan import JobState, Outcome, Planned, missed, retry_at, stale
from consumers.views import SILENT, Finding, FlowState, Grade, Status, duration, size
from consumers.views.findings import RANK
from consumers.views.flows import drifted
from consumers.views.jobs import JOB
from consumers.views.parts import Part
from streamer.config import Config, PostgresSource
from streamer.status import StatusRecord

SCHEDULER = "scheduler"  # the subject of the alarm that no process runs the jobs
SILENT_LIMIT_S = 3600.0  # who is silent for longer has been given up by whoever stopped it

_RULE = {
    Grade.ERROR: "stalled",
    Grade.REWOUND: "stalled",
    Grade.UNKNOWN: "stalled",
    Grade.STALLED: "stalled",
    Grade.AT_RISK: "drift",  # rows are missing, or not whole
    Grade.HELD: "held",
    Grade.UNDONE: "held",  # a backfill that waits for `resume`
    Grade.SET_ASIDE: "dead_letter",
}


def of_status(config: Config, status: Status, *, young: bool) -> list[Wrong]:
    """`young`: the parts may only just be starting, and one that is not known yet is no alarm."""
    found = [wrong for flow in status.flows for wrong in _of_flow(flow, status.at_us)]
    found += _of_sources(config, status)
    found += _of_processors(status)
    found += _of_findings(status, f"serve:{config.name}" if runs_jobs(config) else "")
    found += _of_silent(status)
    if young:
        starting = _starting(status)
        found = [wrong for wrong in found if wrong.subject not in starting]
    return list({(wrong.rule, wrong.subject): wrong for wrong in reversed(found)}.values())[::-1]


def unjudged(status: Status) -> set[str]:
    """Subjects of which it is not known whether anything but `stalled` is wrong: who would tell is silent."""
    living = _living(status)
    found = {f"flow {flow['name']}" for flow in status.flows if flow["parked"] is None}
    found |= {f"processor {each['name']}" for each in status.processors if each["parked"] is None}
    for source in status.sources:
        if f"capture:{source['name']}" not in living:
            found |= {f"source {source['name']}", f"source {source['name']}, wal_stop"}
    return found | {part for flow in status.flows for part in _way(flow) if part not in living}


def _living(status: Status) -> set[str]:
    return {part["part"] for part in status.parts if not part["ended"] and part["state"] != SILENT}


def _starting(status: Status) -> set[str]:
    unknown = {f"flow {flow['name']}" for flow in status.flows if flow["state"] == FlowState.UNKNOWN}
    silent = {part["part"] for part in status.parts if part["ended"] or part["state"] == SILENT}
    never = {f.subject for f in status.findings if f.rank is Grade.UNKNOWN}
    ways = {way for flow in status.flows for way in _way(flow) if flow["state"] == FlowState.UNKNOWN}
    return unknown | silent | never | ways


def _of_flow(flow: Mapping[str, Any], at_us: int) -> Iterator[Wrong]:
    name, state, reason = flow["name"], FlowState(flow["state"]), flow["reason"]
    rule = _RULE.get(RANK[state])
    if rule is not None:
        part = next((part for part in _way(flow) if reason.startswith(part)), None)
        # A part that is down is told once, not for each of its flows.
        yield Wrong(rule, part or f"flow {name}", reason if part else f"flow {name} is {state}: {reason}")
    if flow["held"]:
        topics = ", ".join(sorted(gate["topic"] for gate in flow["held"]))
        yield Wrong("held", f"flow {name}", f"flow {name} waits for `tailrace approve {name}`: {topics}")
    if flow["parked"]:
        rows = "1 key is" if flow["parked"] == 1 else f"{flow['parked']:,} keys are"
        see = f"see `tailrace dead-letters list {flow['target']}`"
        yield Wrong("dead_letter", f"flow {name}", f"flow {name}: {rows} parked: {see}")
    proof = flow.get("proof")
    if proof is not None and proof["verdict"] == "drift":
        yield Wrong("drift", f"flow {name}", drifted(name, proof, at_us))


def _way(flow: Mapping[str, Any]) -> list[str]:
    """The parts that its rows come by."""
    return list(flow["way"])


def _of_processors(status: Status) -> Iterator[Wrong]:
    for view in status.processors:
        name, parked = view["name"], view["parked"]
        if parked:
            keys = "1 key is" if parked == 1 else f"{parked:,} keys are"
            text = f"processor {name}: {keys} parked: see `tailrace dead-letters list {name}`"
            yield Wrong("dead_letter", f"processor {name}", text)


def _of_sources(config: Config, status: Status) -> Iterator[Wrong]:
    for view in status.sources:
        source, wal = config.sources[view["name"]], view["slot_wal_bytes"]
        if not isinstance(source, PostgresSource) or wal is None:
            continue
        slot = source.slot
        keeps = f"{source.name}: the slot {slot.name} keeps {size(wal)} of WAL at the source"
        if wal >= slot.wal_warn_bytes:
            text = f"{keeps}, wal_warn is {size(slot.wal_warn_bytes)}: look why nothing is confirmed"
            yield Wrong("slot_at_risk", f"source {source.name}", text)
        if wal >= slot.wal_stop_bytes:
            text = f"{keeps}, wal_stop is {size(slot.wal_stop_bytes)}: its disk fills"
            yield Wrong("slot_at_risk", f"source {source.name}, wal_stop", text)


def runs_jobs(config: Config) -> bool:
    """Whether somebody must run the jobs: of a `serve` that is down the alarm of the scheduler tells."""
    return config.control.enabled and bool(config.schedules.jobs)


def _of_findings(status: Status, scheduler: str) -> Iterator[Wrong]:
    """Those of sources and parts; of flows there is more to tell than their finding. `scheduler`: a part that
    is told by `of_scheduler`."""
    texts: dict[tuple[str, str], list[str]] = {}
    for finding in status.findings:
        rule = _RULE.get(finding.rank)
        if rule is None or not finding.counts or finding.subject.startswith("flow "):
            continue
        if finding.subject == scheduler or finding.subject.startswith(JOB):  # `of_jobs` tells these
            continue
        if not _is_of_slot(finding):
            texts.setdefault((rule, finding.subject), []).append(finding.text)
    return (Wrong(rule, subject, "\n".join(its)) for (rule, subject), its in texts.items())


def _is_of_slot(finding: Finding) -> bool:
    name = finding.subject.removeprefix("source ")
    return finding.rank is Grade.AT_RISK and finding.text.startswith(f"{name}: the slot ")


def _of_silent(status: Status) -> Iterator[Wrong]:
    """Processes whose heartbeat has stopped beside one that does their work, and `tailrace run` itself."""
    living = _living(status)
    for part in status.parts:
        name, age_s = part["part"], part["age_s"]
        if part["state"] != SILENT or age_s > SILENT_LIMIT_S:
            continue
        if name in living or name.startswith("run:"):
            beside = "; another does its work" if name in living else ""
            text = f"{name}: process {part['instance']} is silent since {duration(age_s)}{beside}"
            yield Wrong("stalled", f"{name} {part['instance']}", text)


def of_scheduler(records: Iterable[StatusRecord], name: str, at_us: int) -> list[Wrong]:
    """While jobs are to run: whether a process runs them. `name`: the config's."""
    part = Part(f"serve:{name}", [r for r in records if r.part == f"serve:{name}"], at_us)
    if any(record.detail.get("elected") for record in part.living):
        return []
    trouble = part.problem("start it with `tailrace run`, or `tailrace serve`")
    why = trouble[1] if trouble is not None else f"{part.part} lives, and does not run them"
    return [Wrong("missed_job", SCHEDULER, f"no process runs the jobs: {why}")]


def of_jobs(plans: Mapping[str, Planned], known: Mapping[str, JobState], now: datetime) -> list[Wrong]:
    """While jobs are to run. One that the control database has not seen yet is known since now."""
    states = {name: known.get(name) or JobState(now) for name in plans}
    found = []
    for name, since in missed(plans, states, now):
        text = f"the job {name} should have begun at {_clock(since)}, and has not"
        found.append(Wrong("missed_job", f"job {name}", text))
    for name, plan in plans.items():
        state, subject = states[name], f"job {name}"
        failed = state.outcome in (Outcome.FAILED, Outcome.CUT_OFF) and retry_at(plan, state) is None
        if failed and state.last_end is not None and plan.job.enabled and not state.paused:
            what = "was cut off" if state.outcome is Outcome.CUT_OFF else "has failed"
            text = f"the job {name} {what} at {_clock(state.last_end)}: see `tailrace jobs show {name}`"
            found.append(Wrong("missed_job", subject, text))
    for name in stale(plans, states, now):
        job, done = plans[name].job, states[name].last_done
        last = f"its last good run ended at {_clock(done)}" if done is not None else "it has had none"
        text = f"the job {name} has had no good run for {duration(job.stale_after_s)}: {last}"
        found.append(Wrong("stale", f"job {name}", text))
    return found


def _clock(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S %Z")
