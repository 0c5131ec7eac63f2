"""What `status` shows of a source, and what it has to tell of one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from shlex import quote
from typing import Any

from consumers.views.amounts import UNKNOWN, size
from consumers.views.findings import Finding, Grade
from consumers.views.parts import Part, state_of
from streamer.changes.lsn import format_lsn
from streamer.changes.topics import bad_topic
from streamer.config import PostgresSource, RedisSource
from streamer.status import State

BAD_NOTE_S = 3600.0  # so long nobody looks; a value that is still bad is found again by the next rescan
BAD_ENTITIES_LIMIT = 3  # named in the note; the topic has all


def source_view(
    name: str, source: PostgresSource | RedisSource, part: Part, findings: list[Finding]
) -> dict[str, Any]:
    """`name`: the config's."""
    record = part.speaker
    live = record is not None and part.live(record)
    detail = record.detail if record is not None else {}
    known = detail if live else {}
    lsn = detail.get("lsn")
    wal_bytes = (known.get("slot") or {}).get("wal_bytes")
    notes = list(known.get("findings") or ())
    slot = source.slot if isinstance(source, PostgresSource) else None
    if slot is not None and wal_bytes is not None and wal_bytes >= slot.wal_warn_bytes:
        notes.insert(
            0,
            f"the slot {slot.name} keeps {size(wal_bytes)} of WAL at the source, "
            f"wal_warn is {size(slot.wal_warn_bytes)}: look why nothing is confirmed",
        )
    backfills = list(known.get("backfills") or ())
    failed = [_failed(backfill) for backfill in backfills if backfill["state"] == "failed"]
    bad = _bad_values(bad_topic(name, source.name), detail, part.at_us)
    told = [(Grade.AT_RISK, note) for note in notes] + [(Grade.UNDONE, note) for note in failed]
    told += [(Grade.SET_ASIDE, bad)] if bad else []
    findings += [Finding(grade, f"source {source.name}", f"{source.name}: {note}") for grade, note in told]
    return {
        "name": source.name,
        "state": state_of(part, record),
        "reason": record.reason if record is not None else "",
        "since_us": record.since_us if record is not None else None,
        "instance": record.instance if record is not None else None,
        "standbys": sum(r.state == State.STANDBY for r in part.living),
        "epoch": detail.get("epoch"),
        "lsn": _place_in(source, lsn) if isinstance(lsn, int) else None,
        "lag_bytes": known.get("lag_bytes"),
        "lag_s": known.get("lag_s"),
        "published": detail.get("published"),
        "rate": known.get("rate"),
        "slot_wal_bytes": wal_bytes,
        "wal_warn_bytes": slot.wal_warn_bytes if slot is not None else None,
        "snapshot": known.get("snapshot"),
        "scan": known.get("scan"),
        "gaps": list(known.get("gaps") or ()),
        "backfills": backfills,
        "findings": [note for _, note in told],
    }


def _failed(backfill: Mapping[str, Any]) -> str:
    return (
        f"the backfill of {backfill['table']} failed: {backfill['reason']}\n  -> when that is mended:"
        f" `tailrace backfills resume {quote(backfill['run'])}`; or"
        f" `tailrace backfills cancel {quote(backfill['run'])}`"
    )


def _bad_values(topic: str, detail: Mapping[str, Any], at_us: int) -> str:
    """What a Redis source's capture could not use, as long as it is recent."""
    last_us = detail.get("bad_last_us")
    if last_us is None or at_us - last_us > BAD_NOTE_S * 1e6:
        return ""
    entities = sorted(detail["bad"].items(), key=lambda item: -item[1])
    named = ", ".join(f"{entity} {count:,}" for entity, count in entities[:BAD_ENTITIES_LIMIT])
    more = f" and {len(entities) - BAD_ENTITIES_LIMIT} more" if len(entities) > BAD_ENTITIES_LIMIT else ""
    count = sum(count for _, count in entities)
    last = datetime.fromtimestamp(last_us / 1e6, UTC).isoformat(timespec="seconds")
    what = "1 value could not be used" if count == 1 else f"{count:,} values could not be used"
    return f"{what} ({named}{more}), the last at {last}: see the topic {topic}"


def _place_in(source: PostgresSource | RedisSource, lsn: int) -> str:
    """How far the source is published, as its people write it: an LSN, or the server's time."""
    if isinstance(source, PostgresSource):
        return format_lsn(lsn)
    return datetime.fromtimestamp(lsn / 1e6, UTC).isoformat(timespec="seconds") if lsn else UNKNOWN
