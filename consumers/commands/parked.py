"""What an operator does about parked keys: look at them, or mark them for the process that owns them.

Nothing is applied here: only the owner of a partition writes its keys. It looks for marks once a second.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol

import typer
import uvloop

from consumers.apply.queues import Key
from consumers.asker import operator
from consumers.commands.parked_processor import ParkedInProcessor
from consumers.commands.parked_screen import Queues, count, deletes_of, named, plain, print_list, print_queue
from consumers.keys import spellings
from consumers.targets.base import Parked, Target
from consumers.targets.registry import target_of
from streamer.cli import print_json
from streamer.commands.brokers import with_brokers
from streamer.config import Config, load
from streamer.config.base import nearest, no_such
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, ConfigError, TargetUnavailable

Action = Literal["retry", "discard"]

POLL_S = 0.5  # between two looks for the outcome


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

    def __str__(self) -> str:
        given = {"--flow": self.flow, "--table": self.table, "--key": self.key, "--reason": self.reason}
        return " ".join(f"{option} {shlex.quote(value)}" for option, value in given.items() if value)

    def of(self, parked: Queues) -> Queues:
        return {key: entries for key, entries in parked.items() if self.fits(entries[0])}

    def fits(self, head: Parked) -> bool:
        table = f"{head.schema}.{head.table}"
        return (
            self.flow in ("", head.place.flow)
            and (not self.table or fnmatchcase(table, self.table) or fnmatchcase(head.table, self.table))
            and (not self.key or self.key in spellings(head.key))
            and (self.reason in ("", head.code) or self.reason.lower() in head.message.lower())
        )


def show(path: Path, target: str, wanted: Filter, *, as_json: bool, whole: bool) -> int:
    """The exit code. `whole`: with the changes themselves; then a filter that nothing fits is a finding."""
    parked = uvloop.run(_read(load(path), target, wanted))
    found = wanted.of(parked)
    if as_json:
        print_json([plain(key, entries, whole=whole) for key, entries in found.items()])
    elif not found:
        typer.echo(_nothing(target, wanted, parked))
    elif whole:
        for key, entries in found.items():
            print_queue(key, entries)
    else:
        print_list(found)
    return EXIT_OK if found or not whole else EXIT_FINDING


def _nothing(target: str, wanted: Filter, parked: Queues) -> str:
    if not parked:
        return f"nothing is parked in {target}"
    return f"nothing that is parked in {target} fits {wanted}; parked {_are(parked)}: {named(parked)}"


def _are(keys: Queues) -> str:
    return "is" if len(keys) == 1 else "are"


class Parking(Protocol):
    """Where keys are parked."""

    async def parked(self) -> Queues: ...

    async def ask(self, keys: Iterable[Key], action: Literal["retry", "discard"], who: str) -> None: ...


class InTarget:
    """See Parking."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def parked(self) -> Queues:
        found: Queues = {}
        for entry in await self._target.parked():
            found.setdefault(Key(entry.place, entry.key), []).append(entry)
        return found

    async def ask(self, keys: Iterable[Key], action: Literal["retry", "discard"], who: str) -> None:
        await self._target.ask(keys, action, who)


@asynccontextmanager
async def parking(config: Config, name: str, flow: str) -> AsyncIterator[Parking]:
    """`name`: of a target or a processor. Raises ConfigError for a name that is not there."""
    if name in config.processors:
        if flow:
            raise ConfigError(f"{name} is a processor, and has no flows", fix="leave --flow out")
        yield ParkedInProcessor(with_brokers(config), name)
        return
    if name not in config.targets:
        raise no_such("target or processor", name, [*config.targets, *config.processors], config.path)
    async with opened(config, name, flow) as target:
        yield InTarget(target)


async def _read(config: Config, name: str, wanted: Filter) -> Queues:
    async with parking(config, name, wanted.flow) as store:
        return await store.parked()


@asynccontextmanager
async def opened(config: Config, name: str, flow: str = "") -> AsyncIterator[Target]:
    """`flow`: one that must be of this target. Raises ConfigError for a name that is not there."""
    if name not in config.targets:
        raise no_such("target", name, config.targets, config.path)
    flows = [each.name for each in config.flows.values() if each.target == name]
    if flow and flow not in flows:
        fix = nearest(flow, flows)
        raise ConfigError(f"no flow {flow!r} goes to {name}", fix=fix, where=str(config.path))
    target = target_of(config, name)
    try:
        await target.open()
    except TargetUnavailable as error:
        fix = "when it answers again, run the command once more; `tailrace doctor` tries the target"
        raise TargetUnavailable(error.what, where=error.where, fix=fix) from error
    try:
        yield target
    finally:
        await target.close()


# Marks and their outcome


def ask(
    path: Path,
    target: str,
    action: Action,
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
        return _foretell(config, target, action, wanted, as_json=as_json)
    outcome = uvloop.run(_ask(config, target, action, wanted, wait_s))
    if as_json:
        print_json(outcome.plain(action))
    elif outcome.is_empty:
        typer.echo(_nothing(target, wanted, outcome.parked))
    else:
        outcome.tell(action, target)
    return outcome.exit_code


def _foretell(config: Config, target: str, action: str, wanted: Filter, *, as_json: bool) -> int:
    parked = uvloop.run(_read(config, target, wanted))
    found = wanted.of(parked)
    if as_json:
        keys = [plain(key, entries, whole=False) for key, entries in found.items()]
        print_json({"action": action, "dry_run": True, "keys": keys})
    elif not found:
        typer.echo(_nothing(target, wanted, parked))
    else:
        typer.echo(f"{action} would be of {count(len(found), 'key')}")
        print_list(found)
        if action == "discard":
            _tell_deletes(found)
    return EXIT_OK if found else EXIT_FINDING


def _tell_deletes(discarded: Queues) -> None:
    if deletes := deletes_of(discarded):
        typer.echo(
            f"{len(deletes)} of them {'is a delete' if len(deletes) == 1 else 'are deletes'}: discarded, what"
            f" the target has of the row stays although the source has it no more: {named(deletes)}"
        )


@dataclass(slots=True)
class Outcome:
    parked: Queues  # all that was, whether it fits or not
    done: Queues = field(default_factory=dict)
    refused: Queues = field(default_factory=dict)
    unanswered: list[Key] = field(default_factory=list)
    by: str = "apply"  # the kind of process that carries it out

    @property
    def is_empty(self) -> bool:
        return not (self.done or self.refused or self.unanswered)

    @property
    def exit_code(self) -> int:
        if self.unanswered:
            return EXIT_INCOMPLETE
        return EXIT_FINDING if self.refused or self.is_empty else EXIT_OK

    def plain(self, action: str) -> dict[str, Any]:
        left = deletes_of(self.done) if action == "discard" else {}
        return {
            "action": action,
            "dry_run": False,
            "done": len(self.done),
            "rows_left": [plain(key, entries, whole=False) for key, entries in left.items()],
            "refused": [plain(key, entries, whole=False) for key, entries in self.refused.items()],
            "unanswered": len(self.unanswered),
        }

    def tell(self, action: str, target: str) -> None:
        if self.done:
            typer.echo(f"{count(len(self.done), 'key')} {'applied' if action == 'retry' else 'discarded'}")
            if action == "discard":
                _tell_deletes(self.done)
        if self.refused:
            typer.echo(f"{count(len(self.refused), 'key')} refused again:")
            print_list(self.refused)
        if self.unanswered:
            typer.echo(
                f"{count(len(self.unanswered), 'key')} not answered: no {self.by} process of {target} has"
                " these partitions now. They stay marked, and the next one does it:"
                f" tailrace {self.by} {target}",
                err=True,
            )


async def _ask(config: Config, name: str, action: Action, wanted: Filter, wait_s: float) -> Outcome:
    who = operator()
    async with parking(config, name, wanted.flow) as store:
        outcome = Outcome(await store.parked(), by="process" if name in config.processors else "apply")
        open_ = wanted.of(outcome.parked)
        if not open_:
            return outcome
        last = dict(open_)
        await store.ask(open_, action, who)
        deadline_s = time.monotonic() + wait_s
        while open_ and time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            now = await store.parked()
            lapsed = []
            for key, before in list(open_.items()):
                entries = now.get(key)
                if entries is None:
                    outcome.done[key] = last[key]
                elif entries[0].asked:
                    last[key] = entries
                    continue
                elif entries[0].attempts > before[0].attempts:
                    outcome.refused[key] = entries
                else:  # a newer change took the queue's place, and the mark with it
                    last[key] = entries
                    lapsed.append(key)
                    continue
                del open_[key]
            if lapsed:  # what was to be discarded is gone: the newer change is applied as usual
                await store.ask(lapsed, "retry", who)
        outcome.unanswered = list(open_)
        return outcome
