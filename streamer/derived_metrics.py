"""Metrics of a processor's process: what its heartbeat says. The names are docs/metrics.md's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_COUNTERS = {
    "done": ("tailrace_process_changes", "Records of the inputs, and between hops, that were handled."),
    "derived": ("tailrace_process_rows", "Derived events committed to Kafka."),
    "dropped": ("tailrace_process_dropped", "Events dropped as not newer than what was handled before."),
    "refused": ("tailrace_process_refused", "Changes on which the agent raised: dead letters."),
    "rebalances": ("tailrace_process_rebalances", "Times that the group has shared out the tasks."),
}
_GAUGES = {
    "lag_records": ("tailrace_process_lag_records", "Records in Kafka that it has not handled yet."),
    "lag_s": ("tailrace_process_lag_seconds", "How far it is behind the source's commits; 0 without lag."),
    "parked": ("tailrace_process_parked_keys", "Keys that are parked."),
    "state_bytes": ("tailrace_process_state_bytes", "Size of its state."),
    "epoch": ("tailrace_process_epoch", "Epoch of its rows, raised by `tailrace reset`."),
}


def process_metrics(processor: str, detail: dict[str, Any]) -> Iterator[Metric]:
    """Of one process: several share the tasks of a processor."""
    for make, names in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
        for key, (name, text) in names.items():
            value = detail.get(key)
            if value is not None:
                family = make(name, text, labels=["processor"])
                family.add_metric([processor], float(value))
                yield family
    tasks = GaugeMetricFamily("tailrace_process_tasks", "Partitions that it has.", labels=["processor"])
    tasks.add_metric([processor], float(len(detail.get("tasks") or ())))
    yield tasks
    if detail.get("latency_ms") is not None:
        latency = GaugeMetricFamily(
            "tailrace_process_latency_seconds",
            "Commit in the source to commit of the derived row in Kafka, of the newest one.",
            labels=["processor"],
        )
        latency.add_metric([processor], detail["latency_ms"] / 1000)
        yield latency
