"""Everything that `tailrace status` and `lag` show, built from the config and the heartbeats. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from socket import gethostname
from typing import Any

from consumers.views.findings import Finding, Grade, ordered
from consumers.views.flows import drifted, flow_view
from consumers.views.jobs import job_findings
from consumers.views.parts import (
    Part,
    concerns,
    expected_parts,
    kept_by_run,
    part_findings,
    part_view,
    shown,
)
from consumers.views.processors import Way, processor_view, way_of
from consumers.views.sources import source_view
from consumers.views.strangers import parted, stranger_findings
from streamer.config import Config, Flow, PostgresSource, RedisSource, built_flows, unbuilt_source
from streamer.errors import EXIT_FINDING, EXIT_OK
from streamer.status import State, StatusRecord

FORMAT = 1


@dataclass(slots=True)
class Status:
    """Everything that `tailrace status` shows."""

    name: str
    at_us: int
    findings: list[Finding]
    sources: list[dict[str, Any]]
    flows: list[dict[str, Any]]
    parts: list[dict[str, Any]]
    processors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The worst thing, in one sentence."""
        if self.is_well:
            return _all_well(self.flows, self.sources)
        worst = self.findings[0]
        more = len(self.findings) - 1
        first_line = worst.text.split("\n", 1)[0]
        return f"{first_line}{f' (and {more} more)' if more else ''}"

    @property
    def is_well(self) -> bool:
        """Nothing is wrong now; what is told is past."""
        return all(f.rank is Grade.PAST for f in self.findings)

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
            "processors": self.processors,
            "flows": self.flows,
            "parts": self.parts,
        }


def _all_well(flows: list[dict[str, Any]], sources: list[dict[str, Any]]) -> str:
    starting = [source["name"] for source in sources if source["state"] == State.STARTING]
    if starting:
        be = "sources {} are" if len(starting) > 1 else "source {} is"
        return f"{be.format(', '.join(starting))} starting"
    if not flows:
        return "all parts run; no flow is set up"
    lags = [f["lag_s"] for f in flows if f["lag_s"] is not None]
    worst = f", at most {max(lags):.1f} s behind" if lags else ""
    return f"all {len(flows)} flows run{worst}" if len(flows) > 1 else f"the flow runs{worst}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What of a config runs."""

    parts: list[str]
    flows: list[Flow]
    ways: dict[str, Way]
    places: dict[str, str]  # of the stores, by part

    @classmethod
    def of(cls, config: Config) -> Plan:
        flows = _flows(config)
        ways = {flow.name: way_of(config, flow) for flow in flows}
        return cls(expected_parts(config), flows, ways, places(config))


def build(
    config: Config,
    records: Iterable[StatusRecord],
    at_us: int,
    proofs: Mapping[str, Mapping[str, Any]] | None = None,
    plan: Plan | None = None,
) -> Status:
    """The records must include those that ended or fell silent: counts are summed over them too. `proofs`:
    the last comparison of each flow, where they are known here. `plan`: of the config, for who asks often."""
    plan = plan or Plan.of(config)
    everything, strangers = parted(records, plan.places)
    expected = plan.parts
    present = [r for r in shown(everything, at_us) if r.part in expected or concerns(r, at_us)]
    kept = kept_by_run(present, at_us)
    parts = {
        part: Part(part, [r for r in present if r.part == part], at_us, kept.get(part, {}))
        for part in [*expected, *(r.part for r in present)]
    }
    findings = stranger_findings(config.name, strangers, plan.places, at_us)
    sources = [
        source_view(config.name, source, parts[f"capture:{source.name}"], findings)
        for source in config.sources.values()
        if isinstance(source, PostgresSource | RedisSource) and not unbuilt_source(source)
    ]
    processors = [
        processor_view(name, processor, parts[f"process:{name}"], findings)
        for name, processor in config.processors.items()
    ]
    flows = []
    for flow in plan.flows:
        way = plan.ways[flow.name]
        proof = _standing((proofs or {}).get(flow.name), [parts[name] for name in way.captures])
        flows.append({**flow_view(flow, parts, everything, findings, way), "proof": proof})
        if proof is not None and proof["verdict"] == "drift":
            findings.append(Finding(Grade.AT_RISK, f"flow {flow.name}", drifted(flow.name, proof, at_us)))
    part_findings(config, parts, findings)
    serve = parts.get(f"serve:{config.name}")
    findings += job_findings(serve) if serve is not None else ()
    for part in parts.values():
        if part.part.startswith("apply:"):
            notes = [note for record in part.living for note in record.detail.get("findings") or ()]
            findings += [Finding(Grade.AT_RISK, part.part, note) for note in notes]
            for record in part.living:
                aside = (record.detail.get("set_aside") or {}).items()
                findings += [Finding(Grade.SET_ASIDE, f"flow {flow}", text) for flow, text in aside]
            told = [note for record in part.living for note in record.detail.get("notes") or ()]
            findings += [Finding(Grade.SLOW, part.part, note, counts=False) for note in told]
    shown_parts = [part_view(part, record) for part in parts.values() for record in part.records]
    return Status(config.name, at_us, ordered(findings), sources, flows, shown_parts, processors)


def _standing(proof: Mapping[str, Any] | None, captures: Iterable[Part]) -> Mapping[str, Any] | None:
    """A comparison of rows that were all copied again behind it says nothing of those that are there."""
    details = (capture.speaker.detail for capture in captures if capture.speaker is not None)
    copied_us = max((detail.get("since_us") or 0 for detail in details), default=0)
    return None if proof is None or proof["began_us"] < copied_us else proof


def places(config: Config) -> dict[str, str]:
    """Where the stores of a file are, seen from this machine, by the part that works with each."""
    host = gethostname()
    named = [("capture", name) for name in config.sources] + [("apply", name) for name in config.targets]
    return {f"{kind}:{name}": config.place(kind, name, host) for kind, name in named}


def _flows(config: Config) -> list[Flow]:
    return [flow for target in config.targets for flow in built_flows(config, target)[0]]


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
