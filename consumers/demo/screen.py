"""What the demo shows: a live table on a terminal, a line now and then elsewhere, the verdict at the end.

Owns no state but the last picture. Knows nothing of processes or servers.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from consumers.demo.outcome import Outcome
from consumers.demo.tally import KINDS, Tally

PLAIN_EVERY_S = 2.0  # a log of the demo should be readable, not complete
REFRESH_PER_S = 4
NOTES_SHOWN = 6
LABEL_CHARS = 13  # of a fact, before its text


class Screen:
    """`with Screen(console) as screen: screen.note(...); screen.show(tally, ...)`."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        """`quiet`: nothing at all (the results go out as JSON)."""
        self._console = console
        self._quiet = quiet
        self._live = Live(console=console, refresh_per_second=REFRESH_PER_S, transient=True)
        self._is_live = console.is_terminal and not quiet
        self._notes: list[str] = []
        self._started_s = time.monotonic()
        self._plain_at_s = 0.0

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._live.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Something has happened; stays to be seen."""
        line = f"{time.monotonic() - self._started_s:5.1f} s  {text}"
        self._notes.append(line)
        if not self._quiet:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, tally: Tally, what: str) -> None:
        """The present numbers; `what` is going on."""
        if self._is_live:
            self._live.update(Group(_table(tally), Text(_processes(tally)), Text(what, style="bold")))
        elif not self._quiet and time.monotonic() - self._plain_at_s >= PLAIN_EVERY_S:
            self._plain_at_s = time.monotonic()
            lines = tally.lines()
            captured, applied = sum(x.captured for x in lines), sum(x.applied for x in lines)
            lag = sum(x.lag_records for x in lines)
            self.note(f"captured {captured:,}  applied {applied:,}  lag {lag:,} records  {_processes(tally)}")

    def verdict(self, outcome: Outcome) -> None:
        if self._quiet:
            return
        style = "green" if outcome.passed else "red"
        title = "equal" if outcome.verdict.equal else "NOT EQUAL"
        self._console.print(
            Panel(Group(_verdict_table(outcome), _facts(outcome)), title=title, border_style=style)
        )
        for line in outcome.advice:  # outside the box, and never broken: each is to be copied
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(tally: Tally) -> Table:
    table = Table(title="the shop, live", expand=False)
    table.caption = "counted by the processes; a killed one takes the counts of its last second with it"
    table.add_column("flow")
    for name in ("captured", "applied", "lag, records", "lag, s"):
        table.add_column(name, justify="right")
    for line in tally.lines():
        lag_s = "-" if line.lag_s is None else f"{line.lag_s:.2f}"
        table.add_row(line.name, f"{line.captured:,}", f"{line.applied:,}", f"{line.lag_records:,}", lag_s)
    return table


def _processes(tally: Tally) -> str:
    parts = []
    for kind in KINDS:
        record = tally.current(kind)
        parts.append(f"{kind}: {record.state} (pid {record.pid})" if record else f"{kind}: not there yet")
    return ", ".join(parts)


def _verdict_table(outcome: Outcome) -> Table:
    table = Table(box=None)
    table.add_column("table")
    for name in ("rows", "missing", "extra", "different"):
        table.add_column(name, justify="right")
    table.add_column("")
    for found in outcome.verdict.tables:
        word = (
            Text("equal", style="green") if found.equal else Text(found.problem or "not equal", style="red")
        )
        counts = (f"{n:,}" for n in (found.rows, found.missing, found.extra, found.different))
        table.add_row(str(found.source), *counts, word)
    return table


def _facts(outcome: Outcome) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    for line in outcome.facts():
        grid.add_row(Text(line[:LABEL_CHARS].rstrip()), Text(line[LABEL_CHARS:].lstrip()))
    samples = [sample for found in outcome.verdict.tables for sample in found.samples]
    lines = ["", *samples] if samples else []
    return Group(Text(""), grid, Text("\n".join(lines)))
