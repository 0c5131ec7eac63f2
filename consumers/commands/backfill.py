"""`tailrace backfill SOURCE [TABLE...]`: asks for runs, and follows them until they are over.

The source's capture does the work; what is asked for is in Kafka, so that this process may go at any time.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import uvloop
from pydantic_core import PydanticCustomError
from rich.console import Console
from rich.live import Live

from consumers.asker import operator
from consumers.commands import backfill_screen as screen
from consumers.commands.backfill_tables import Place, choose
from consumers.key_file import read_keys
from consumers.views import places
from consumers.views.backfills import Pace, run_view
from consumers.views.parts import Part, shown
from consumers.views.strangers import parted
from streamer.backfills import ask, follow
from streamer.changes.backfill import Key, Request, Run, Runs, State, manual_run
from streamer.changes.topics import status_topic
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import Config, PostgresSource, RedisSource, load
from streamer.config.base import no_such
from streamer.config.units import parse_rate
from streamer.errors import (
    EXIT_FINDING,
    EXIT_INCOMPLETE,
    EXIT_OK,
    ConfigError,
    RetryableError,
    SourceUnavailable,
)
from streamer.postgres.condition import check_condition
from streamer.runner import captured_source
from streamer.status import State as PartState
from streamer.status import StatusReader, now_us, read_status
from streamer.stopping import end_tasks

FOLLOW_MS = 500  # how often a screen is drawn, at most
LINE_S = 5.0  # between two lines of a run that goes on, where there is no terminal
CAPTURE_LOOK_S = 2.0  # a capture that has gone is said within seconds
RETRY_S = 2.0  # following outlives a Kafka that is away
RATE_LIMIT = 10_000_000  # rows a second: beyond every source; a larger number is a slip


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says."""

    source: str
    tables: Sequence[str]
    all: bool = False
    where: str = ""
    keys: str = ""
    rate: str = ""
    delete_missing: bool = False
    detach: bool = False


def backfill(path: Path, wanted: Wish, *, as_json: bool) -> int:
    """The exit code: 1 when a run failed or was cancelled, 3 when it was left running by Ctrl-C."""
    config = load(path)
    rate = check(config, wanted)
    brokers = brokers_of(config)
    runs: list[Run] = []
    try:
        runs += uvloop.run(_ask(config, brokers, wanted, rate, told=_told(as_json, wanted)))
        if wanted.detach:
            return EXIT_OK
        return uvloop.run(Following(config, brokers, runs, as_json=as_json).run())
    except KeyboardInterrupt:
        if not runs:
            raise
        typer.echo(screen.left_running(runs), err=True)
        return EXIT_INCOMPLETE


def check(config: Config, wanted: Wish) -> int | None:
    """What can be said before anything is connected; gives rows a second. Raises ConfigError."""
    if wanted.source not in config.sources:
        raise no_such("source", wanted.source, config.sources, config.path)
    source = captured_source(config, wanted.source)
    if not wanted.tables and not wanted.all:
        kind = "an entity" if isinstance(source, RedisSource) else "a table"
        raise ConfigError(f"which rows? name {kind} of {source.name}", fix=_names(source))
    if wanted.tables and wanted.all:
        raise ConfigError("--all takes every table: name none beside it", fix="leave one of the two out")
    alone = len(wanted.tables) == 1
    if wanted.where and wanted.keys:
        raise ConfigError("--where and --keys both say which rows", fix="leave one of the two out")
    if wanted.where and isinstance(source, RedisSource):
        raise ConfigError(
            f"{source.name} is a Redis source, which has no SQL for --where",
            fix="name its keys in a file: --keys FILE; or take the whole entity",
        )
    for option, given in (("--where", wanted.where), ("--keys", wanted.keys)):
        if given and not alone:
            raise ConfigError(f"{option} is of one table", fix="name one table, and ask for each by itself")
    if wanted.where:
        check_condition(wanted.where, "--where")
    if wanted.delete_missing and not wanted.keys:
        raise ConfigError(
            "--delete-missing deletes of given keys those that the source lacks",
            fix="name the keys: --keys FILE",
        )
    return _rate(wanted.rate) if wanted.rate else None


def _names(source: PostgresSource | RedisSource) -> str:
    if isinstance(source, RedisSource):
        return f"its entities: {', '.join(source.entities)}; or --all"
    return "such as public.orders; or --all of its tables"


_RATE_FIX = "write rows a second: 5000/s; without --rate there is no limit"


def _rate(text: str) -> int:
    try:
        found = parse_rate(text)
    except PydanticCustomError:
        raise ConfigError(f"--rate {text!r} is not a rate", fix=_RATE_FIX) from None
    if not 1 <= found <= RATE_LIMIT:
        raise ConfigError(
            f"--rate {text!r} is not from 1 to {RATE_LIMIT:,} rows a second",
            fix=_RATE_FIX,
        )
    return int(found)


async def _ask(
    config: Config, brokers: str, wanted: Wish, rate: int | None, *, told: Callable[[Run], None]
) -> list[Run]:
    source = captured_source(config, wanted.source)
    away = await _capture_trouble(config, brokers, source.name)
    if away and not wanted.detach:
        raise SourceUnavailable(
            f"nobody would do it: {away}",
            fix=f"start it with `tailrace run`, or `tailrace capture {source.name}`;"
            " or ask for it with --detach, and it is done when a capture runs",
        )
    chosen = await choose(config, brokers, source, wanted.tables, all_=wanted.all)
    for why in chosen.passed:
        typer.echo(f"left out: {why}", err=True)
    if not chosen.places:
        raise ConfigError(f"{source.name} has no table to publish again", fix="see `tailrace doctor`")
    keys = _keys(wanted, chosen.places[0])
    runs = []
    for place in chosen.places:
        request = Request(
            manual_run(now_us(), secrets.randbits(16)),
            source.name,
            schema=place.schema,
            table=place.table,
            entity=place.entity,
            where=wanted.where or None,
            keyed=keys is not None,
            deletes=wanted.delete_missing,
            rate=rate,
            by=operator(),
            asked_us=now_us(),
        )
        factor = config.kafka.topics.replication_factor
        run = await ask(brokers, config.kafka.security, config.name, request, keys, replication_factor=factor)
        runs.append(run)
        told(run)
    if away:
        typer.echo(f"it waits: {away}", err=True)
    return runs


def _keys(wanted: Wish, place: Place) -> list[Key] | None:
    if not wanted.keys:
        return None
    if place.record is None:
        raise ConfigError(
            f"nothing of {place.name} has been published yet, so the form of its keys is not known",
            fix="publish it as a whole: the same command without --keys",
        )
    return read_keys(wanted.keys, place.record)


def _told(as_json: bool, wanted: Wish) -> Callable[[Run], None]:
    def told(run: Run) -> None:
        assert run.request is not None
        if as_json:
            print_json(run_view(run), line=True)
        else:
            typer.echo(f"asked for backfill {run.run} of {run.source} {run.request.place}")

    return told


async def _capture_trouble(config: Config, brokers: str, source: str) -> str:
    """Why nobody would do the work now; empty: a capture of the source runs, or waits for a server."""
    records = await read_status(brokers, config.kafka.security, config.name)
    at_us = now_us()
    name = f"capture:{source}"
    ours, _ = parted(records, places(config))
    return _trouble(Part(name, [r for r in shown(ours, at_us) if r.part == name], at_us))


def _trouble(part: Part) -> str:
    speaker = part.speaker
    if speaker is not None and part.live(speaker) and speaker.state != PartState.ERROR:
        return ""
    name = part.part.partition(":")[2]
    found = part.problem("")
    text = found[1] if found is not None else f"{part.part} does not run"
    reason = text.split("\n", 1)[0].removesuffix(": ")
    return reason if name in reason else f"{name}: {reason}"


class Following:
    """Shows some runs until all of them are over."""

    def __init__(
        self,
        config: Config,
        brokers: str,
        runs: Sequence[Run],
        *,
        as_json: bool,
        console: Console | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._brokers = brokers
        self._source = runs[0].source
        self._runs = {run.run: run for run in runs}
        self._paces = {run.run: Pace() for run in runs}
        self._views = {run.run: run_view(run) for run in runs}
        self._as_json = as_json
        self._console = console or Console()
        self._clock_s = clock_s
        self._trouble = ""
        self._said: dict[str, tuple[tuple[Any, ...], float]] = {}

    async def run(self) -> int:
        """The exit code."""
        if self._as_json or not self._console.is_terminal:
            return await self._follow(self._lines)
        with Live(console=self._console, auto_refresh=False, transient=True) as live:

            def draw() -> None:
                live.update(screen.follow_screen(self._views.values(), self._trouble), refresh=True)

            code = await self._follow(draw)
        for view in self._views.values():
            self._console.print(screen.line(view), highlight=False)
        return code

    async def _follow(self, show: Callable[[], None]) -> int:
        looking = asyncio.create_task(self._look_at_capture(), name="look at the capture")
        try:
            while True:
                try:
                    return await self._read(show)
                except RetryableError as error:
                    self._trouble = str(error).split("\n", 1)[0]
                    show()
                    await asyncio.sleep(RETRY_S)
        finally:
            await end_tasks(looking)

    async def _read(self, show: Callable[[], None]) -> int:
        config = self._config
        async with follow(self._brokers, config.kafka.security, config.name, source=self._source) as follower:
            self._trouble = ""
            while True:
                self._take(follower.runs)
                show()
                states = [State(view["state"]) for view in self._views.values()]
                if all(state.over for state in states):
                    well = all(state is State.DONE for state in states)
                    return EXIT_OK if well else EXIT_FINDING
                await follower.next(FOLLOW_MS)

    def _take(self, runs: Runs) -> None:
        for name in self._runs:
            run = runs.by_run.get((self._source, name))
            if run is None or run.request is None:
                continue  # forgotten, as it has been over for a week
            rate = self._paces[name].rows_per_s(run.progress) if run.progress is not None else None
            self._views[name] = run_view(run, rate)

    def _lines(self) -> None:
        """A line when a run's state changes, and now and then while it goes on."""
        now_s = self._clock_s()
        every_s = 1.0 if self._as_json else LINE_S
        for name, view in self._views.items():
            state = view["state"], view["reason"], self._trouble
            known, at_s = self._said.get(name, (None, 0.0))
            moved = (*state, view["rows"]) != known
            if moved and (known is None or known[:3] != state or now_s - at_s >= every_s):
                self._said[name] = (*state, view["rows"]), now_s
                if self._as_json:
                    print_json({**view, "trouble": self._trouble}, line=True)
                else:
                    trouble = f" ({self._trouble})" if self._trouble else ""
                    typer.echo(f"{screen.line(view)}{trouble}")

    async def _look_at_capture(self) -> None:
        config, name = self._config, f"capture:{self._source}"
        its = places(config)
        while True:
            with suppress(RetryableError):  # who follows the runs says it
                async with StatusReader(
                    self._brokers, config.kafka.security, status_topic(config.name)
                ) as topic:
                    while True:
                        await topic.poll()
                        at_us = now_us()
                        ours, _ = parted(topic.records(), its)
                        records = [r for r in shown(ours, at_us) if r.part == name]
                        trouble = _trouble(Part(name, records, at_us))
                        self._trouble = f"{trouble}; it goes on when a capture runs" if trouble else ""
                        await asyncio.sleep(CAPTURE_LOOK_S)
            await asyncio.sleep(RETRY_S)
