"""How parked keys are shown: as a list, with their changes, as JSON, and in a sentence."""

from __future__ import annotations

import shutil
import sys
from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
import typer

from consumers.apply.queues import Key, event_of
from consumers.targets.base import Parked

NAMED = 5  # keys in a sentence
GAP = "  "  # between columns
_HEADS = ("key", "table", "flow", "changes", "since", "attempts", "reason")
_NUMBERS = ("changes", "attempts")

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
    """Keys that the source has no more, and the target may have: the last that waits is a delete, and the
    first is not the row's insert, before which there was none."""
    return {
        key: entries for key, entries in found.items() if _op(entries[-1]) == "d" and _op(entries[0]) != "c"
    }


def _op(entry: Parked) -> str:
    return event_of(entry).change.op if entry.decodes else ""


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


def print_list(found: Queues) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines(found, width):
        typer.echo(line)


def lines(found: Queues, width: int | None) -> list[str]:
    """A line a key, with the reason below it where that would be wider than a screen of `width` columns.

    Nothing is cut or wrapped here: what a terminal wraps by itself can still be copied whole.
    """
    rows = [_HEADS, *(_row(key, entries) for key, entries in found.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    heads = [
        GAP.join(
            text.rjust(room) if name in _NUMBERS else text.ljust(room)
            for name, text, room in zip(_HEADS, row, widths, strict=False)
        )
        for row in rows
    ]
    whole = [f"{head}{GAP}{row[-1]}" for head, row in zip(heads, rows, strict=True)]
    if width is None or max(map(len, whole)) <= width:
        return whole
    below = [[head.rstrip(), f"{GAP}{row[-1]}"] for head, row in zip(heads[1:], rows[1:], strict=True)]
    return [heads[0].rstrip(), *(line for both in below for line in both)]


def _row(key: Key, entries: list[Parked]) -> tuple[str, ...]:
    head = entries[0]
    reason = f"{head.code}: {head.message}"
    if head.waiting:
        reason = f"waits for other partitions: {reason}"
    if head.asked:
        reason = f"{head.asked} asked by {head.asked_by}; {reason}"
    return (
        _printed(key.key.decode(errors="replace")),
        _printed(f"{head.schema}.{head.table}"),
        key.place.flow,
        str(len(entries)),
        _time(head.parked_us),
        str(head.attempts),
        _printed(" ".join(reason.split())),
    )


def _printed(text: str) -> str:
    """What is not ours moves no cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
