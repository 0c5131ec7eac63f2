"""`tailrace doctor`: a tick for each connection and privilege, or what mends it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from streamer.config import DEFAULT_PATH, load
from streamer.doctor import Check, Level, Report, examine
from streamer.errors import ConfigError

_MARKS = {
    Level.OK: ("✓", "green"),
    Level.NOTE: ("·", "cyan"),
    Level.WARN: ("!", "yellow"),
    Level.FAIL: ("✗", "red"),
}


def doctor(
    config: Annotated[Path, typer.Option("-c", "--config", help="The config file.")] = DEFAULT_PATH,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Try every connection and privilege; print a tick for each, or the SQL or setting that mends it.

    Changes nothing. Exits 0 when all is well, 1 when something must be mended, 64 for a bad config.
    """
    try:
        loaded = load(config)
    except ConfigError as error:
        if not json:
            raise
        check = Check("config", "file", Level.FAIL, f"{error.where}: {error.what}", error.fix)
        _print_json(Report((check,)).plain())
        raise typer.Exit(error.exit_code) from None
    report = asyncio.run(examine(loaded))
    if json:
        _print_json(report.plain())
    else:
        show(report, Console(highlight=False))
    raise typer.Exit(report.exit_code)


def _print_json(plain: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode())


def show(report: Report, console: Console) -> None:
    """For people: grouped by subject, mends below what they mend, statements ready to copy."""
    subject = ""
    for check in report.checks:
        if check.subject != subject:
            subject = check.subject
            console.print(Text(subject, style="bold"))
        mark, colour = _MARKS[check.level]
        console.print(f"  [{colour}]{mark}[/] {escape(check.check)}: {escape(check.what)}", soft_wrap=True)
        if check.fix:
            console.print(Padding(escape(f"-> {check.fix}{':' if check.sql else ''}"), (0, 0, 0, 6)))
        for statement in check.sql:
            console.print(f"         {escape(statement)}", soft_wrap=True, style="cyan")
    failed = sum(not c.ok for c in report.checks)
    if failed:
        console.print(f"\n[red]{failed} thing{'s' if failed != 1 else ''} to mend[/], then run this again")
    else:
        console.print("\n[green]ready[/]: start it with `tailrace run`")
