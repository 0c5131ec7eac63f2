"""What an operator does about parked keys: look at them, or mark them for the apply process that owns them.

Nothing is applied here: only the owner of a partition writes its keys. It looks for marks once a second.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import time
from binascii import b2a_base64
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumers.apply.queues import Key
from consumers.targets.base import Parked, Target
from consumers.targets.registry import make_target
from streamer.cli import print_json
from streamer.config import Config, load
from streamer.config.base import no_such
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, ConfigError

POLL_S = 0.5  # between two looks for the outcome

Queues = dict[Key, list[Parked]]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which keys are meant; an empty text means all."""

    flow: str = ""
    table: str = ""
    key: str = ""
    reason: str = ""

    @property
    def is_any(self) -> bool:
        return not (self.flow or self.table or self.key or self.reason)

    def fits(self, head: Parked) -> bool:
        table = f"{head.schema}.{head.table}"
        return (
            self.flow in ("", head.place.flow)
            and (not self.table or fnmatchcase(table, self.table) or fnmatchcase(head.table, self.table))
            and (not self.key or self.key in _spellings(head.key))
            and (self.reason in ("", head.code) or self.reason.lower() in head.message.lower())
        )


def _spellings(key: bytes) -> set[str]:
    """The key as in Kafka; and the value alone of a key of one column."""
    text = key.decode(errors="replace")
    found = {text}
    try:
        value = orjson.loads(key)
    except ValueError:
        return found
    found.add(orjson.dumps(value).decode())
    if isinstance(value, dict) and len(value) == 1:
        (alone,) = value.values()
        found |= {orjson.dumps(alone).decode(), str(alone)}
    return found


def show(path: Path, target: str, wanted: Filter, *, as_json: bool, whole: bool) -> None:
    """`whole`: with the changes themselves."""
    found = uvloop.run(_read(load(path), target, wanted))
    if as_json:
        print_json([_plain(key, entries, whole=whole) for key, entries in found.items()])
    elif not found:
        typer.echo("nothing is parked" if wanted.is_any else "nothing that is parked fits")
    elif whole:
        for key, entries in found.items():
            _print_queue(key, entries)
    else:
        Console().print(_table(found))


async def _read(config: Config, name: str, wanted: Filter) -> Queues:
    async with opened(config, name) as target:
        return await _queues(target, wanted)


@asynccontextmanager
async def opened(config: Config, name: str) -> AsyncIterator[Target]:
    settings = config.targets.get(name)
    if settings is None:
        raise no_such("target", name, config.targets, config.path)
    flows = [flow for flow in config.flows.values() if flow.target == name]
    target = make_target(settings, f"{config.name}.{name}", flows)
    await target.open()
    try:
        yield target
    finally:
        await target.close()


async def _queues(target: Target, wanted: Filter) -> Queues:
    found: Queues = {}
    for entry in await target.parked():
        found.setdefault(Key(entry.place, entry.key), []).append(entry)
    return {key: entries for key, entries in found.items() if wanted.fits(entries[0])}


# Marks and their outcome


def ask(
    path: Path,
    target: str,
    action: str,
    wanted: Filter,
    *,
    dry_run: bool,
    wait_s: float,
    as_json: bool,
    sure: bool,
) -> int:
    """The exit code. `sure`: without a filter, too."""
    if wanted.is_any and not sure and not dry_run:
        raise ConfigError(
            f"`dead-letters {action}` without a filter means every parked key of {target!r}",
            fix="say which (--flow, --table, --key, --reason), or --yes for all; --dry-run lists them",
        )
    config = load(path)
    if dry_run:
        found = uvloop.run(_read(config, target, wanted))
        if as_json:
            keys = [_plain(key, entries, whole=False) for key, entries in found.items()]
            print_json({"action": action, "dry_run": True, "keys": keys})
        else:
            typer.echo(f"{action} would be of {_count(len(found), 'key')}")
            if found:
                Console().print(_table(found))
        return EXIT_OK
    outcome = uvloop.run(_ask(config, target, action, wanted, wait_s))
    if as_json:
        print_json(outcome.plain(action))
    else:
        outcome.tell(action, target)
    return outcome.exit_code


@dataclass(slots=True)
class Outcome:
    done: list[Key]
    refused: Queues
    unanswered: list[Key]

    @property
    def exit_code(self) -> int:
        if self.unanswered:
            return EXIT_INCOMPLETE
        return EXIT_FINDING if self.refused else EXIT_OK

    def plain(self, action: str) -> dict[str, Any]:
        return {
            "action": action,
            "dry_run": False,
            "done": len(self.done),
            "refused": [_plain(key, entries, whole=False) for key, entries in self.refused.items()],
            "unanswered": len(self.unanswered),
        }

    def tell(self, action: str, target: str) -> None:
        if not (self.done or self.refused or self.unanswered):
            typer.echo("nothing that is parked fits")
        if self.done:
            typer.echo(f"{_count(len(self.done), 'key')} {'applied' if action == 'retry' else 'discarded'}")
        if self.refused:
            typer.echo(f"{_count(len(self.refused), 'key')} refused again:")
            Console().print(_table(self.refused))
        if self.unanswered:
            typer.echo(
                f"{_count(len(self.unanswered), 'key')} not answered: no apply process of {target} has these"
                f" partitions now. They stay marked, and the next one does it: tailrace apply {target}",
                err=True,
            )


async def _ask(config: Config, name: str, action: str, wanted: Filter, wait_s: float) -> Outcome:
    who = operator()
    async with opened(config, name) as target:
        open_ = await _queues(target, wanted)
        outcome = Outcome([], {}, [])
        if not open_:
            return outcome
        await target.ask(open_, action, who)
        deadline_s = time.monotonic() + wait_s
        while open_ and time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            now = await _queues(target, Filter())
            lapsed = []
            for key, before in list(open_.items()):
                entries = now.get(key)
                if entries is None:
                    outcome.done.append(key)
                elif entries[0].asked:
                    continue
                elif entries[0].attempts > before[0].attempts:
                    outcome.refused[key] = entries
                else:  # a newer change took the queue's place, and the mark with it
                    lapsed.append(key)
                    continue
                del open_[key]
            if lapsed:
                await target.ask(lapsed, action, who)
        outcome.unanswered = list(open_)
        return outcome


def operator() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


# What is printed


def _plain(key: Key, entries: list[Parked], *, whole: bool) -> dict[str, Any]:
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


def _table(found: Queues) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("key", "table", "flow", "changes", "since", "attempts", "reason"):
        table.add_column(
            name, overflow="fold", justify="right" if name in ("changes", "attempts") else "left"
        )
    for key, entries in found.items():
        head = entries[0]
        reason = f"{head.code}: {head.message}"
        if head.waiting:
            reason = f"waits for other partitions: {reason}"
        if head.asked:
            reason = f"{head.asked} asked by {head.asked_by}; {reason}"
        table.add_row(
            Text(key.key.decode(errors="replace")),  # what is not ours is no markup
            Text(f"{head.schema}.{head.table}"),
            key.place.flow,
            str(len(entries)),
            _time(head.parked_us),
            str(head.attempts),
            Text(reason),
        )
    return table


def _print_queue(key: Key, entries: Iterable[Parked]) -> None:
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
