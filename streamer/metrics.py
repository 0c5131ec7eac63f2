"""Prometheus metrics of one process: what its heartbeat says, and histograms of what passes through it.

Owns the names (docs/metrics.md) and the HTTP port. Gauges and counters are read from the heartbeat's
record when somebody scrapes, so that `status` and Prometheus cannot disagree and the pipeline pays
nothing. Labels are bounded: part, source, target, flow, table (at most TABLES_LIMIT, then `other`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streamer import __version__
from streamer.changes.backfill import State as Backfill
from streamer.derived_metrics import process_metrics
from streamer.errors import ConfigError
from streamer.job_metrics import serve_metrics
from streamer.status import State, StatusRecord

HOST = "127.0.0.1"
TABLES_LIMIT = 500  # series a source; a scrape stays well below a second
BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class LatencyHistogram(Collector):
    """Seconds by flow and stage (total | capture | kafka | apply), counted with a weight.

    prometheus_client's own histogram counts one observation a call; a batch is sampled here and each
    sample stands for many rows. One thread observes, the server's thread reads.
    """

    NAME = "tailrace_apply_latency_seconds"

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], tuple[list[int], list[float]]] = {}

    def observe(self, flow: str, stage: str, seconds: float, weight: int = 1) -> None:
        series = self._series.get((flow, stage))
        if series is None:
            series = self._series[flow, stage] = ([0] * (len(BOUNDS_S) + 1), [0.0])
        counts, total = series
        counts[bisect_left(BOUNDS_S, seconds)] += weight
        total[0] += seconds * weight

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            self.NAME,
            "Commit in the source to commit in the target, and its three stages.",
            labels=["flow", "stage"],
        )
        for (flow, stage), (counts, total) in sorted(self._series.items()):
            buckets: list[tuple[str, float]] = []
            seen = 0
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), tuple(counts), strict=True):
                seen += count
                buckets.append((bound, float(seen)))
            family.add_metric([flow, stage], buckets, total[0])
        yield family


latency = LatencyHistogram()
"""This process's latencies; `consumers.apply` observes into it."""


class RecordCollector(Collector):
    """The heartbeat's record as metrics."""

    def __init__(self, record: Callable[[], StatusRecord]) -> None:
        self._record = record

    def collect(self) -> Iterable[Metric]:
        record = self._record()
        yield from _process(record)
        if record.kind == "capture":
            yield from _capture(record.name, record.detail)
        elif record.kind == "apply":
            yield from _apply(record.name, record.detail)
        elif record.kind == "process":
            yield from process_metrics(record.name, record.detail)
        elif record.kind == "run":
            yield from _run(record.detail)
        elif record.kind == "serve":
            yield from serve_metrics(record.part, record.detail)


def _process(record: StatusRecord) -> Iterator[Metric]:
    up = GaugeMetricFamily("tailrace_up", "1 while the process runs.", labels=["part", "version"])
    up.add_metric([record.part, __version__], 1)
    yield up
    state = GaugeMetricFamily(
        "tailrace_state", "1 for the state that the part is in, 0 for the others.", labels=["part", "state"]
    )
    for name in State:
        state.add_metric([record.part, name], float(record.state == name))
    yield state
    yield _gauge(
        "tailrace_state_since_seconds",
        "When that state began, seconds since 1970.",
        {"part": record.part},
        record.since_us / 1e6,
    )
    yield _gauge(
        "tailrace_started_seconds",
        "When the process began, seconds since 1970.",
        {"part": record.part},
        record.started_us / 1e6,
    )
    yield _counter(
        "tailrace_restarts",
        "Times `tailrace run` has started this part again.",
        {"part": record.part},
        record.restarts,
    )


_CAPTURE_COUNTERS = {
    "published": ("tailrace_capture_events", "Events published to Kafka."),
    "published_bytes": ("tailrace_capture_bytes", "Bytes published to Kafka, as batches, mostly compressed."),
    "flushes": ("tailrace_capture_flushes", "Kafka transactions committed."),
}
_CAPTURE_GAUGES = {
    "lag_bytes": ("tailrace_capture_lag_bytes", "WAL written by the source and not yet published."),
    "lag_s": ("tailrace_capture_lag_seconds", "Age of the oldest commit not yet published; 0 when idle."),
    "lsn": (
        "tailrace_capture_lsn",
        "Position up to which all is in Kafka: bytes of the WAL; of a Redis source microseconds since 1970.",
    ),
    "epoch": ("tailrace_capture_epoch", "Epoch of the source, raised by `tailrace reset`."),
}

_REDIS_COUNTERS = {
    "keys_read": ("tailrace_redis_keys_read", "Keys read again: notified, scanned, or suspected gone."),
    "gaps_seen": ("tailrace_redis_gaps", "Times that notifications may have been missed."),
}
_REDIS_GAUGES = {
    "waiting_keys": ("tailrace_redis_waiting_keys", "Notified keys that are not read again yet."),
    "shadow_rows": ("tailrace_redis_shadow_rows", "Rows known as published."),
    "unhealed_since_us": (
        "tailrace_redis_unhealed",
        "1 while a gap is not healed: copies may lack changes until then.",
    ),
}


def _capture(source: str, detail: dict[str, Any]) -> Iterator[Metric]:
    labels = {"source": source}
    yield from _known(_counter, _CAPTURE_COUNTERS, labels, detail)
    yield from _known(_gauge, _CAPTURE_GAUGES, labels, detail)
    if "bad" in detail:
        yield from _redis(labels, detail)
    yield from _backfills(source, detail.get("backfills") or ())
    wal_bytes = (detail.get("slot") or {}).get("wal_bytes")
    if wal_bytes is not None:
        yield _gauge("tailrace_slot_wal_bytes", "WAL that the slot keeps at the source.", labels, wal_bytes)
    tables = CounterMetricFamily(
        "tailrace_capture_table_events", "Events published, by table.", labels=["source", "table"]
    )
    for table, captured in _bounded(
        {t: v.get("captured", 0) for t, v in (detail.get("tables") or {}).items()}
    ):
        tables.add_metric([source, table], captured)
    yield tables
    yield _gauge(
        "tailrace_capture_findings",
        "Findings that `tailrace status` shows.",
        labels,
        len(detail.get("findings") or ()),
    )


_BACKFILL_ROWS = {
    "rows": ("tailrace_backfill_rows", "Rows that the table's last backfill has published."),
    "estimated_rows": (
        "tailrace_backfill_rows_expected",
        "Rows that it reads, as the source estimates them.",
    ),
    "left_s": ("tailrace_backfill_left_seconds", "How long it takes yet, at its present rate."),
}


def _backfills(source: str, backfills: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    """By table, as runs have names without end; those of the last hour."""
    states = GaugeMetricFamily(
        "tailrace_backfills", "Backfills of the last hour, by their state.", labels=["source", "state"]
    )
    for state in Backfill:
        states.add_metric([source, state], float(sum(each["state"] == state for each in backfills)))
    yield states
    by_table = {each["table"]: each for each in backfills}
    for key, (name, text) in _BACKFILL_ROWS.items():
        family = GaugeMetricFamily(name, text, labels=["source", "table"])
        for table, each in by_table.items():
            if each.get(key) is not None:
                family.add_metric([source, table], each[key])
        yield family


def _redis(labels: dict[str, str], detail: dict[str, Any]) -> Iterator[Metric]:
    yield from _known(_counter, _REDIS_COUNTERS, labels, detail)
    yield from _known(
        _gauge,
        _REDIS_GAUGES,
        labels,
        {**detail, "unhealed_since_us": float(bool(detail["unhealed_since_us"]))},
    )
    bad = CounterMetricFamily(
        "tailrace_redis_bad_values", "Values that their entity cannot use.", labels=["source", "entity"]
    )
    for entity, count in _bounded(detail["bad"]):
        bad.add_metric([labels["source"], entity], count)
    yield bad


_FLOW_COUNTERS = {
    "applied": ("tailrace_apply_rows", "Changes applied to the target."),
    "guarded": ("tailrace_apply_guarded", "Changes refused by the version guard: older than the row."),
    "batches": ("tailrace_apply_batches", "Target transactions committed."),
}
_FLOW_GAUGES = {
    "parked": ("tailrace_apply_parked_keys", "Keys that are parked, refused by the target."),
    "waiting": ("tailrace_apply_waiting_keys", "Keys that wait for other partitions."),
    "lag_records": ("tailrace_apply_lag_records", "Records in Kafka that are not in the target yet."),
    "lag_s": ("tailrace_apply_lag_seconds", "Age of the oldest of them; 0 when there is none."),
    "held_rows": ("tailrace_apply_held_rows", "Rows that would go, if a person let what is held pass."),
}


def _apply(target: str, detail: dict[str, Any]) -> Iterator[Metric]:
    flows: dict[str, dict[str, Any]] = detail.get("flows") or {}
    for make, names in ((_counter, _FLOW_COUNTERS), (_gauge, _FLOW_GAUGES)):
        for key, (name, text) in names.items():
            family = make(name, text, {}, 0, labels=("target", "flow"))
            for flow, values in flows.items():
                if values.get(key) is not None:
                    family.add_metric([target, flow], values[key])
            yield family


def _run(detail: dict[str, Any]) -> Iterator[Metric]:
    up = GaugeMetricFamily("tailrace_part_up", "1 while the part's process runs.", labels=["part"])
    restarts = CounterMetricFamily(
        "tailrace_part_restarts", "Times the part has been started again.", labels=["part"]
    )
    for part, values in (detail.get("parts") or {}).items():
        up.add_metric([part], float(values.get("pid") is not None))
        restarts.add_metric([part], values.get("restarts", 0))
    yield up
    yield restarts


def _bounded(values: dict[str, float]) -> Iterator[tuple[str, float]]:
    """The first TABLES_LIMIT by name, the rest as `other`."""
    names = sorted(values)
    for name in names[:TABLES_LIMIT]:
        yield name, values[name]
    if len(names) > TABLES_LIMIT:
        yield "other", sum(values[name] for name in names[TABLES_LIMIT:])


def _known(
    make: Callable[..., Any],
    names: dict[str, tuple[str, str]],
    labels: dict[str, str],
    detail: dict[str, Any],
) -> Iterator[Metric]:
    for key, (name, text) in names.items():
        if detail.get(key) is not None:
            yield make(name, text, labels, detail[key])


def _gauge(
    name: str, text: str, values: dict[str, str], value: float, labels: Sequence[str] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels or values))
    if values:
        family.add_metric(list(values.values()), value)
    return family


def _counter(
    name: str, text: str, values: dict[str, str], value: float, labels: Sequence[str] = ()
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=list(labels or values))
    if values:
        family.add_metric(list(values.values()), value)
    return family


def exposition(record: StatusRecord) -> str:
    """What a scrape of a process with this record gives, without the latencies."""
    registry = CollectorRegistry()
    registry.register(RecordCollector(lambda: record))
    return generate_latest(registry).decode()


@contextmanager
def serve(port: int | None, record: Callable[[], StatusRecord], *, host: str = HOST) -> Iterator[int | None]:
    """Serve /metrics from a thread of its own while the body runs; gives the port that is open.

    `port` None or -1: off; 0: any free one. Raises ConfigError when the port is taken.
    """
    if port is None or port < 0:
        yield None
        return
    registry = CollectorRegistry()
    registry.register(RecordCollector(record))
    registry.register(latency)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"metrics cannot be served on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            fix="choose another --metrics-port; 0 takes any free one",
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
