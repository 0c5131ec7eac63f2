"""What the demo knows of its processes: their heartbeats, added up over restarts.

A process counts from its own start, so the counts of one that was killed are kept and the next one's
are added. Pure: records in, numbers out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from streamer.status import StatusRecord

KINDS = ("capture", "apply")


@dataclass(frozen=True, slots=True)
class FlowLine:
    """One flow as the screen shows it. `lag_s` is None while it is not known."""

    name: str
    captured: int
    applied: int
    lag_records: int
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Commit to target in milliseconds, of the slowest flow."""

    p50_ms: float
    p99_ms: float


@dataclass(slots=True)
class Tally:
    """`flows` maps a flow's name to the table of the source that it takes."""

    flows: dict[str, str]
    latest: dict[str, StatusRecord] = field(default_factory=dict)  # by part and instance
    peak_rate: float = 0.0

    def take(self, records: Iterable[StatusRecord]) -> None:
        for record in records:
            self.latest[f"{record.part} {record.instance}"] = record
            if record.kind == "capture":
                self.peak_rate = max(self.peak_rate, float(record.detail.get("rate") or 0.0))

    def current(self, kind: str) -> StatusRecord | None:
        """The process of that kind that was started last."""
        found = [r for r in self.latest.values() if r.kind == kind]
        return max(found, key=lambda r: r.started_us, default=None)

    def replaced(self, kind: str, pid: int) -> StatusRecord | None:
        """The process that took the place of `pid`, once it works again: apply when it has partitions."""
        record = self.current(kind)
        if record is None or record.pid == pid or record.state not in ("streaming", "idle"):
            return None
        if kind == "apply" and not any(_flow(record, flow).get("partitions") for flow in self.flows):
            return None
        return record

    def lines(self) -> list[FlowLine]:
        return [self._line(name, table) for name, table in self.flows.items()]

    def _line(self, flow: str, table: str) -> FlowLine:
        captured = applied = lag_records = 0
        lag_s: float | None = None
        for record in self.latest.values():
            if record.kind == "capture":
                captured += int(record.detail.get("tables", {}).get(table, {}).get("captured") or 0)
            elif record.kind == "apply":
                applied += int(_flow(record, flow).get("applied") or 0)
        present = self.current("apply")
        if present is not None:
            detail = _flow(present, flow)
            lag_records = int(detail.get("lag_records") or 0)
            lag_s = detail.get("lag_s")
        return FlowLine(flow, captured, applied, lag_records, lag_s)

    def latency(self) -> Latency | None:
        """As the present apply process measures it, over the last minute."""
        record = self.current("apply")
        found = [
            measured
            for flow in self.flows
            if record is not None and (measured := _flow(record, flow).get("latency_ms"))
        ]
        p50 = [float(m["p50"]) for m in found if m.get("p50") is not None]
        p99 = [float(m["p99"]) for m in found if m.get("p99") is not None]
        return Latency(max(p50), max(p99)) if p50 and p99 else None

    def lsn(self) -> int:
        """The source position of the present capture process; 0 when it has said none."""
        record = self.current("capture")
        return int(record.detail.get("lsn") or 0) if record is not None else 0


def _flow(record: StatusRecord, flow: str) -> dict[str, Any]:
    found: dict[str, Any] = record.detail.get("flows", {}).get(flow, {})
    return found
