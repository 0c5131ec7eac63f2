"""/metrics of the page: flows and events as it shows them, beside those of its process and its jobs.

Owns the names, which docs/metrics.md lists. Labels are names of the config file, so they are bounded by it;
what is unknown has no sample. No text of a reason or an error is among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consumers.control.feed import Event
from consumers.views import FlowState, Status
from consumers.views.check import PROVED
from streamer.config.operations import Alarm
from streamer.metrics import RecordCollector
from streamer.status import StatusRecord


class _Seen(Collector):
    def __init__(self, status: Status, events: Sequence[Event] | None) -> None:
        self._status = status
        self._events = events

    def collect(self) -> Iterable[Metric]:
        yield from _flows(self._status)
        if self._events is not None:
            yield _open_events(self._events)


def exposition(
    own: StatusRecord,
    status: Status,
    events: Sequence[Event] | None,
) -> bytes:
    """In Prometheus' text format. `own`: this process's heartbeat, with the jobs."""
    registry = CollectorRegistry()
    registry.register(RecordCollector(lambda: own))
    registry.register(_Seen(status, events))
    return generate_latest(registry)


def _flows(status: Status) -> Iterable[Metric]:
    labels = ["flow", "target"]
    state = GaugeMetricFamily(
        "tailrace_flow_state",
        "1 for the state that the flow is in, 0 for the others.",
        labels=[*labels, "state"],
    )
    lag = GaugeMetricFamily(
        "tailrace_flow_lag_seconds", "For how long the copy has been behind.", labels=labels
    )
    records = GaugeMetricFamily(
        "tailrace_flow_lag_records", "Records that are not in the target yet.", labels=labels
    )
    parked = GaugeMetricFamily(
        "tailrace_flow_parked_keys", "Keys that the target has refused.", labels=labels
    )
    equal = GaugeMetricFamily(
        "tailrace_flow_proof_equal",
        "1 when the last comparison found source and target equal.",
        labels=labels,
    )
    proved = GaugeMetricFamily(
        "tailrace_flow_proof_seconds", "When the last comparison ended, seconds since 1970.", labels=labels
    )
    for flow in status.flows:
        at = [flow["name"], flow["target"]]
        for name in FlowState:
            state.add_metric([*at, name], float(flow["state"] == name))
        for family, key in ((lag, "lag_s"), (records, "lag_records"), (parked, "parked")):
            if flow[key] is not None:
                family.add_metric(at, flow[key])
        if flow["proof"] is not None:
            equal.add_metric(at, float(flow["proof"]["verdict"] in PROVED))
            proved.add_metric(at, flow["proof"]["ended_us"] / 1e6)
    yield from (state, lag, records, parked, equal, proved)


def _open_events(events: Sequence[Event]) -> Metric:
    """By rule; the subjects are in the page and the alerts."""
    family = GaugeMetricFamily("tailrace_open_events", "Things that are wrong now, by rule.", labels=["rule"])
    counts = Counter(event.rule for event in events if event.resolved_us is None)
    for rule in get_args(Alarm):
        family.add_metric([rule], counts[rule])
    return family
