"""`tailrace status` and `tailrace lag`: the heartbeats of all processes, from wherever Kafka is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console, RenderableType
from rich.live import Live

from consumers import screens, views
from streamer.changes.topics import status_topic
from streamer.cli import (
    ConfigOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    brokers_of,
    print_json,
    read_config,
    set_up_log,
)
from streamer.config import DEFAULT_PATH, Config
from streamer.errors import RetryableError
from streamer.status import StatusReader, now_us

REFRESH_S = 1.0  # as often as heartbeats come
RETRY_S = 2.0  # --watch outlives a Kafka that is away

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; --json: one line a second.")
]

Draw = Callable[[views.Status], RenderableType]
Plain = Callable[[views.Status], dict[str, Any]]


def status(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    watch: WatchOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show what runs, how far it is, and what is wrong, worst first. Exits 1 when something is wrong."""
    set_up_log(log_format, log_level)
    _show(
        config_at=read_config(config),
        draw=screens.status_screen,
        plain=lambda s: s.plain(),
        as_json=as_json,
        watch=watch,
    )


def lag(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    watch: WatchOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show the lag of each flow and partition: records, seconds, and where the time goes."""
    set_up_log(log_format, log_level)
    _show(
        config_at=read_config(config),
        draw=lambda s: screens.lag_screen(s, views.lag(s)),
        plain=views.lag,
        as_json=as_json,
        watch=watch,
    )


def _show(config_at: Config, *, draw: Draw, plain: Plain, as_json: bool, watch: bool) -> None:
    brokers = brokers_of(config_at)
    if not watch:
        found = uvloop.run(read_once(config_at, brokers))
        if as_json:
            print_json(plain(found))
        else:
            screens.show(Console(), draw(found))
        raise typer.Exit(found.exit_code)
    if as_json:

        async def line(found: views.Status) -> None:
            print_json(plain(found), line=True)

        uvloop.run(_watch(config_at, brokers, line))
        return
    with Live(console=Console(), auto_refresh=False, screen=True) as live:

        async def redraw(found: views.Status) -> None:
            live.update(draw(found), refresh=True)

        uvloop.run(_watch(config_at, brokers, redraw))


async def read_once(config: Config, brokers: str) -> views.Status:
    async with StatusReader(brokers, config.kafka.security, status_topic(config.name)) as topic:
        await topic.poll()
        await topic.prove_silence()
        return views.build(config, topic.records(), now_us())


async def _watch(config: Config, brokers: str, take: Callable[[views.Status], Awaitable[None]]) -> None:
    while True:
        try:
            async with StatusReader(brokers, config.kafka.security, status_topic(config.name)) as topic:
                while True:
                    await topic.poll()
                    await take(views.build(config, topic.records(), now_us()))
                    await asyncio.sleep(REFRESH_S)
        except RetryableError as error:
            finding = views.Finding(views.FINDINGS_FROM, "kafka", str(error))
            await take(views.Status(config.name, now_us(), [finding], [], [], []))
            await asyncio.sleep(RETRY_S)
