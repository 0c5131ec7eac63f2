"""`tailrace process`: one processor of a config file, or a look at what it would send."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import typer
import uvloop

from consumers.commands.tail import line_of
from consumers.processors import definition_of, rocks
from consumers.processors.dry_run import dry_run
from consumers.processors.opening import StateKind
from consumers.processors.rehearsal import Sent
from consumers.processors.worker import run_processor
from consumers.tail import Record
from streamer.changes.topics import dead_letters_topic
from streamer.cli import print_error, print_json
from streamer.commands.brokers import with_brokers
from streamer.commands.part import run_part
from streamer.config import Config, load
from streamer.config.base import no_such
from streamer.errors import EXIT_FINDING, EXIT_OK
from streamer.status import StatusWriter


def process(path: Path, name: str, *, memory: bool, metrics_port: int, restarts: int, as_json: bool) -> None:
    """Until stopped. `memory`: where RocksDB is not installed, state is kept in memory."""
    config = _loaded(path, name)
    state = state_kind(name, memory=memory)
    config = with_brokers(config)

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        last_word = partial(print_error, as_json=as_json)
        await run_processor(config, name, stop=stop, status=status, state=state, last_word=last_word)

    run_part(config, "process", name, body, metrics_port=metrics_port, restarts=restarts)


def state_kind(name: str, *, memory: bool) -> StateKind:
    """Raises ConfigError: no RocksDB, and nobody has said that memory will do."""
    if rocks.available():
        return "rocksdb"
    if not memory:
        raise rocks.not_installed(f"processor {name}")
    return "memory"


def rehearse(path: Path, name: str, *, from_start: bool, limit: int, as_json: bool) -> int:
    """The exit code: 1 when the agent raised on some of the records."""
    config = with_brokers(_loaded(path, name))
    code = config.processors[name].agent
    definition = definition_of(code, folder=config.base, where=f"processors.{name}.agent")

    async def run() -> int:
        letters = dead_letters_topic(name)
        counts = {"records": 0, "sent": 0, "refused": 0}
        steps = dry_run(config, name, definition, from_start=from_start, limit=limit)
        async with aclosing(steps) as found:
            async for record, sent, inferred in found:
                refused = sum(each.topic == letters for each in sent)
                counts["records"] += 1
                counts["refused"] += refused
                counts["sent"] += len(sent) - refused
                if as_json:
                    print_json(_plain(record, sent, letters, inferred), line=True)
                else:
                    for line in _lines(record, sent, letters, inferred):
                        typer.echo(line)
        if not as_json:
            typer.echo(_summary(counts, "first" if from_start else "last"))
        return EXIT_FINDING if counts["refused"] else EXIT_OK

    return uvloop.run(run())


def _loaded(path: Path, name: str) -> Config:
    config = load(path)
    if name not in config.processors:
        raise no_such("processor", name, config.processors, config.path)
    return config


def _summary(counts: dict[str, int], which: str) -> str:
    of = f"{counts['records']:,} records" if counts["records"] != 1 else "record"
    text = f"of the {which} {of}: {counts['sent']:,} would be sent"
    if counts["refused"]:
        text += f", {counts['refused']:,} refused"
    return f"{text}; nothing was sent or kept, and the state began empty"


def _plain(record: Record, sent: list[Sent], letters: str, inferred: list[str]) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "key": _text(record.key),
        "sent": [
            {
                "topic": each.topic,
                "key": _text(each.key),
                "value": _value(each),
            }
            for each in sent
            if each.topic != letters
        ],
        "refused": [each.event["reason"] for each in sent if each.topic == letters and each.event],
        "inferred": inferred,
    }


def _lines(record: Record, sent: list[Sent], letters: str, inferred: list[str]) -> list[str]:
    lines = [f"{record.topic}  {line_of(record, 0)}"]
    lines += [f"  !  {said}" for said in inferred]
    for each in sent:
        event = each.event
        if each.value is None:
            lines.append(f"  -> {each.topic}  {_text(each.key)}  tombstone")
        elif event is None:
            lines.append(f"  -> {each.topic}  {_text(each.key)}  {_text(each.value)}".rstrip())
        elif each.topic == letters:
            lines.append(f"  !  refused: {event['reason']['message']} [{event['reason']['code']}]")
        else:
            row = "" if event.get("after") is None else orjson.dumps(event["after"]).decode()
            lines.append(f"  -> {each.topic}  {event['op']}  {_text(each.key)}  {row}".rstrip())
    return lines


def _value(sent: Sent) -> Any:
    """A message without an envelope is bytes: shown as JSON where they are an object or an array, else as
    text, so that `null` is no tombstone."""
    value = sent.value
    if value is None:
        return None
    if sent.is_plain:
        try:
            if not isinstance(orjson.loads(value), dict | list):
                return _text(value)
        except orjson.JSONDecodeError:
            return _text(value)
    return orjson.Fragment(value)


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")
