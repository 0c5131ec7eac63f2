"""What the capture's heartbeat says of a Redis source (docs/status.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from streamer.changes.position import Stage
from streamer.publisher import Publisher
from streamer.redis.source import Session


def redis_detail(session: Session, publisher: Publisher, now_us: int) -> dict[str, Any]:
    """`lsn` is the server's time in microseconds; null is unknown, which is not zero."""
    journal = session.journal
    detail: dict[str, Any] = {
        "epoch": None,
        "lsn": None,
        "lag_bytes": None,
        "lag_s": None,
        "clock_us": None,
        "published": 0,
        "published_bytes": publisher.published_bytes,
        "flushes": 0,
        "waiting_bytes": publisher.waiting_bytes + publisher.in_flight_bytes,
        "tables": {},
        "findings": [],
        "snapshot": None,
        "scan": None,
        "last_scan": None,
        "waiting_keys": None,
        "keys_read": 0,
        "shadow_rows": None,
        "bad": {},
        "bad_last_us": None,
        "backfills": [],
        "gaps": [gap.plain() for gap in journal.gaps],
        "gaps_seen": journal.seen,
        "unhealed_since_us": journal.unhealed_since_us,
    }
    position = publisher.position
    if position is not None:
        detail["epoch"] = position.epoch
        detail["lsn"] = position.lsn
        detail["since_us"] = position.since_us
    capture = session.capture
    if capture is None:
        return detail
    detail.update(
        lag_s=round(capture.behind_s, 3),
        clock_us=capture.clock_us,
        published=sum(capture.events.published.values()),
        flushes=capture.flushes,
        tables={name: {"captured": count} for name, count in capture.events.published.items()},
        waiting_keys=capture.watch.pending + capture.large.waiting,
        keys_read=capture.reading.keys_read,
        shadow_rows=capture.shadow_rows,
        bad=dict(capture.events.bad),
        bad_last_us=capture.events.bad_last_us,
        last_scan=capture.last_scan,
        backfills=capture.backfill.detail() if capture.backfill is not None else [],
        findings=[*capture.signs.findings, *_findings(session)],
    )
    scan = capture.heal.progress
    if scan is not None:
        seconds = max(1e-6, (now_us - scan.since_us) / 1e6)
        detail["scan"] = {
            "why": scan.why,
            "since_us": scan.since_us,
            "keys": scan.keys,
            "keys_s": round(scan.keys / seconds, 1),
            "suspects": scan.suspects,
            "gone": sum(scan.gone.values()),
            "phase": "reverse pass" if scan.reverse else "scan",
        }
    if capture.position.stage is not Stage.STREAMING:
        rows = detail["published"]
        detail["snapshot"] = {
            "table": "",
            "rows": rows,
            "tables_done": 0,
            "tables": len(session.source.entities),
        }
    return detail


def _findings(session: Session) -> list[str]:
    findings = []
    for gap in session.journal.open:
        since = datetime.fromtimestamp(gap.since_us / 1e6, UTC).isoformat(timespec="seconds")
        findings.append(
            f"changes since {since} may be missing until the scan that runs has ended: {gap.detail}"
        )
    return findings
