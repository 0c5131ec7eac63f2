"""Groups and windows in a report: each cell's counts and drift, the worst first. Pure.

The counts are shown as they were counted; the drift is of judged rows (groups.Drift).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import nsmallest
from math import floor, log10
from typing import Any

from rich.table import Table
from rich.text import Text

from consumers.reconcile.groups import DIFFERENT, EXTRA, MISSING, Counts, Drift, Group, Grouping

SHOWN = 20  # for people: a screen
LISTED = 10_000  # in --json: a megabyte
KEPT = 100  # in the history, which keeps thousands of runs


def share(drift: float) -> str:
    """With as many digits as it takes to see that it is not 0."""
    percent = drift * 100
    if not 0 < percent < 0.01:
        return f"{percent:.2f}%"
    return f"{percent:.{max(4, 1 - floor(log10(percent)))}f}%"


@dataclass(frozen=True, slots=True)
class Cell:
    """`window`: None for all rows of the group. The rows as counted; the others as judged."""

    group: Group
    window: str | None
    source_rows: int
    target_rows: int
    missing: int = 0
    extra: int = 0
    different: int = 0

    @property
    def difference(self) -> int:
        """Rows that the source has more."""
        return self.source_rows - self.target_rows

    @property
    def drift(self) -> float:
        faults = self.missing + self.extra + self.different
        return min(1.0, faults / max(1, self.source_rows, self.target_rows))

    @property
    def badness(self) -> tuple[float, int, int]:
        """The least is the worst; equal ones stay in the order of their groups."""
        return -self.drift, -abs(self.difference), -max(self.source_rows, self.target_rows)

    def plain(self) -> dict[str, Any]:
        return {
            "group": list(self.group),
            "window": self.window,
            "source_rows": self.source_rows,
            "target_rows": self.target_rows,
            "difference": self.difference,
            "drift": self.drift,
            "missing": self.missing,
            "extra": self.extra,
            "different": self.different,
        }


@dataclass(slots=True)
class Cells:
    """Of a table. `total`: how many there are; `above`: of them, how many have a drift above the threshold.
    `listed`: the worst of them."""

    by: tuple[str, ...]
    column: str
    at_us: int
    total: int = 0
    above: int = 0
    listed: list[Cell] = field(default_factory=list)

    def plain(self, limit: int = LISTED) -> dict[str, Any]:
        return {
            "group_by": list(self.by),
            "window_column": self.column or None,
            "at": datetime.fromtimestamp(self.at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "total": self.total,
            "above_threshold": self.above,
            "cells": [cell.plain() for cell in self.listed[:limit]],
        }


def cells_of(
    grouping: Grouping, source: Counts, target: Counts, drift: Drift, threshold: float, limit: int = LISTED
) -> Cells:
    found = Cells(grouping.by, grouping.column, grouping.moment_us)

    def each() -> Iterator[Cell]:
        for cell in _cells(grouping, source, target, drift):
            found.total += 1
            found.above += cell.drift > threshold
            yield cell

    found.listed = nsmallest(limit, each(), key=lambda cell: cell.badness)
    return found


def _cells(grouping: Grouping, source: Counts, target: Counts, drift: Drift) -> Iterator[Cell]:
    names = [None, *(window.name for window in grouping.windows)]
    none = [0] * len(names)
    groups = source.keys() | target.keys() | drift.groups().keys()
    if not grouping.by:
        groups |= {()}  # one group, also of an empty table
    for group in sorted(groups, key=_order):
        ours, theirs = source.get(group, none), target.get(group, none)
        for at, name in enumerate(names):
            faults = drift.of(group, at)
            kinds = faults[MISSING], faults[EXTRA], faults[DIFFERENT]
            yield Cell(group, name, ours[at], theirs[at], *kinds)


def _order(group: Group) -> list[tuple[bool, str]]:
    return [(text is not None, text or "") for text in group]


def cells_table(cells: Cells, title: str) -> Table:
    """For people: the worst, and how many there are besides."""
    table = Table(title=Text(title))
    headings = [*cells.by, *(["window"] if cells.column else [])]
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for heading in ("source", "target", "difference", "drift"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells.listed[:SHOWN]:
        window = [cell.window or "all"] if cells.column else []
        table.add_row(*map(_text, cell.group), *window, *_figures(cell))
    words = []
    if any(cell.difference != cell.missing - cell.extra for cell in cells.listed[:SHOWN]):
        words.append("a difference that is no drift was on its way")
    if cells.total > SHOWN:
        words.append(f"the worst {SHOWN} of {cells.total:,}; --json lists {min(LISTED, cells.total):,}")
    table.caption = "; ".join(words) or None
    return table


def _text(text: str | None) -> Text:
    return Text("NULL", style="dim") if text is None else Text(plain_text(text))


def plain_text(text: str) -> str:
    """For people: quoted where nobody would see what it is, or where the screen would change it."""
    return text if text and text == text.strip() and text.isprintable() and text != "NULL" else repr(text)


def _figures(cell: Cell) -> Sequence[str]:
    difference = f"{cell.difference:+,}" if cell.difference else "0"
    return f"{cell.source_rows:,}", f"{cell.target_rows:,}", difference, share(cell.drift)
