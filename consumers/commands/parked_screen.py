"""How parked keys are shown: as a table, with their changes, as JSON, and in a sentence."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
import typer
from rich.table import Table
from rich.text import Text

from consumers.apply.queues import Key, event_of
from consumers.targets.base import Parked

NAMED = 5  # keys in a sentence

Queues = dict[Key, list[Parked]]


def named(found: Mapping[Key, list[Parked]]) -> str:
    """The first few of them, for a sentence."""
    words = [f"{name_of(key, entries)} [{entries[0].code}]" for key, entries in list(found.items())[:NAMED]]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(words) + more


def name_of(key: Key, entries: list[Parked]) -> str:
    head = entries[0]
    return f"{head.schema}.{head.table} {key.key.decode(errors='replace')}"


def deletes_of(found: Mapping[Key, list[Parked]]) -> Queues:
    """Keys that the source has no more: the last that waits is a delete."""
    return {
        key: entries
        for key, entries in found.items()
        if entries[-1].decodes and event_of(entries[-1]).change.op == "d"
    }


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plain(key: Key, entries: list[Parked], *, whole: bool) -> dict[str, Any]:
    head = entries[0]
    found: dict[str, Any] = {
        "flow": key.place.flow,
        "topic": key.place.topic,
        "partition": key.place.partition,
        "key": key.key.decode(errors="replace"),
        "table": f"{head.schema}.{head.table}",
        "changes": len(entries),
        "waiting": head.waiting,
        "reason": {"code": head.code, "message": head.message},
        "attempts": head.attempts,
        "since_us": head.parked_us,
        "asked": head.asked,
        "asked_by": head.asked_by,
    }
    if whole:
        found["queue"] = [
            {
                "sequence": entry.sequence,
                "offset": entry.offset,
                "version": list(entry.version),
                **_payload(entry),
            }
            for entry in entries
        ]
    return found


def _payload(entry: Parked) -> dict[str, Any]:
    if entry.decodes:
        return {"payload": orjson.Fragment(entry.payload)}
    return {
        "payload": b2a_base64(entry.payload, newline=False).decode(),
        "payload_encoding": "base64",
    }


def table(found: Queues) -> Table:
    lines = Table(box=None, pad_edge=False)
    for name in ("key", "table", "flow", "changes", "since", "attempts", "reason"):
        lines.add_column(
            name, overflow="fold", justify="right" if name in ("changes", "attempts") else "left"
        )
    for key, entries in found.items():
        head = entries[0]
        reason = f"{head.code}: {head.message}"
        if head.waiting:
            reason = f"waits for other partitions: {reason}"
        if head.asked:
            reason = f"{head.asked} asked by {head.asked_by}; {reason}"
        lines.add_row(
            Text(key.key.decode(errors="replace")),  # what is not ours is no markup
            Text(f"{head.schema}.{head.table}"),
            key.place.flow,
            str(len(entries)),
            _time(head.parked_us),
            str(head.attempts),
            Text(reason),
        )
    return lines


def print_queue(key: Key, entries: Iterable[Parked]) -> None:
    entries = list(entries)
    head = entries[0]
    typer.echo(f"{head.schema}.{head.table} {key.key.decode(errors='replace')} (flow {key.place.flow})")
    typer.echo(f"  {head.code}: {head.message}")
    typer.echo(f"  since {_time(head.parked_us)}, attempts {head.attempts}")
    for entry in entries:
        place = f"{key.place.topic}[{key.place.partition}]@{entry.offset}"
        text = entry.payload.decode() if entry.decodes else repr(entry.payload)
        typer.echo(f"  {entry.sequence}. {place}: {text}")


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
