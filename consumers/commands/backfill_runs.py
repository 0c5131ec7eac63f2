"""`tailrace backfills`: the runs that were asked for; each can be paused, resumed and cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer
import uvloop
from rich.console import Console

from consumers.asker import operator
from consumers.commands.backfill_screen import line, list_screen
from consumers.views.backfills import run_view
from streamer.backfills import follow, read_runs, wish
from streamer.changes.backfill import Run, State, Wanted
from streamer.cli import print_json
from streamer.commands.brokers import brokers_of
from streamer.config import Config, load
from streamer.config.base import nearest, no_such
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, ConfigError
from streamer.status import now_us

ANSWER_S = 10.0  # a capture sees a wish within a second; one that is busy with a chunk a little later


_LIST = "list"
_WISHES = {"pause": Wanted.PAUSE, "resume": Wanted.RUN, "cancel": Wanted.CANCEL}


def act(path: Path, action: str, run: str, *, source: str, as_json: bool) -> int:
    """The exit code."""
    if action not in (_LIST, *_WISHES):
        raise ConfigError(f"backfills can not {action!r}", fix=nearest(action, [_LIST, *_WISHES]))
    if action == _LIST:
        if run:
            raise ConfigError(
                f"`list` takes no run ({run!r})", fix="--source SOURCE lists those of one source"
            )
        return list_runs(path, source, as_json=as_json)
    if not run:
        raise ConfigError(f"which backfill is to {action}?", fix="`tailrace backfills` lists them")
    return tell(path, run, _WISHES[action], as_json=as_json)


def list_runs(path: Path, source: str, *, as_json: bool) -> int:
    """`source`: only of this one; empty: of all."""
    config = load(path)
    if source and source not in config.sources:
        raise no_such("source", source, config.sources, config.path)
    runs = uvloop.run(
        read_runs(brokers_of(config), config.kafka.security, config.name, source=source or None)
    )
    views = [run_view(run) for run in runs.values()]
    if as_json:
        print_json(views)
    elif views:
        Console().print(list_screen(views), highlight=False)
    else:
        typer.echo(f"no backfill{f' of {source}' if source else ''} was asked for in the last week")
    return EXIT_OK


def tell(path: Path, name: str, wanted: Wanted, *, as_json: bool) -> int:
    """The exit code: 1 when the run is over already, 3 when no capture answers."""
    config = load(path)
    run, code = uvloop.run(_tell(config, brokers_of(config), name, wanted))
    view = run_view(run)
    if as_json:
        print_json(view)
        return code
    typer.echo(line(view))
    if code == EXIT_FINDING:
        again = "ask for it again: `tailrace backfill`" if wanted is Wanted.RUN else "nothing was changed"
        typer.echo(f"  -> it is over; {again}")
    elif code == EXIT_INCOMPLETE:
        typer.echo(
            f"  -> noted; the capture of {run.source} has not answered within {ANSWER_S:.0f} s, and does"
            f" so when it runs: see `tailrace status`"
        )
    return code


async def _tell(config: Config, brokers: str, name: str, wanted: Wanted) -> tuple[Run, int]:
    security = config.kafka.security
    run = find(await read_runs(brokers, security, config.name), name)
    answers = run.state is State.FAILED and wanted is not Wanted.PAUSE  # to be resumed, or given up
    if run.state.over and not answers:
        reached = wanted is Wanted.CANCEL and run.state is State.CANCELLED
        return run, EXIT_OK if reached else EXIT_FINDING
    async with follow(brokers, security, config.name, source=run.source) as follower:
        await wish(
            brokers,
            security,
            config.name,
            source=run.source,
            run=run.run,
            wanted=wanted,
            by=operator(),
            now_us=now_us(),
        )
        try:
            async with asyncio.timeout(ANSWER_S):
                while True:
                    run = follower.runs.by_run.get((run.source, run.run), run)
                    if _carried_out(run, wanted):
                        return run, EXIT_OK
                    if run.state.over and not answers:
                        return run, EXIT_FINDING
                    await follower.next()
        except TimeoutError:
            return run, EXIT_INCOMPLETE


def find(runs: dict[str, Run], name: str) -> Run:
    """By its id, or the beginning of it that no other run has. Raises ConfigError."""
    if name in runs:
        return runs[name]
    found = [run for run in runs.values() if run.run.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(run.run for run in found[-3:])
        raise ConfigError(f"{len(found)} runs begin with {name!r}", fix=f"write more of it: {names}")
    open_ = [run.run for run in runs.values() if not run.state.over]
    raise ConfigError(f"there is no backfill {name!r}", fix=nearest(name, open_ or list(runs)[-5:]))


def _carried_out(run: Run, wanted: Wanted) -> bool:
    if run.wanted is not wanted:
        return False  # the wish itself has not come back yet
    if wanted is Wanted.PAUSE:
        return run.state is State.PAUSED
    if wanted is Wanted.CANCEL:
        return run.state is State.CANCELLED
    return run.state in (State.RUNNING, State.DONE)
