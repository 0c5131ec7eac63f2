"""`tailrace doctor`: a tick for each connection and privilege, or what mends it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import typer

from streamer import DEFAULT_PATH
from streamer.errors import ConfigError
from streamer.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from streamer.config import Config
    from streamer.doctor import Check, Report

_QUOTED_SPACE = re.compile(r"""'[^']*\s[^']*'|"[^"]*\s[^"]*\"""")

_MARKS = {  # by streamer.doctor.Level
    "ok": ("✓", "green"),
    "note": ("·", "cyan"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
}


def doctor(
    config: ConfigOption = DEFAULT_PATH,
    as_json: JsonOption = False,
) -> None:
    """Try every connection and privilege; print a tick for each, or the SQL or setting that mends it.

    Changes nothing. Exits 0 when all is well, 1 when something must be mended, 64 for a bad config.
    """
    run(config, as_json=as_json)


def run(path: Path, *, as_json: bool, more: Callable[[Config], Awaitable[list[Check]]] | None = None) -> None:
    """`more`: checks of what is not of this package, after ours."""
    import asyncio  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from streamer.config import load  # noqa: PLC0415
    from streamer.doctor import Check, Level, Report, examine  # noqa: PLC0415

    try:
        loaded = load(path)
    except ConfigError as error:
        if not as_json:
            raise
        checks = [Check("config", "file", Level.FAIL, f"{p.where}: {p.what}", p.fix) for p in error.problems]
        _print_json(Report(tuple(checks)).plain())
        raise typer.Exit(error.exit_code) from None

    async def examined() -> Report:
        found = await examine(loaded)
        return found if more is None else Report((*found.checks, *await more(loaded)))

    report = asyncio.run(examined())
    if as_json:
        _print_json(report.plain())
    else:
        show(report, Console(highlight=False))
    raise typer.Exit(report.exit_code)


def _print_json(plain: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode())


def show(report: Report, console: Console) -> None:
    """For people: grouped by subject, mends below what they mend, statements ready to copy.

    Sentences are broken between words. A statement is only where its line's end means nothing, as in SQL, and
    only for a terminal; elsewhere it stays whole, for a script.
    """
    from rich.text import Text  # noqa: PLC0415

    subject = ""
    for check in report.checks:
        if check.subject != subject:
            subject = check.subject
            console.print(Text(subject, style="bold"))
        mark, colour = _MARKS[check.level]
        _line(console, Text(f"  {mark}", style=colour), Text(f"{check.check}: {check.what}"))
        if check.fix:
            _line(console, Text("      ->"), Text(f"{check.fix}{':' if check.sql else ''}"))
        for statement in check.sql:
            in_words = statement.endswith(";") and _QUOTED_SPACE.search(statement) is None
            whole = not (in_words and console.is_terminal)
            _line(console, Text("        "), Text(statement, style="cyan"), whole=whole)
    failed = sum(not c.ok for c in report.checks)
    if failed:
        console.print(f"\n[red]{failed} thing{'s' if failed != 1 else ''} to mend[/], then run this again")
    else:
        console.print("\n[green]ready[/]: start it with `tailrace run`")


def _line(console: Console, head: Text, text: Text, *, whole: bool = False) -> None:
    """`whole`: must not be broken, since a line's end would be part of it when it is copied."""
    from rich.text import Text  # noqa: PLC0415

    room = console.width - head.cell_len - 1
    # A word that is longer than the line is broken, and loses nothing.
    lines = [text] if whole else text.wrap(console, room, overflow="fold")
    for line in lines:
        line.rstrip()
        console.print(Text.assemble(head, " ", line), soft_wrap=True)
        head = Text(" " * head.cell_len)
