"""What the capture's heartbeat says: position, lag, tables, slot, findings (docs/status.md)."""

from __future__ import annotations

from typing import Any

from streamer.postgres.source import Session
from streamer.publisher import Publisher

DECODING_BYTES = 2**20  # WAL between two keepalives of an idle stream is far below


def capture_detail(session: Session, publisher: Publisher, now_us: int) -> dict[str, Any]:
    """LSNs as ints, lag in bytes and seconds; null is unknown, which is not zero."""
    detail: dict[str, Any] = {
        "epoch": None,
        "lsn": None,
        "server_lsn": None,
        "lag_bytes": None,
        "lag_s": None,
        "clock_us": None,
        "published": 0,
        "published_bytes": publisher.published_bytes,
        "copied": sum(session.copied.values()),
        "flushes": 0,
        "waiting_bytes": publisher.waiting_bytes + publisher.in_flight_bytes,
        "tables": {name: {"captured": rows} for name, rows in session.copied.items()},
        "slot": {"wal_bytes": None, "active": None},
        "findings": [],
        "snapshot": None,
        "backfills": session.backfill.detail() if session.backfill is not None else [],
    }
    position = publisher.position
    if position is not None:
        detail["epoch"] = position.epoch
        detail["lsn"] = position.lsn
        detail["since_us"] = position.since_us
    watch = session.watch
    if watch is not None and watch.observed.server_lsn:
        observed = watch.observed
        detail["server_lsn"] = observed.server_lsn
        detail["clock_us"] = observed.clock_us
        detail["slot"] = {"wal_bytes": observed.slot_bytes, "active": observed.slot_active}
        detail["findings"] = list(observed.findings)
        detail["looks"] = observed.looks
    copying = session.copying
    if copying is not None:
        detail["snapshot"] = {
            "table": copying.table,
            "rows": copying.rows,
            "tables_done": copying.tables_done,
            "tables": copying.tables,
        }
    stream, transactions = session.streaming, session.transactions
    if stream is not None and transactions is not None and watch is not None:
        recorded = stream.progress.recorded
        detail["lsn"] = recorded.lsn
        detail["flushes"] = stream.progress.flushes
        detail["published"] = transactions.events + detail["copied"]
        for name, rows in transactions.captured().items():
            detail["tables"][name] = {"captured": rows + session.copied.get(name, 0)}
        if watch.observed.server_lsn:
            detail["lag_bytes"] = max(0, watch.observed.server_lsn - recorded.lsn)
        drained = stream.progress.drained and not publisher.waiting_records and not publisher.in_flight_bytes
        # A server that still decodes what it wrote long ago has sent nothing yet: not the same as idle.
        idle = drained and (detail["lag_bytes"] or 0) < DECODING_BYTES
        commit_us = transactions.commit_us or transactions.last_commit_us
        behind_us = 0 if idle else now_us + watch.observed.clock_us - commit_us
        if idle or commit_us:
            detail["lag_s"] = round(max(0, behind_us) / 1e6, 3)
    return detail
