"""`tailrace config`: options of its commands. Their work is in consumers.commands.overrides."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer import DEFAULT_PATH
from streamer.cli import set_up_log
from streamer.options import ConfigOption, JsonOption, LogFormatOption, LogLevelOption

app = typer.Typer(help="Schedules that were changed beside the file: see them, change more, take them back.")


@app.command(short_help="What is in force, and is not in the file.")
def diff(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show what was changed beside the file: by whom, since when. Exits 1 when one of it is not in force."""
    set_up_log(log_format, log_level)
    from consumers.commands import overrides as work  # noqa: PLC0415

    raise typer.Exit(work.diff(config, as_json=as_json))


@app.command(short_help="Print the file's schedules as they are in force.")
def export(
    config: ConfigOption = DEFAULT_PATH,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Print `schedules:` of the file with all that is in force, to be put into the file."""
    set_up_log(log_format, log_level)
    from consumers.commands import overrides as work  # noqa: PLC0415

    raise typer.Exit(work.export(config))


@app.command("set", short_help="Change when or how a job runs, beside the file.")
def set_(
    what: Annotated[str, typer.Argument(help="schedules.jobs.NAME.KEY", metavar="PATH")],
    value: Annotated[
        str, typer.Argument(help="As in the file: 10m, [a, b]; null: not set.", metavar="VALUE")
    ],
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Change when or how a job runs, beside the file. The scheduler goes by it within seconds."""
    set_up_log(log_format, log_level)
    from consumers.commands import overrides as work  # noqa: PLC0415

    raise typer.Exit(work.set_(config, what, value, as_json=as_json))


@app.command(short_help="Let the file count again.")
def rollback(
    number: Annotated[
        int | None, typer.Argument(help="Of the override, as `diff` shows it.", metavar="ID")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Take back one override, or all of them: the file counts again."""
    set_up_log(log_format, log_level)
    from consumers.commands import overrides as work  # noqa: PLC0415

    raise typer.Exit(work.rollback(config, number, all_=all_, as_json=as_json))
