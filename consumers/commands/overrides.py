"""`tailrace config`: what of the schedules was changed beside the file; to change more, to take it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from consumers import screens
from consumers.commands.parked import operator
from consumers.control.database import Database, time_text
from consumers.schedule.overriding import Standing
from consumers.schedule.service import Schedule
from consumers.views import duration
from streamer.cli import print_json
from streamer.config import load
from streamer.config.changed import exported, value_of
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError
from streamer.status import now_us

DURATIONS = {"every", "stale_after", "max_runtime", "grace"}


def diff(path: Path, *, as_json: bool) -> int:
    """The exit code: 1 when one of them is not in force."""
    standings = _open(path).in_force().standings
    code = EXIT_FINDING if any(each.problem for each in standings) else EXIT_OK
    if as_json:
        print_json({"file": str(path), "overrides": [each.plain() for each in standings]})
    elif standings:
        wide = _table(standings)
        screens.show(
            Console(), screens.Fitting(wide, screens.without(wide, "SINCE"), _table(standings, folded=True))
        )
        for each in standings:
            if each.problem:
                typer.echo(f"override {each.override.override} is not in force: {each.problem}")
    else:
        typer.echo(f"the schedules in force are those of {path}")
    return code


def _table(standings: tuple[Standing, ...], *, folded: bool = False) -> Table:
    """`folded`: what has no room goes on below; never cut: ID and JOB are what the other commands ask for."""
    table = Table(box=None, header_style="bold")
    for title in ("ID", "JOB"):
        table.add_column(title, no_wrap=True, overflow="fold")
    for title in ("FILE", "IN FORCE", "BY", "SINCE"):
        table.add_column(title, no_wrap=not folded, overflow="fold")
    for each in standings:
        override = each.override
        now = "as the file" if each.problem else _text(each, each.now)
        cells = (str(override.override), each.job, _text(each, each.before), now)
        table.add_row(*cells, override.by, time_text(override.at_us))
    if folded:
        table.columns[0].min_width = max(len(str(each.override.override)) for each in standings)
        table.columns[1].min_width = max(len(each.job) for each in standings)
    return table


def _text(standing: Standing, values: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {_value(key, value)}" for key, value in values.items()) or f"no {standing.key}"


def _value(key: str, value: Any) -> str:
    return duration(value) if key in DURATIONS else orjson.dumps(value).decode()


def export(path: Path) -> int:
    """Prints the file's `schedules:` with what is in force merged into it."""
    changes = _open(path).in_force().changes
    typer.echo(exported(path.read_text(encoding="utf-8"), changes), nl=False)
    return EXIT_OK


def set_(path: Path, what: str, value: str, *, as_json: bool) -> int:
    schedule = _open(path)
    number = schedule.change(what, value_of(value), operator(), now_us())
    (standing,) = (each for each in schedule.in_force().standings if each.override.override == number)
    if as_json:
        print_json(standing.plain())
    else:
        typer.echo(
            f"{standing.job}: {_text(standing, standing.now)}; override {number}, in force within seconds"
        )
    return EXIT_OK


def rollback(path: Path, number: int | None, *, all_: bool, as_json: bool) -> int:
    if (number is None) != all_:
        raise ConfigError(
            "which override?", fix="give its number, as `tailrace config diff` shows it, or --all"
        )
    gone = _open(path).take_back([] if number is None else [number], operator(), now_us())
    if as_json:
        print_json({"undone": [each.plain() for each in gone]})
    else:
        for each in gone:
            typer.echo(f"{each.path}: override {each.override} is taken back; the file counts")
        if not gone:
            typer.echo("there are none")
    return EXIT_OK


def _open(path: Path) -> Schedule:
    config = load(path)
    schedule = Schedule(config, Database(config))
    schedule.open()
    return schedule
