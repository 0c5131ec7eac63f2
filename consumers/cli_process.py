"""The commands about processors: their options. Each imports its work when it runs: see `streamer.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer import DEFAULT_PATH
from streamer.changes.position import EPOCH_LIMIT
from streamer.cli import set_up_log, start_part
from streamer.errors import ConfigError
from streamer.options import (
    ConfigOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
    MetricsOption,
    ParentOption,
    RestartsOption,
)
from streamer.resetting import processor_reset_steps

app = typer.Typer()

LIMIT = 100  # records of a dry run


@app.command(short_help="Run one processor, until stopped; or see what it would send.")
def process(
    processor: Annotated[str, typer.Argument(help="A name below `processors:`.", metavar="PROCESSOR")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would send, and send and keep nothing.")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Of a dry run: the first records, not the last.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            max=100_000,
            help=f"Of a dry run: so many records, {LIMIT} unless given.",
            metavar="N",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Keep the state in memory where RocksDB is not installed.")
    ] = False,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    metrics_port: MetricsOption = 0,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "info",
    parent: ParentOption = 0,
    restarts: RestartsOption = 0,
) -> None:
    """Run one processor until stopped. Several of one processor share the partitions.

    With --dry-run: show what it would send for some records, sending nothing and leaving no trace; exits 1
    when the agent raises on one.
    """
    if from_start and not dry_run:
        anew = f"to derive everything again {processor_reset_steps(processor)}"
        raise ConfigError("--from-start is of a dry run", fix=f"add --dry-run; or, {anew}")
    if limit is not None and not dry_run:
        raise ConfigError("--limit is of a dry run", fix="add --dry-run, or leave --limit out")
    start_part(parent)
    set_up_log(log_format, "warning" if dry_run and log_level == "info" else log_level)
    from consumers.commands import process as work  # noqa: PLC0415

    if dry_run:
        code = work.rehearse(config, processor, from_start=from_start, limit=limit or LIMIT, as_json=as_json)
        raise typer.Exit(code)
    work.process(config, processor, memory=yes, metrics_port=metrics_port, restarts=restarts, as_json=as_json)


@app.command(short_help="Begin a source or a processor again, in a new epoch.")
def reset(
    name: Annotated[
        str, typer.Argument(help="A name below `sources:` or `processors:`.", metavar="SOURCE|PROCESSOR")
    ],
    config: ConfigOption = DEFAULT_PATH,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    above: Annotated[
        int,
        typer.Option(
            min=0,
            max=EPOCH_LIMIT - 1,
            help="Begin with an epoch above this one, which a target has already.",
            metavar="EPOCH",
        ),
    ] = 0,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Begin a source again: new epoch, slot and snapshot; or a processor: new epoch, state thrown away, all
    rows derived again. Rows that only older epochs wrote go at its end.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import reset as work  # noqa: PLC0415

    work.reset(config, name, sure=yes, above=above, as_json=as_json)


@app.command(short_help="Try every connection and privilege; say what mends it.")
def doctor(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
) -> None:
    """Try every connection, privilege and agent; print a tick for each, or the SQL or setting that mends it.

    Changes nothing. Exits 0 when all is well, 1 when something must be mended, 64 for a bad config.
    """
    from consumers.processors.doctor import check_processors  # noqa: PLC0415
    from streamer.commands import doctor as work  # noqa: PLC0415

    work.run(config, as_json=as_json, more=check_processors)


@app.command(short_help="Write a commented config: PostgreSQL to PostgreSQL; or an agent with its test.")
def init(
    directory: Annotated[Path | None, typer.Argument(help="Where to write it.")] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The file to write.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    processor: Annotated[
        str | None,
        typer.Option("--processor", help="Write an agent and its test, no config.", metavar="NAME"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented config: Postgres to Postgres, with a Kafka that `tailrace run` keeps beside itself.

    With --processor: a module with an agent, and its test, beside the config file, and what to put into that.
    A file that is there already stays as it is, unless --force is given.
    """
    if processor is not None:
        if config is not None:
            raise ConfigError("-c names a config, and none is written", fix="leave it out, or --processor")
        from consumers.commands import init_processor as work  # noqa: PLC0415

        work.init(processor, directory or Path(), force=force, as_json=as_json)
        return
    from streamer.commands.init import init as write_config  # noqa: PLC0415

    write_config(directory, config, force, as_json)
