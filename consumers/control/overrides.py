"""The control database's part for schedules that people have changed beside the file: which, who, since when.

Only what was asked for is kept here; whether it fits the file is judged by schedule.overriding, each time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from consumers.control.database import Database, dump

PART = "overrides"
FORMAT = 1
KEPT = 1_000  # that are not in force any more
IN_FORCE_LIMIT = 500  # a file's own schedule; more belong into the file

meta = MetaData()
overrides = Table(
    "overrides",
    meta,
    Column("override", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("path", Text, nullable=False),
    Column("value", Text, nullable=False),  # JSON
    Column("by", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("undone_us", BigInteger),
    Column("undone_by", Text),
)


class Outrun(Exception):
    """Others have changed what is in force since it was looked at; nothing was written."""


@dataclass(frozen=True, slots=True)
class Override:
    """`undone_us`: when it was taken back, or another took its place."""

    override: int
    path: str
    value: Any
    by: str
    at_us: int
    undone_us: int | None = None
    undone_by: str | None = None

    def plain(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Overrides:
    """Errors of the database are RetryableError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self) -> None:
        self._database.prepare(PART, FORMAT, meta)

    def put(
        self,
        path: str,
        value: Any,
        replaces: Collection[str],
        by: str,
        now_us: int,
        *,
        beside: Collection[Override] | None = None,
    ) -> int:
        """In place of those of these paths; its number. `beside`: those in force with which it was judged;
        raises Outrun when these are not they any more."""
        row = {"path": path, "value": dump(value), "by": by, "at_us": now_us}
        with self._database.alone(PART) as connection:
            _check_judged(connection, beside)
            before = (overrides.c.path.in_(replaces), overrides.c.undone_us.is_(None))
            connection.execute(update(overrides).where(*before).values(undone_us=now_us, undone_by=by))
            made = connection.execute(insert(overrides), row)
            assert made.inserted_primary_key is not None
            number = int(made.inserted_primary_key[0])
            old = (overrides.c.override <= number - KEPT, overrides.c.undone_us.is_not(None))
            connection.execute(delete(overrides).where(*old))
        return number

    def undo(
        self, numbers: Collection[int], by: str, now_us: int, *, beside: Collection[Override] | None = None
    ) -> None:
        """`beside`: as of `put`."""
        with self._database.alone(PART) as connection:
            _check_judged(connection, beside)
            its = (overrides.c.override.in_(numbers), overrides.c.undone_us.is_(None))
            connection.execute(update(overrides).where(*its).values(undone_us=now_us, undone_by=by))

    def in_force(self) -> list[Override]:
        """The oldest first."""
        wanted = select(overrides).where(overrides.c.undone_us.is_(None)).order_by(overrides.c.override)
        with self._database.begin() as connection:
            return [_override(row) for row in connection.execute(wanted.limit(IN_FORCE_LIMIT)).mappings()]

    def last(self, limit: int = 100) -> list[Override]:
        """All of them, the newest first."""
        wanted = select(overrides).order_by(overrides.c.override.desc()).limit(limit)
        with self._database.begin() as connection:
            return [_override(row) for row in connection.execute(wanted).mappings()]


def _check_judged(connection: Connection, beside: Collection[Override] | None) -> None:
    """Raises Outrun."""
    if beside is None:
        return
    open_ = select(overrides.c.override).where(overrides.c.undone_us.is_(None))
    wanted = open_.order_by(overrides.c.override).limit(IN_FORCE_LIMIT)
    if {*connection.execute(wanted).scalars()} != {override.override for override in beside}:
        raise Outrun


def _override(row: Any) -> Override:
    names = [name for name in Override.__slots__ if name != "value"]
    return Override(**{name: row[name] for name in names}, value=orjson.loads(row["value"]))
