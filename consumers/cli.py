"""The command `tailrace`: mounts the commands of both packages. No command's work is here."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from consumers.apply.loop import run_apply
from consumers.commands.run import run
from consumers.commands.show import lag, status
from consumers.demo.command import demo
from streamer import __version__, metrics
from streamer import cli as capture_side
from streamer.cli import (
    ConfigOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    MetricsOption,
    ParentOption,
    RestartsOption,
    die_with,
    read_config,
    run_command,
    run_part,
    set_up_log,
    with_brokers,
)
from streamer.config import DEFAULT_PATH
from streamer.status import StatusWriter

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Copies changes of Postgres through Kafka to target stores, exactly once in effect.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tailrace {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def apply(
    target: Annotated[str, typer.Argument(help="A name below `targets:`.")],
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
    parent: ParentOption = 0,
    restarts: RestartsOption = 0,
) -> None:
    """Copy what is in Kafka into one target, until stopped. Several of one target share the work."""
    die_with(parent)
    set_up_log(log_format, log_level)
    settings = with_brokers(read_config(config))

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        await run_apply(settings, target, stop=stop, status=status, metrics=metrics.latency)

    run_part(settings, "apply", target, body, metrics_port=metrics_port, restarts=restarts)


for command in (run, status, lag, apply, demo):
    app.command()(command)
app.add_typer(capture_side.app)


def main() -> None:
    sys.exit(run_command(app))
