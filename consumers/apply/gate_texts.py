"""What a gate says: to people, in the heartbeat, and as the record of what was refused. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from consumers.apply.checkpoint import Place
from consumers.apply.dead_letters import REFUSED, DeadLetter
from consumers.apply.fold import Event, Write
from consumers.apply.pauses import utc_text
from consumers.apply.queues import names_of, payload_of, table_name
from consumers.targets.base import Gate
from streamer.changes.schema import SchemaRecord

TRUNCATE, DELETES, FLOOR = "truncate", "deletes", "floor"  # kinds of gates
FLOOR_ROWS_LIMIT = 1_000_000  # rows that a floor would take are counted so far: more is no more urgent


def letters_of(
    place: Place, events: Iterable[Event], decision: Gate, records: Mapping[str, SchemaRecord]
) -> list[DeadLetter]:
    """Of changes that a person has refused: the record that they were there."""
    message = f"refused by {decision.decided_by}: {text_of(decision)}"
    letters = []
    for key, change, offset, _ in events:
        record = records.get(change.schema_id)
        table = table_name(*names_of(place.topic, record))
        row = (change.before if change.op == "d" else None) or {}
        payload = payload_of(Write(row, change, offset), record, created=False)
        letters.append(
            DeadLetter(place, offset, key, table, decision.kind, message, change.version, payload, REFUSED)
        )
    return letters


def text_of(gate: Gate) -> str:
    """The numbers: 100,000 of 100,000 rows of public.customers would be deleted."""
    table = gate.topic.partition(".")[2] or gate.topic
    rows = f"{min(gate.rows, gate.table_rows):,} of {gate.table_rows:,} rows"
    if gate.kind in (TRUNCATE, FLOOR) and FLOOR_ROWS_LIMIT <= gate.rows < gate.table_rows:
        rows = f"at least {rows}"
    if gate.kind == TRUNCATE:
        return f"a truncate: {rows} of {table} would be deleted"
    if gate.kind == FLOOR:
        return f"the new copy of the source lacks {rows} of {table}, which would be deleted"
    rows = f"at least {rows}" if gate.rows < gate.table_rows else rows
    return f"{rows} of {table} would be deleted"


def decision_of(gate: Gate) -> str:
    """Of a decided one: refused by ann@host at 2026-11-23 10:00:00 UTC."""
    return f"{gate.state} by {gate.decided_by} at {utc_text(gate.up_to_us)}"


def advice_of(flow: str) -> str:
    return f"`tailrace approve {flow}` or `tailrace refuse {flow}`"


def reason_of(gates: Iterable[Gate]) -> str:
    """Of one flow's gates."""
    found = list(gates)
    limit = any(gate.kind == DELETES for gate in found)
    usual = " (usual here? raise the flow's `hold_deletes_above`)" if limit else ""
    return f"{'; '.join(text_of(gate) for gate in found)}; {advice_of(found[0].flow)}{usual}"


def detail_of(gate: Gate) -> dict[str, Any]:
    """For the heartbeat, see docs/status.md."""
    return {
        "topic": gate.topic,
        "kind": gate.kind,
        "rows": gate.rows,
        "table_rows": gate.table_rows,
        "since_us": gate.since_us,
    }
