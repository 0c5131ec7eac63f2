"""What apply says of itself: counts, lag and latency by flow, as `detail` of its heartbeat."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiokafka import TopicPartition

from consumers.apply.ages import Ages
from consumers.apply.assemble import Prepared, Sample
from consumers.apply.checkpoint import Place
from consumers.apply.clocks import Offset
from consumers.apply.epochs import Epochs
from consumers.apply.feed import Standing
from consumers.apply.gate_texts import detail_of, reason_of
from consumers.apply.latency import Latency
from consumers.apply.pauses import PAUSED, Pause
from consumers.apply.queues import Count
from consumers.targets.base import Gate, Outcome
from streamer.status import State

RATE_WINDOW_S = 5.0
STALLED = "stalled"  # of a flow: it waits for a table of the store


class Histogram(Protocol):
    def observe(self, flow: str, stage: str, seconds: float, weight: int = 1) -> None: ...


@dataclass(slots=True)
class FlowReport:
    applied: int = 0
    guarded: int = 0
    batches: int = 0
    rereads: int = 0
    parked: int = 0  # keys now, in the partitions that are ours
    waiting: int = 0
    parked_since_us: int | None = None
    held: list[dict[str, Any]] = field(default_factory=list)  # closed gates
    paused: dict[str, Any] | None = None
    state: str = "streaming"
    reason: str = ""
    latency: Latency = field(default_factory=Latency)
    tables: dict[str, int] = field(default_factory=dict)  # target table -> row events
    recent: deque[tuple[float, int]] = field(default_factory=deque)


@dataclass(slots=True)
class PartitionReport:
    applied_offset: int = 0
    end: int | None = None
    ages: Ages = field(default_factory=Ages)  # of what is not applied yet, by the source's clock


class Report:
    """Written by the writer and the keeper of one process; read into a detail once a second."""

    def __init__(
        self,
        flows: list[str],
        metrics: Histogram | None,
        offset_of: Callable[[str], Offset | None],
        epochs: Epochs,
    ) -> None:
        """`offset_of`: a flow's source's clock, None while it is not known."""
        self.flows = {flow: FlowReport() for flow in flows}
        self.partitions: dict[tuple[str, TopicPartition], PartitionReport] = {}
        self.epochs = epochs
        self._metrics = metrics
        self._offset_of = offset_of

    def applied(self, prepared: Prepared, outcome: Outcome, committed_us: int) -> None:
        now_s = time.monotonic()
        lost = set(outcome.lost)
        self.epochs.note(prepared, outcome)
        for flow, count in outcome.applied.items():
            report = self.flows[flow]
            report.applied += count
            report.batches += 1
            report.guarded += outcome.guarded.get(flow, 0)
            report.rereads += outcome.rereads.get(flow, 0)
            report.recent.append((now_s, count))
            samples = self._corrected(flow, prepared.times.get(flow, []))
            if samples:
                report.latency.add(
                    samples,
                    received_us=prepared.received_us,
                    committed_us=committed_us,
                    now_s=now_s,
                )
                self._observe(flow, samples, prepared.received_us, committed_us)
        for changes in prepared.batch.tables:
            name = f"{changes.schema}.{changes.table}"
            tables = self.flows[changes.flow].tables
            tables[name] = tables.get(name, 0) + sum(fold.events for fold in changes.folds)
        for move in prepared.batch.moves:
            if move.place in lost:
                continue
            partition = TopicPartition(move.place.topic, move.place.partition)
            place = self.partitions.setdefault((move.place.flow, partition), PartitionReport())
            place.applied_offset = move.next_offset

    def read(self, prepared: Prepared) -> None:
        """A batch is on its way to the writer: what is read again tells nothing else than before."""
        for place, marks in prepared.marks.items():
            report = self.partitions.get((place.flow, TopicPartition(place.topic, place.partition)))
            if report is None:
                continue
            for mark in marks:
                report.ages.note(*mark)

    def _corrected(self, flow: str, samples: list[Sample]) -> list[Sample]:
        """Their times by this process's clock."""
        offset = self._offset_of(flow)
        if offset is None or not (offset.source_us or offset.capture_us):
            return samples
        source_us, capture_us = offset.source_us, offset.capture_us
        return [(commit - source_us, capture - capture_us, weight) for commit, capture, weight in samples]

    def _observe(self, flow: str, samples: list[Sample], received_us: int, committed_us: int) -> None:
        if self._metrics is None:
            return
        observe = self._metrics.observe
        for commit_us, capture_us, weight in samples:
            observe(flow, "total", max(0, committed_us - commit_us) / 1e6, weight)
            observe(flow, "capture", max(0, capture_us - commit_us) / 1e6, weight)
            observe(flow, "kafka", max(0, received_us - capture_us) / 1e6, weight)
            observe(flow, "apply", max(0, committed_us - received_us) / 1e6, weight)

    @property
    def rereads(self) -> int:
        return sum(flow.rereads for flow in self.flows.values())

    def placed(
        self,
        standings: dict[TopicPartition, Standing],
        ends: dict[TopicPartition, int],
        held: Mapping[Place, int],
    ) -> None:
        """Partitions that are ours now; what is not is another process's to report. `held`: offsets of what
        was just placed, and waits at a gate."""
        ours = {(flow, p): at for p, s in standings.items() for flow, at in s.next_offsets.items()}
        ours |= {(place.flow, TopicPartition(place.topic, place.partition)): at for place, at in held.items()}
        for standing in standings.values():
            for flow, epoch in standing.epochs.items():
                self.epochs.placed(flow, epoch)
        for place in [place for place in self.partitions if place not in ours]:
            del self.partitions[place]
        for place, offset in ours.items():
            known = self.partitions.get(place)
            if known is None or offset < known.applied_offset:  # it starts again from the log's start
                self.partitions[place] = PartitionReport(offset, ends.get(place[1]))

    def ended(self, ends: dict[TopicPartition, int]) -> None:
        now_us = time.time_ns() // 1000
        for (flow, partition), report in self.partitions.items():
            end = ends.get(partition, report.end)
            if end is not None and report.end is not None and end > report.end:
                report.ages.note(report.end, self._source_now_us(flow, now_us))
            report.end = end

    def parked(self, counts: Mapping[str, Count]) -> None:
        for name, flow in self.flows.items():
            count = counts.get(name, Count())
            flow.parked, flow.waiting = count.parked, count.waiting
            flow.parked_since_us = count.oldest_us

    def gates(self, held: Iterable[Gate]) -> None:
        """`held`: what waits for a person, of every process."""
        by_flow: dict[str, list[Gate]] = {}
        for gate in held:
            by_flow.setdefault(gate.flow, []).append(gate)
        for name, flow in self.flows.items():
            gates = by_flow.get(name, [])
            flow.held = [detail_of(gate) for gate in gates]
            if flow.state not in (State.ERROR, STALLED, PAUSED):
                flow.state = State.HELD if gates else State.STREAMING
                flow.reason = reason_of(gates) if gates else ""

    def paused(self, pauses: Mapping[str, Pause]) -> None:
        """What else is wrong with a paused flow is said when it goes on."""
        for name, flow in self.flows.items():
            pause = pauses.get(name)
            flow.paused = None if pause is None else pause.detail
            if pause is not None:
                flow.state, flow.reason = PAUSED, pause.reason
            elif flow.state == PAUSED:
                flow.state, flow.reason = State.STREAMING, ""

    def unapplied(self, starts: Mapping[TopicPartition, int]) -> tuple[dict[str, int], dict[str, int]]:
        """By flow, records that wait, and those before the logs' starts that were not applied in time."""
        waiting: dict[str, int] = {}
        gone: dict[str, int] = {}
        for (flow, partition), report in self.partitions.items():
            at = report.applied_offset
            waiting[flow] = waiting.get(flow, 0) + max(0, (report.end or 0) - at)
            gone[flow] = gone.get(flow, 0) + max(0, starts.get(partition, 0) - at)
        return waiting, gone

    def _source_now_us(self, flow: str, now_us: int) -> int:
        offset = self._offset_of(flow)
        return now_us + (offset.source_us if offset else 0)

    def detail(self) -> dict[str, Any]:
        now_s, now_us = time.monotonic(), time.time_ns() // 1000
        return {"flows": {name: self._flow(name, flow, now_s, now_us) for name, flow in self.flows.items()}}

    def _flow(self, name: str, flow: FlowReport, now_s: float, now_us: int) -> dict[str, Any]:
        while flow.recent and now_s - flow.recent[0][0] > RATE_WINDOW_S:
            flow.recent.popleft()
        offset = self._offset_of(name)
        source_now_us = self._source_now_us(name, now_us)
        held_us = {gate["topic"]: gate["since_us"] for gate in flow.held}
        paused_us = flow.paused["since_us"] if flow.paused is not None else None
        partitions = []
        for (owner, partition), report in sorted(self.partitions.items()):
            if owner != name:
                continue
            end = report.applied_offset if report.end is None else max(report.end, report.applied_offset)
            lag = end - report.applied_offset
            lag_s: float | None = 0.0
            if lag:  # of what waits nothing is known: no figure, rather than a good one
                since_us = report.ages.oldest_us(report.applied_offset) or held_us.get(partition.topic)
                since_us = since_us or paused_us
                lag_s = None if since_us is None else round(max(0, source_now_us - since_us) / 1e6, 3)
            partitions.append(
                {
                    "topic": partition.topic,
                    "partition": partition.partition,
                    "offset": report.applied_offset,
                    "end": end,
                    "lag_records": lag,
                    "lag_s": lag_s,
                }
            )
        waiting = [p["lag_s"] for p in partitions if p["lag_records"]]
        known = [age for age in waiting if age is not None]
        return {
            "applied": flow.applied,
            "rate": round(sum(count for _, count in flow.recent) / RATE_WINDOW_S, 1),
            "guarded": flow.guarded,
            "batches": flow.batches,
            "rereads": flow.rereads,
            "parked": flow.parked,
            "waiting": flow.waiting,
            "parked_since_us": flow.parked_since_us,
            "held": flow.held,
            "paused": flow.paused,
            "held_rows": sum(gate["rows"] for gate in flow.held),
            "tables": {table: {"applied": count} for table, count in flow.tables.items()},
            # Before it has its partitions nothing is known, which is not zero: its target may be away.
            "lag_records": sum(p["lag_records"] for p in partitions) if partitions else None,
            "lag_s": max(known, default=None if waiting or not partitions else 0.0),
            "latency_ms": flow.latency.snapshot(now_s),
            "clock_offset_ms": None if offset is None else round(offset.source_us / 1000, 1),
            "partitions": partitions,
            "state": flow.state,
            "reason": flow.reason,
        }
