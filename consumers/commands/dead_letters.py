"""`tailrace dead-letters`: options of its commands. Their work is in consumers.commands.parked."""

from __future__ import annotations

from typing import Annotated

import typer

from streamer import DEFAULT_PATH
from streamer.cli import set_up_log
from streamer.options import (
    ConfigOption,
    FlowOption,
    JsonOption,
    LogFormatOption,
    LogLevelOption,
)

app = typer.Typer(help="Rows that a target or a processor refused: list, show, retry or discard them.")

WAIT_S = 30.0  # for the process to carry it out, which looks once a second

NameArgument = Annotated[
    str, typer.Argument(help="A name below `targets:` or `processors:`.", metavar="TARGET|PROCESSOR")
]
TableOption = Annotated[
    str, typer.Option("--table", help="Of tables of the source that fit: shop.orders, orders or shop.*")
]
KeyOption = Annotated[
    str, typer.Option("--key", help="This key only: '{\"id\":7}', or 7 where the key has one column.")
]
ReasonOption = Annotated[
    str, typer.Option("--reason", help="With this code (23514), or these words in the message.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say which keys that would be.")]
WaitOption = Annotated[
    float, typer.Option("--wait", min=0, max=3600, help="Seconds to wait for the outcome.", metavar="SECONDS")
]


@app.command("list")
def list_(
    target: NameArgument,
    flow: FlowOption = "",
    table: TableOption = "",
    key: KeyOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """List the parked keys: since when, how many changes wait, and why."""
    set_up_log(log_format, log_level)
    from consumers.commands import parked as work  # noqa: PLC0415

    wanted = work.Filter(flow, table, key, reason)
    raise typer.Exit(work.show(config, target, wanted, as_json=as_json, whole=False))


@app.command()
def show(
    target: NameArgument,
    flow: FlowOption = "",
    table: TableOption = "",
    key: KeyOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Show the changes that wait, with their values, in order. Exits 1 when none fits."""
    set_up_log(log_format, log_level)
    from consumers.commands import parked as work  # noqa: PLC0415

    wanted = work.Filter(flow, table, key, reason)
    raise typer.Exit(work.show(config, target, wanted, as_json=as_json, whole=True))


@app.command()
def retry(
    target: NameArgument,
    flow: FlowOption = "",
    table: TableOption = "",
    key: KeyOption = "",
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = WAIT_S,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Apply the parked changes, in order.

    Exits 1 when some are refused again or none fits, 3 when nobody answers.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import parked as work  # noqa: PLC0415

    wanted = work.Filter(flow, table, key, reason)
    raise typer.Exit(
        work.ask(config, target, "retry", wanted, dry_run=dry_run, wait_s=wait, as_json=as_json, sure=True)
    )


@app.command(short_help="Drop the parked changes for good.")
def discard(
    target: NameArgument,
    flow: FlowOption = "",
    table: TableOption = "",
    key: KeyOption = "",
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="All of them, without any filter.")] = False,
    wait: WaitOption = WAIT_S,
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
    log_format: LogFormatOption = "human",
    log_level: LogLevelOption = "warning",
) -> None:
    """Drop the parked changes for good; the dead-letter topic keeps a record of each.

    What the target has of these rows stays there, also of rows that the source has deleted. Exits as
    retry does.
    """
    set_up_log(log_format, log_level)
    from consumers.commands import parked as work  # noqa: PLC0415

    wanted = work.Filter(flow, table, key, reason)
    raise typer.Exit(
        work.ask(config, target, "discard", wanted, dry_run=dry_run, wait_s=wait, as_json=as_json, sure=yes)
    )
