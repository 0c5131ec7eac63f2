"""What `status` shows of a processor, and which parts a flow's rows come by. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consumers.views.findings import Finding, Grade
from consumers.views.parts import Part, state_of
from streamer.config import Config, Flow, unbuilt_source
from streamer.config.derived import processor_of, sources_of, upstream
from streamer.config.operations import Processor
from streamer.status import State


@dataclass(frozen=True, slots=True)
class Way:
    """The parts before a flow's apply, as they are named: the captures of its sources, then processors."""

    captures: tuple[str, ...]
    processes: tuple[str, ...] = ()


def way_of(config: Config, flow: Flow) -> Way:
    name = processor_of(config, flow)
    if name is None:
        return Way((f"capture:{flow.source}",))
    sources = [s for s in sources_of(config.processors, name) if not unbuilt_source(config.sources[s])]
    return Way(
        tuple(f"capture:{source}" for source in sources),
        tuple(f"process:{each}" for each in upstream(config.processors, name)),
    )


def processor_view(name: str, processor: Processor, part: Part, findings: list[Finding]) -> dict[str, Any]:
    """Several workers share its tasks: sums, and the worst of times."""
    record = part.speaker
    telling = [r for r in part.living if r.detail.get("tasks")]  # who has none yet knows nothing
    details = [r.detail for r in telling]
    parked = _sum(details, "parked")
    if parked:
        keys = "1 key is" if parked == 1 else f"{parked:,} keys are"
        text = f"processor {name}: {keys} parked: see `tailrace dead-letters list {name}`"
        findings.append(Finding(Grade.SLOW, f"processor {name}", text, counts=False))
    doubts = list(dict.fromkeys(doubt for d in details for doubt in d.get("doubts") or ()))
    findings += [
        Finding(Grade.SLOW, f"processor {name}", f"processor {name}: {doubt}", counts=False)
        for doubt in doubts
    ]
    return {
        "name": name,
        "state": state_of(part, record),
        "reason": record.reason if record is not None else "",
        "since_us": record.since_us if record is not None else None,
        "workers": sum(r.state != State.STANDBY for r in part.living),
        "standbys": sum(r.state == State.STANDBY for r in part.living),
        "in": list(processor.inputs),
        "out": processor.out,
        "guarantee": processor.guarantee,
        "epoch": _max(details, "epoch"),
        "tasks": sum(len(d.get("tasks") or ()) for d in details) if details else None,
        "partitions": max((d["of"] for d in details), default=None),
        "offset": _sum(details, "offset"),
        "lag_records": _sum(details, "lag_records"),
        "shares": [
            {"worker": r.instance, "done": r.detail.get("done"), "tasks": r.detail.get("shares") or []}
            for r in telling
        ],
        "lag_s": _max(details, "lag_s"),
        "latency_ms": _max(details, "latency_ms"),
        "done": _sum(details, "done"),
        "derived": _sum(details, "derived"),
        "rate": _sum(details, "rate"),
        "derived_rate": _sum(details, "derived_rate"),
        "parked": parked,
        "state_kind": next((d["state"] for d in details if d.get("state")), None),
        "state_bytes": _sum(details, "state_bytes"),
        "inferred": {k: v for d in details for k, v in (d.get("inferred") or {}).items()},
        "doubts": doubts,
    }


def _sum(details: list[dict[str, Any]], key: str) -> Any:
    values = [d[key] for d in details if d.get(key) is not None]
    return sum(values) if values else None


def _max(details: list[dict[str, Any]], key: str) -> Any:
    return max((d[key] for d in details if d.get(key) is not None), default=None)
