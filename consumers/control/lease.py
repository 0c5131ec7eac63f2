"""Who of several processes does a work that one alone may do: a row that its holder keeps moving.

A process that sees the row stand still for SILENT_S, by its own clock, takes it with the next term; no two
machines' clocks are compared. What the holder writes into the control database it writes together with
`guard`, in one transaction: one that was frozen and has lost the row meanwhile writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, insert, select, update
from sqlalchemy.exc import IntegrityError

from consumers.control.database import Database

FORMAT = 1
BEAT_S = 1.0  # how often the holder moves the row
SILENT_S = 8.0  # of a holder; a control database that is slow for some seconds changes nothing

meta = MetaData()
leases = Table(
    "leases",
    meta,
    Column("work", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
)


class LeaseLost(Exception):
    """Another process holds it now; nothing was written."""


@dataclass(frozen=True, slots=True)
class _Seen:
    holder: str
    term: int
    beat: int


class Lease:
    """One process's view of one work. `holder`: no other process has this name."""

    def __init__(
        self, database: Database, work: str, holder: str, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._work = work
        self._holder = holder
        self._clock_s = clock_s
        self._term: int | None = None  # of ours, while we hold it
        self._seen: _Seen | None = None
        self._seen_s = 0.0

    def open(self) -> None:
        self._database.prepare("lease", FORMAT, meta)

    @property
    def held(self) -> bool:
        """As of the last `beat`."""
        return self._term is not None

    @property
    def holder(self) -> str:
        """Who holds it, as of the last `beat`; empty before that."""
        return self._holder if self.held else self._seen.holder if self._seen else ""

    def beat(self) -> bool:
        """Move the row, or look whether it stands still; whether it is held. Once in BEAT_S."""
        with self._database.begin() as connection:
            if self._term is not None and self._move(connection):
                return True
            self._term = None
            self._term = self._take(connection)
        return self.held

    def guard(self, connection: Connection) -> None:
        """Within the transaction of what only the holder may write. Raises LeaseLost."""
        if self._term is None or not self._move(connection):
            self._term = None
            raise LeaseLost(f"{self._work} is another process's now")

    def give_up(self) -> None:
        """At a clean end: the next one need not wait."""
        if self._term is None:
            return
        with self._database.begin() as connection:
            connection.execute(update(leases).where(*self._ours()).values(holder="", beat=0))
        self._term = None

    def _move(self, connection: Connection) -> bool:
        """The write locks the row, or SQLite's file, until the transaction ends."""
        moved = connection.execute(update(leases).where(*self._ours()).values(beat=leases.c.beat + 1))
        return moved.rowcount == 1

    def _take(self, connection: Connection) -> int | None:
        row = connection.execute(select(leases).where(leases.c.work == self._work)).mappings().first()
        if row is None:
            return self._first(connection)
        seen = _Seen(row["holder"], row["term"], row["beat"])
        if seen != self._seen:
            self._seen, self._seen_s = seen, self._clock_s()
        if seen.holder and self._clock_s() - self._seen_s < SILENT_S:
            return None
        as_seen = (
            leases.c.work == self._work,
            leases.c.holder == seen.holder,
            leases.c.term == seen.term,
            leases.c.beat == seen.beat,
        )
        ours = {"holder": self._holder, "term": seen.term + 1, "beat": 1}
        taken = connection.execute(update(leases).where(*as_seen).values(ours))
        return seen.term + 1 if taken.rowcount == 1 else None

    def _first(self, connection: Connection) -> int | None:
        row = {"work": self._work, "holder": self._holder, "term": 1, "beat": 1}
        try:
            with connection.begin_nested():
                connection.execute(insert(leases), row)
        except IntegrityError:
            return None
        return 1

    def _ours(self) -> tuple[Any, ...]:
        return (
            leases.c.work == self._work,
            leases.c.holder == self._holder,
            leases.c.term == self._term,
        )
