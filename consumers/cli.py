"""The command `tailrace`: mounts the commands of both packages. No command's work is here.

Each command imports its work when it runs: see `streamer.cli`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from consumers.commands.dead_letters import app as dead_letters
from consumers.demo.command import demo
from streamer import DEFAULT_PATH, __version__
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
    run_command,
    set_up_log,
)

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; --json: one line a second.")
]

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


@app.command(short_help="Run everything of the config file, and keep it running.")
def run(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
) -> None:
    """Run everything of the config file: a process for each source and target, started again when it falls.

    --json prints a line for every change of a part's or a flow's state. Ctrl-C or SIGTERM stops it all.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import run as work  # noqa: PLC0415

    work.run(config, as_json=as_json, metrics_port=metrics_port, log_format=log_format, log_level=log_level)


@app.command(short_help="What runs, how far it is, and what is wrong, worst first.")
def status(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    watch: WatchOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show what runs, how far it is, and what is wrong, worst first. Exits 1 when something is wrong."""
    set_up_log(log_format, log_level)
    from consumers.commands import show as work  # noqa: PLC0415

    raise typer.Exit(work.status(config, as_json=as_json, watch=watch))


@app.command(short_help="Lag of each flow and partition, and where the time goes.")
def lag(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    watch: WatchOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show the lag of each flow and partition: records, seconds, and where the time goes."""
    set_up_log(log_format, log_level)
    from consumers.commands import show as work  # noqa: PLC0415

    raise typer.Exit(work.lag(config, as_json=as_json, watch=watch))


@app.command(short_help="Copy what is in Kafka into one target, until stopped.")
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
    from consumers.commands import apply as work  # noqa: PLC0415

    work.apply(config, target, metrics_port=metrics_port, restarts=restarts)


@app.command()
def approve(
    flow: Annotated[str, typer.Argument(help="A name below `flows:`.")],
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Let a held truncate or held deletes of a flow pass. Exits 1 when it holds nothing."""
    set_up_log(log_format, log_level)
    from consumers.commands import gates as work  # noqa: PLC0415

    raise typer.Exit(work.decide(config, flow, "approved", as_json=as_json))


@app.command(short_help="Drop a held truncate or held deletes of a flow.")
def refuse(
    flow: Annotated[str, typer.Argument(help="A name below `flows:`.")],
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Drop a held truncate or held deletes of a flow, with a record. Exits 1 when it holds nothing."""
    set_up_log(log_format, log_level)
    from consumers.commands import gates as work  # noqa: PLC0415

    raise typer.Exit(work.decide(config, flow, "refused", as_json=as_json))


@app.command(short_help="The nearest rows of a pgvector target.")
def search(
    target: Annotated[str, typer.Argument(help="A name below `targets:`, of kind pgvector.")],
    words: Annotated[str, typer.Argument(help="What to look for, in any words.")],
    flow: Annotated[str, typer.Option("--flow", help="Of this flow only.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many rows.")] = 10,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show the rows whose text is nearest in meaning, nearest first. Exits 1 when there is none."""
    set_up_log(log_format, log_level)
    from consumers.commands import search as work  # noqa: PLC0415

    raise typer.Exit(work.show(config, target, words, flow=flow, limit=limit, as_json=as_json))


app.command(short_help="A shop, the real pipeline, two kills, a verdict.")(demo)
app.add_typer(
    dead_letters, name="dead-letters", short_help="Rows that a target refused: list, show, retry, discard."
)
app.add_typer(capture_side.app)


def main() -> None:
    sys.exit(run_command(app))
