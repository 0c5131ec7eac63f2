"""What the commands of backfills print: tables on a terminal, lines elsewhere. Draws only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from consumers.screens import Fitting, headed, rate, without
from consumers.views import UNKNOWN, duration
from consumers.views.backfills import sentence
from streamer.changes.backfill import Run, State, Wanted

LISTED_LIMIT = 50  # the last ones; --json has all

_FIGURES = ("ROWS", "OF ABOUT", "RATE", "LEFT")
COLOURS = {
    State.WAITING: "yellow",
    State.RUNNING: "cyan",
    State.PAUSED: "yellow",
    State.CANCELLED: "magenta",
    State.DONE: "green",
    State.FAILED: "bold red",
}


def follow_screen(views: Iterable[Mapping[str, Any]], trouble: str) -> RenderableType:
    table = headed("TABLE", "STATE", "ROWS", "OF ABOUT", "RATE", "LEFT", "RUN", right=_FIGURES)
    reasons = []
    for view in views:
        table.add_row(
            escape(view["table"]),
            _state(view),
            f"{view['rows']:,}",
            _count(view["estimated_rows"]),
            rate(view["rows_per_s"]),
            duration(view["left_s"]),
            Text(view["run"], style="dim"),
        )
        if view["reason"]:
            reasons.append(Text(f"  {view['table']}: {view['reason']}", style="yellow"))
    if trouble:
        reasons.append(Text(f"  {trouble}", style="red"))
    hint = Text("Ctrl-C leaves it running", style="dim")
    return Group(Fitting(table, without(table, "OF ABOUT", "RUN")), *reasons, hint)


def list_screen(views: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = headed(
        "RUN", "SOURCE", "TABLE", "STATE", "ROWS", "OF ABOUT", "WHY", "ASKED", "BY", right=_FIGURES
    )
    table.columns[0].no_wrap = True  # it is what the other commands take
    reasons = []
    for view in views[-LISTED_LIMIT:]:
        table.add_row(
            escape(view["run"]),
            escape(view["source"]),
            escape(view["table"]),
            _state(view),
            f"{view['rows']:,}",
            _count(view["estimated_rows"]),
            escape(view["why"]),
            _moment(view["asked_us"]),
            escape(view["by"]),
        )
        if view["reason"]:
            reasons.append(Text(f"{view['run']}: {view['reason']}", style="yellow"))
    if len(views) > LISTED_LIMIT:
        reasons.append(Text(f"{len(views) - LISTED_LIMIT} older ones: see --json", style="dim"))
    narrow = without(table, "BY", "ASKED", "SOURCE")
    return Group(Fitting(table, narrow, without(narrow, "OF ABOUT", "WHY")), *reasons)


def line(view: dict[str, Any]) -> str:
    return f"{view['run']}: {view['table']}: {sentence(view)}"


def left_running(runs: Iterable[Run]) -> str:
    """What is said on Ctrl-C."""
    names = " ".join(run.run for run in runs)
    return (
        f"left running: {names}\n  -> `tailrace backfills` shows it; stop it with `tailrace backfills cancel`"
    )


def _state(view: Mapping[str, Any]) -> Text:
    """A wish that its capture has not carried out yet is told with the state."""
    state, wanted = view["state"], view["wanted"]
    text = Text(state, style=COLOURS[state])
    open_ = not state.over
    if open_ and wanted is Wanted.CANCEL:
        text.append(", to be cancelled", style="dim")
    elif open_ and wanted is Wanted.PAUSE and state is not State.PAUSED:
        text.append(", to be paused", style="dim")
    return text


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _moment(us: int | None) -> str:
    if not us:
        return UNKNOWN
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
