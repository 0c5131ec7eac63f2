"""A measured figure beside its floor, the table of them, and the rows that every benchmark uses."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

DDL = (
    "CREATE TABLE bench (id bigint PRIMARY KEY, first_name text, last_name text, amount numeric(12,2),"
    " made_at timestamptz, paid boolean, quantity integer, note text)"
)
ROW = (  # of the number n; eight columns, about 130 bytes as text
    "n, 'Anne', 'Kretchmär ' || n % 1000, n * 0.01, now(), n % 2 = 0, (n % 100)::int,"
    " 'fifty characters of a note that says quite little.'"
)


def insert(first: int, last: int) -> str:
    return f"INSERT INTO bench SELECT {ROW} FROM generate_series({first}, {last}) n"


@dataclass(frozen=True, slots=True)
class Figure:
    """`held` is None where no floor is set."""

    work: str
    measured: str
    compared: str = ""
    floor: str = ""
    held: bool | None = None

    def cells(self) -> tuple[str, str, str, str, str]:
        verdict = {True: "yes", False: "NO", None: ""}[self.held]
        return self.work, self.measured, self.compared, self.floor, verdict


HEADINGS = ("work", "measured", "compared with", "floor", "held")


def machine() -> str:
    system = f"{platform.system()} {platform.machine()}"
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}"


def show(figures: Iterable[Figure]) -> None:
    table = Table(title=f"benchmarks of Tailrace: {machine()}")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for figure in figures:
        table.add_row(*figure.cells())
    Console(width=140).print(table)


def markdown(figures: Iterable[Figure]) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    lines += [f"| {' | '.join(figure.cells())} |" for figure in figures]
    return "\n".join(lines)
