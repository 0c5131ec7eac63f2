"""`tailrace config`: what of the schedules was changed beside the file; to change more, to take it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import typer
from rich.console import Console
from rich.table import Table

from consumers import screens
from consumers.asker import operator
from consumers.control.database import Database
from consumers.schedule.overriding import Standing
from consumers.schedule.service import Schedule
from consumers.views import duration
from consumers.views.amounts import moment
from streamer.cli import print_json
from streamer.config import Config, load
from streamer.config.changed import exported, value_of
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError
from streamer.status import now_us

DURATIONS = {"every", "stale_after", "max_runtime", "grace"}


def diff(path: Path, *, as_json: bool) -> int:
    """The exit code: 1 when one of them is not in force."""
    config = load(path)
    standings = _open(config).in_force().standings
    code = EXIT_FINDING if any(each.problem for each in standings) else EXIT_OK
    if as_json:
        print_json({"file": str(path), "overrides": [each.plain() for each in standings]})
        return code
    told = [each for each in standings if each.is_change or each.problem]
    if told:
        zone = ZoneInfo(config.schedules.timezone)
        wide, folded = _table(told, zone), _table(told, zone, folded=True)
        screens.show(Console(), screens.Fitting(wide, screens.without(wide, "SINCE"), folded))
    else:
        typer.echo(f"the schedules in force are those of {path}")
    for each in standings:
        number = each.override.override
        if each.problem:
            typer.echo(f"override {number} is not in force: {each.problem}")
        elif not each.is_change:
            same = f"{each.job} has {_text(each, each.now)} in the file, too"
            typer.echo(
                f"override {number} changes nothing: {same}\n"
                f"  -> `tailrace config rollback {number}`: then what is changed in the file counts"
            )
    return code


def _table(standings: Sequence[Standing], zone: ZoneInfo, *, folded: bool = False) -> Table:
    """`folded`: what has no room goes on below; never cut: ID and JOB are what the other commands ask for."""
    table = Table(box=None, header_style="bold")
    table.caption = f"times are of {zone.key}"
    table.caption_justify = "left"
    for title in ("ID", "JOB"):
        table.add_column(title, no_wrap=True, overflow="fold")
    for title in ("FILE", "IN FORCE", "BY", "SINCE"):
        table.add_column(title, no_wrap=not folded, overflow="fold")
    for each in standings:
        override = each.override
        now = "as the file" if each.problem else _text(each, each.now)
        cells = (str(override.override), each.job, _text(each, each.before), now)
        table.add_row(*cells, override.by, moment(override.at_us, zone))
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
    changes = _open(load(path)).in_force().changes
    typer.echo(exported(path.read_text(encoding="utf-8"), changes), nl=False)
    return EXIT_OK


def set_(path: Path, what: str, value: str, *, as_json: bool) -> int:
    schedule = _open(load(path))
    number = schedule.change(what, value_of(value), operator(), now_us())
    found = [each for each in schedule.in_force().standings if each.override.override == number]
    if not found:
        what = f"override {number} was taken back already"
        raise ConfigError(what, fix="`tailrace config diff` lists those in force")
    (standing,) = found
    if as_json:
        print_json(standing.plain())
    else:
        same = "" if standing.is_change else ", as in the file"
        now = f"{standing.job}: {_text(standing, standing.now)}{same}"
        typer.echo(f"{now}; override {number}, in force within seconds")
    return EXIT_OK


def rollback(path: Path, number: int | None, *, all_: bool, as_json: bool) -> int:
    if (number is None) != all_:
        raise ConfigError(
            "which override?", fix="give its number, as `tailrace config diff` shows it, or --all"
        )
    gone = _open(load(path)).take_back([] if number is None else [number], operator(), now_us())
    if as_json:
        print_json({"undone": [each.plain() for each in gone]})
    else:
        for each in gone:
            typer.echo(f"{each.path}: override {each.override} is taken back; the file counts")
        if not gone:
            typer.echo("there are none")
    return EXIT_OK


def _open(config: Config) -> Schedule:
    schedule = Schedule(config, Database(config))
    schedule.open()
    return schedule
