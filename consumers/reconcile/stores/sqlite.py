"""A SQLite target's tables, by one connection that never writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.reconcile import expressions, fast, mapping
from consumers.reconcile.expressions import quote
from consumers.reconcile.forms import Held
from consumers.reconcile.mapping import Compared
from consumers.reconcile.sides import sqlite
from consumers.reconcile.sides.base import Order, Side
from consumers.reconcile.sides.sqlite import SqliteSide
from consumers.reconcile.stores.base import Kept
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow

_BY_BYTES = Order(None)


class SqliteStore:
    def __init__(self, session: sqlite.Session) -> None:
        self._session = session

    async def open(self) -> None:
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    async def has(self, schema: str, name: str) -> bool:
        return await self._spelt(name) is not None

    async def _spelt(self, name: str) -> str | None:
        """The table's name: SQLite ignores case."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(?)"
        found = await self._session.run(lambda line: line.execute(query, (name,)).fetchone())
        return None if found is None else str(found[0])

    async def table(self, flow: Flow, record: SchemaRecord, schema: str, name: str) -> Kept:
        spelt = await self._spelt(name)
        assert spelt is not None
        columns, unique, nullable = await self._session.run(lambda line: _described(line, spelt))
        known = _known_as(flow, record, columns)
        null = frozenset(name for name in known if name.lower() in nullable)
        there = mapping.Target(known, unique, signed_zero=False, typed=False, nullable=null)
        return SqliteKept(self._session, spelt, columns, there)


@dataclass(frozen=True, slots=True)
class SqliteKept:
    session: sqlite.Session
    name: str
    columns: Sequence[str]
    there: mapping.Target
    order: Order | None = _BY_BYTES
    facts: fast.Server | str = "the target is SQLite"

    def side(self, compared: Compared, where: str, *, server_hash: bool) -> Side:
        reading = sqlite.Reading(
            self.name,
            expressions.of_target(compared),
            [pair.target.form for pair in compared.pairs],
            [at for at, pair in enumerate(compared.pairs) if pair.name in compared.key],
            expressions.stamp(self.columns),
            live=expressions.live(compared),
            where=where,
            beside=expressions.beside_target(compared),
        )
        return SqliteSide(self.session, reading)


def _described(line: sqlite3.Connection, name: str) -> tuple[list[str], list[frozenset[str]], set[str]]:
    """Columns that are no generated ones, those of each unique index, and those that may be null, in lower
    case: a primary key may, where it is no number of the row."""
    found: Sequence[tuple[Any, ...]] = line.execute(f"PRAGMA table_xinfo({quote(name)})").fetchall()
    unique = [frozenset(str(row[1]) for row in found if row[5])]
    for _, index, is_unique, _, partial in line.execute(f"PRAGMA index_list({quote(name)})").fetchall():
        if is_unique and not partial:
            parts = line.execute(f"PRAGMA index_info({quote(index)})").fetchall()
            unique.append(frozenset(str(part[2]) for part in parts))
    keys = [row for row in found if row[5]]
    numbered = {keys[0][1]} if len(keys) == 1 and str(keys[0][2]).upper() == "INTEGER" else set()
    nullable = {str(row[1]).lower() for row in found if not row[3] and row[1] not in numbered}
    return [str(row[1]) for row in found if row[6] == 0], unique, nullable


def _known_as(flow: Flow, record: SchemaRecord, columns: Sequence[str]) -> Mapping[str, Held | None]:
    """The table's columns, in the spelling of the flow where only the case differs."""
    lower = {name.lower() for name in columns}
    spelt = {column.name for column in record.columns} | set(flow.columns)
    spelt |= {rule if isinstance(rule, str) else rule.to or "" for rule in flow.columns.values()}
    return dict.fromkeys([name for name in spelt if name.lower() in lower] + list(columns))
