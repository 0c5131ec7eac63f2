"""What differs from one database of a sql target to another: the one small interface between them.

A dialect is asked to write rows under a guard, not for a clause of its SQL: where an upsert cannot be
guarded in one statement, or fires on any unique key, it takes several (H25). Everything else is made of
SQLAlchemy's Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy import Dialect as CoreDialect

from consumers.targets.sql_types import Stored
from streamer.config import SqlTarget, sql_backend
from streamer.errors import TailraceError

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows of one kind are put into a table. A row's values stand in the order of `columns`.

    `version`: columns of the row that guard it, highest first (H3); empty: no guard. `replaces`: columns
    that a row which is there gets anew; empty: it stays. `only_if_set`: it gets the columns that are no
    version only where this one is not null. `conflict` empty: rows are added and meet nothing.
    """

    table: str
    columns: tuple[str, ...]
    conflict: tuple[str, ...]
    version: tuple[str, ...]
    replaces: tuple[str, ...]
    only_if_set: str | None = None
    where: str | None = None  # of the partial unique index that `conflict` means


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column as it is in the target; `declared`: its type in the words it was made with."""

    name: str
    declared: str
    not_null: bool
    has_default: bool
    generated: bool


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """`columns`: in lower case; those that it may depend on where it is not `whole`, which is partial or of
    expressions."""

    name: str
    columns: frozenset[str]
    whole: bool
    predicate: str = ""  # of a partial one
    definition: str = ""  # the statement that makes it; none: it is the table's own


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row was refused. `transient`: another row may make place for it (H23)."""

    code: str
    message: str
    transient: bool
    unique: bool


class Dialect(Protocol):
    """`errors`: what its driver raises, to be given to `refusal` or `fault`."""

    errors: tuple[type[Exception], ...]
    core: CoreDialect

    def connect(self) -> Connection:
        """A session, outside of a transaction. Raises TailraceError."""

    def disconnect(self, connection: Connection) -> None: ...

    def check(self) -> None:
        """That the session's store is still the one that the url names. Raises TargetUnavailable."""

    def begin(self, connection: Connection) -> None:
        """A transaction that writes; others wait."""

    def end(self, connection: Connection, *, commit: bool) -> None:
        """The transaction that is open; none is no error when it is rolled back."""

    def put(self, connection: Connection, shape: Shape, rows: Sequence[Row]) -> int:
        """How many rows were written; the guard has kept the others out."""

    def columns(self, connection: Connection, table: str) -> dict[str, TableColumn]:
        """By name, in the table's order; empty: there is no such table."""

    def unique_indexes(self, connection: Connection, table: str) -> list[UniqueIndex]:
        """The primary key among them."""

    def why_unfit(self, stored: Stored, column: TableColumn) -> str | None:
        """Why a column that is there does not keep such values as they are."""

    def schema_changed(self, error: Exception) -> bool:
        """A table or column is not as it was: look again."""

    def refusal(self, error: Exception) -> Refusal | None:
        """None: the error is no row's fault."""

    def fault(self, error: Exception) -> TailraceError:
        """What is the matter with the store, and what to do."""


def dialect_of(target: SqlTarget, place: str) -> Dialect:
    """By the URL, which the config has checked."""
    assert sql_backend(target.url) == "sqlite"
    from consumers.targets.sql_sqlite import SqliteDialect  # noqa: PLC0415

    return SqliteDialect(target, place)
