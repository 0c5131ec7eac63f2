"""`tailrace capture` and `tailrace reset`: one source of a config file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import typer
import uvloop

from streamer.commands.brokers import brokers_of, embedded_kafka, with_brokers
from streamer.commands.part import run_part
from streamer.config import load
from streamer.errors import ConfigError
from streamer.runner import captured_source, reset_source, run_capture
from streamer.status import StatusWriter


def capture(path: Path, source: str, *, metrics_port: int, restarts: int) -> None:
    """Until stopped."""
    config = load(path)
    captured_source(config, source)
    config = with_brokers(config)

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        await run_capture(config, source, brokers=config.kafka.brokers, stop=stop, status=status)

    run_part(config, "capture", source, body, metrics_port=metrics_port, restarts=restarts)


def reset(path: Path, source: str, *, sure: bool, above: int) -> int:
    """The epoch that begins, higher than `above`. Asks first unless `sure`."""
    config = load(path)
    kind = captured_source(config, source).kind
    if not sure:
        if not sys.stdin.isatty():
            raise ConfigError("`reset` asks before it begins", fix=f"write `tailrace reset {source} --yes`")
        what = (
            f"Drop the slot of {source} and copy all its tables"
            if kind == "postgres"
            else f"Copy all of {source}"
        )
        typer.confirm(
            f"{what} again? Its capture must be stopped; targets keep their rows meanwhile.",
            abort=True,
            err=True,
        )
    with embedded_kafka(config):
        return uvloop.run(reset_source(config, source, brokers=brokers_of(config), above=above))
