"""Heartbeats of a config's parts, and what status makes of them."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from consumers import screens, views
from streamer.config import Config
from streamer.status import StatusRecord

NOW_US = 1_800_000_000_000_000
S = 1_000_000

CONFIG = """
name: acme
kafka: {brokers: "localhost:9092"}
sources:
  shop: {kind: postgres, url: "postgresql://u:secret@h/db", tables: {"public.*": {}}, slot: {wal_warn: 1MiB}}
targets:
  warehouse: {kind: postgres, url: "postgresql://u:secret@h/db"}
flows:
  mirror: {from: "shop.public.*", to: warehouse.mirror}
"""


def record(part: str, **changes: Any) -> StatusRecord:
    kind, name = part.split(":")
    fields: dict[str, Any] = {
        "part": part,
        "kind": kind,
        "name": name,
        "instance": "host-1",
        "pid": 1,
        "host": "host",
        "started_us": NOW_US - 100 * S,
        "at_us": NOW_US,
        "seen_us": NOW_US,
        "state": "streaming",
    }
    return StatusRecord(**{**fields, **changes})


def capture(**changes: Any) -> StatusRecord:
    detail = {
        "epoch": 1,
        "lsn": 0x1_00000010,
        "lag_bytes": 0,
        "lag_s": 0.0,
        "published": 12,
        "rate": 3.0,
        "tables": {"public.orders": {"captured": 10}, "other.orders": {"captured": 2}},
        "slot": {"wal_bytes": 100, "active": True},
        "findings": [],
        "snapshot": None,
    }
    return record("capture:shop", **{"detail": {**detail, **changes.pop("detail", {})}, **changes})


def apply(flow: dict[str, Any] | None = None, **changes: Any) -> StatusRecord:
    detail = {
        "applied": 10,
        "guarded": 0,
        "rate": 3.0,
        "lag_records": 4,
        "lag_s": 0.5,
        "latency_ms": {"p50": 5.0, "p99": 9.0, "capture_p50": 1.0, "capture_p99": 2.0},
        "partitions": [
            {
                "topic": "shop.public.orders",
                "partition": 0,
                "offset": 6,
                "end": 10,
                "lag_records": 4,
                "lag_s": 0.5,
            }
        ],
        "state": "streaming",
        "reason": "",
    }
    return record(
        "apply:warehouse", **{"detail": {"flows": {"mirror": {**detail, **(flow or {})}}}, **changes}
    )


def build(config: Config, *records: StatusRecord) -> views.Status:
    return views.build(config, records, NOW_US)


def text(status: views.Status, width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(screens.status_screen(status))
    console.print(screens.lag_screen(status, views.lag(status)))
    return console.export_text()
