"""`tailrace why`: where one row is."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import typer
import uvloop

from consumers.commands.tail import line_of, plain
from consumers.views import duration
from consumers.why import Answer, RowValues, why
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import load
from streamer.errors import EXIT_FINDING, EXIT_OK
from streamer.status import now_us

WELL = ("equal", "absent", "on_its_way")
VALUE_WIDTH = 60  # characters of a value in a line; --json has all


def show(path: Path, table: str, key: str, *, as_json: bool) -> int:
    """The exit code: 1 when a target has not what the source has, and it is not on its way."""
    config = load(path)

    async def answers() -> list[Answer]:
        async with aclosing(why(config, brokers_of(config), table, key)) as found:
            return [answer async for answer in found]

    found = uvloop.run(answers())
    if as_json:
        print_json([_plain(answer) for answer in found])
    else:
        typer.echo("\n\n".join("\n".join(_lines(answer)) for answer in found))
    return EXIT_OK if all(answer.state in WELL for answer in found) else EXIT_FINDING


def _plain(answer: Answer) -> dict[str, Any]:
    def row(found: RowValues | None) -> dict[str, Any] | None:
        return None if found is None else {"values": found.values, "stamp": found.stamp}

    return {
        **{name: getattr(answer, name) for name in ("flow", "source", "target", "key", "state", "text")},
        "source_row": row(answer.source_row),
        "target_row": row(answer.target_row),
        "columns": answer.columns,
        "events": [plain(record) for record in answer.events],
        "checkpoint": {str(partition): offset for partition, offset in answer.checkpoint.items()},
        "parked": [
            {
                "code": each.code,
                "message": each.message,
                "attempts": each.attempts,
                "parked_us": each.parked_us,
            }
            for each in answer.parked
        ],
        "held": [{"kind": gate.kind, "rows": gate.rows, "since_us": gate.since_us} for gate in answer.held],
        "paused": None if answer.paused is None else answer.paused.detail,
        "proof": answer.proof,
        "notes": answer.notes,
    }


def _lines(answer: Answer) -> list[str]:
    key = " ".join(f"{name}={value}" for name, value in answer.key.items())
    found = [f"flow {answer.flow}: {answer.source} {key} -> {answer.target}"]
    found.append(f"{answer.state.upper().replace('_', ' ')}: {answer.text}")
    if answer.key:
        found += [f"  source  {_row(answer.source_row)}", f"  target  {_row(answer.target_row)}"]
    for record in answer.events:
        applied = record.offset < answer.checkpoint.get(record.partition, 0)
        found.append(f"  event   {line_of(record, 0)}{'' if applied else '  (not applied yet)'}")
    if not answer.events and answer.key:
        found.append("  event   none in the log any more: `tailrace backfill` publishes a row again")
    if answer.proof is not None:
        ago = duration((now_us() - answer.proof["ended_us"]) / 1e6)
        found.append(f"  proof   {answer.proof['verdict']} {ago} ago, run {answer.proof['run']}")
    elif answer.key:
        found.append(f"  proof   none: `tailrace reconcile {answer.flow}`")
    return found + [f"  note    {note}" for note in answer.notes]


def _row(row: RowValues | None) -> str:
    if row is None:
        return "-"
    return " ".join(f"{name}={_short(value)}" for name, value in row.values.items())


def _short(value: str | None) -> str:
    if value is None:
        return "null"
    text = "".join(c if c.isprintable() else " " for c in value)
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"
