"""`tailrace alerts`: what is wrong and what was, as the watchers have told it; and a test of the channels."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumers import screens
from consumers.alerts import webhook
from consumers.control.database import Database
from consumers.control.feed import Event, Feed
from consumers.views import duration
from streamer.cli import print_json
from streamer.config import Config, load
from streamer.config.base import nearest, no_such
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError
from streamer.logs import Log
from streamer.status import now_us

SHOWN = 50  # of those that are over; of those that are open all
OPEN_SHOWN = 1_000
WIDE = 120  # columns of a terminal, from which each column of the table has its room

_LIST, _TEST = "list", "test"
_ACTIONS = (_LIST, _TEST)

log = Log("alerts")


def act(path: Path, action: str, channel: str, *, as_json: bool) -> int:
    """The exit code: of `list` 1 when an event is open, of `test` 1 when a channel was not reached."""
    if action not in _ACTIONS:
        raise ConfigError(f"alerts can not {action!r}", fix=nearest(action, list(_ACTIONS)))
    if action == _LIST and channel:
        raise ConfigError(f"`list` takes no channel ({channel!r})", fix="leave it out")
    config = load(path)
    return _test(config, channel, as_json=as_json) if action == _TEST else _list(config, as_json=as_json)


# The feed


def _list(config: Config, *, as_json: bool) -> int:
    feed = Feed(Database(config))
    feed.open()
    open_ = feed.last(OPEN_SHOWN, open_only=True)
    over = [event for event in feed.last(SHOWN) if event.resolved_us is not None]
    failed = feed.problems()
    if as_json:
        found = [event.plain() for event in [*open_, *over]]
        print_json({"open": len(open_), "events": found, "undelivered": failed})
    else:
        _draw(config, open_, over, failed)
    return EXIT_FINDING if open_ else EXIT_OK


def _draw(config: Config, open_: list[Event], over: list[Event], failed: list[dict[str, Any]]) -> None:
    if not open_:
        typer.echo("nothing is wrong, as far as the watchers have told")
    console = Console()
    if open_ or over:
        screens.show(console, _table([*open_, *over], is_wide=console.width >= WIDE))
    for each in failed:
        state = "given up" if each["done_us"] is not None else "is tried again"
        typer.echo(
            f"event {each['event']} did not reach {each['channel']}: {each['problem']}"
            f" ({each['tries']} tries, {state})"
        )
    if not config.alerts.rules:
        typer.echo("the file has no rules of `alerts`: nobody is told (docs/alerts.md)")


def _table(events: list[Event], *, is_wide: bool) -> Table:
    """Where there is little room, rule and subject are the first line of what is told."""
    table = Table(box=None, header_style="bold")
    for title in ("EVENT", "STATE", "SINCE", "LASTED", *(("RULE", "SUBJECT") if is_wide else ()), "WHAT"):
        table.add_column(title, no_wrap=title != "WHAT", overflow="fold")
    now, between = now_us(), " " if is_wide else "\n"
    for event in events:
        ended_us = event.resolved_us
        about = [event.rule, event.subject, event.text]
        if not is_wide:
            about = [f"{event.rule}, {event.subject}:\n{event.text}"]
        table.add_row(
            str(event.event),
            "OPEN" if ended_us is None else "over",
            time.strftime(f"%Y-%m-%d{between}%H:%M:%S", time.localtime(event.since_us / 1e6)),
            duration(((now if ended_us is None else ended_us) - event.since_us) / 1e6),
            *map(Text, about),
        )
    return table


# A test of the channels


@dataclass(frozen=True, slots=True)
class _Reached:
    """`problem` empty: it was."""

    channel: str
    kind: str
    problem: str


def _test(config: Config, channel: str, *, as_json: bool) -> int:
    channels = config.alerts.channels
    if channel and channel not in channels:
        raise no_such("channel", channel, channels, config.path)
    if not channels:
        raise ConfigError(
            "the file has no channels",
            where=f"{config.path}: alerts.channels",
            fix='write one below it, `ops: {webhook: "${ALERT_URL}"}`: docs/alerts.md',
        )
    reached = uvloop.run(_reach(config, [channel] if channel else list(channels)))
    if as_json:
        rows = [{**asdict(each), "ok": not each.problem} for each in reached]
        print_json({"ok": all(row["ok"] for row in rows), "channels": rows})
    else:
        for each in reached:
            typer.echo(f"{each.channel} ({each.kind}): {each.problem or 'reached'}")
    return EXIT_FINDING if any(each.problem for each in reached) else EXIT_OK


async def _reach(config: Config, names: list[str]) -> list[_Reached]:
    async with httpx2.AsyncClient() as client:
        return list(await asyncio.gather(*(_reach_one(config, client, name) for name in names)))


async def _reach_one(config: Config, client: httpx2.AsyncClient, name: str) -> _Reached:
    channel = config.alerts.channels[name]
    if channel.webhook is None:
        log.warning("a test of this channel: nothing is wrong", channel=name)
        return _Reached(name, "log", "")
    secret = channel.secret.get_secret_value() if channel.secret is not None else ""
    body = webhook.trial(config.name, name, now_us())
    url = channel.webhook.get_secret_value()
    problem = await webhook.send(client, url, secret, body, int(time.time()))
    return _Reached(name, "webhook" if secret else "webhook, not signed", problem)
