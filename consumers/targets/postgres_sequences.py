"""Sequences behind columns that rows are written into, kept ahead of them.

Rows bring their own values for a serial or identity column, which leaves its sequence behind. It is set
to the column's highest value when a batch has written such rows, so that the application can take over at
any time. Never back: what the application has drawn meanwhile stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psycopg

from consumers.targets import postgres_state as state
from consumers.targets.postgres_catalog import quote
from consumers.targets.postgres_plans import Plan

EVERY_S = 2.0  # while rows come; the highest value is one look into an index
SCAN_EVERY_S = 60.0  # where it has none, the table is read for it

_Sequence = tuple[str, str, str]  # relation, column, sequence


class Sequences:
    """What this session has to set. `clock_s` is monotonic."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._behind: dict[_Sequence, bool] = {}  # and whether the column is indexed
        self._set_s: dict[_Sequence, float] = {}
        self._refused: dict[_Sequence, str] = {}

    def written(self, plans: Iterable[Plan]) -> None:
        """Rows went into these tables."""
        for plan in plans:
            for column, sequence, indexed in plan.sequences:
                self._behind[plan.relation, column, sequence] = indexed

    @property
    def findings(self) -> list[str]:
        return [
            f"the sequence {sequence} is behind {relation}.{quote(column)}, an insert of the application may"
            f" fail: {why}"
            for (relation, column, sequence), why in sorted(self._refused.items())
        ]

    async def catch_up(self, connection: state.Connection, *, idle: bool) -> None:
        """Set those that are due; `idle`: all of them, but for those that cost a scan."""
        now_s = self._clock_s()
        for sequence, indexed in list(self._behind.items()):
            age_s = now_s - self._set_s.get(sequence, -SCAN_EVERY_S)
            if age_s >= (EVERY_S if indexed else SCAN_EVERY_S) or (idle and indexed):
                await self._set(connection, sequence)
                del self._behind[sequence]
                self._set_s[sequence] = now_s

    async def _set(self, connection: state.Connection, key: _Sequence) -> None:
        relation, column, sequence = key
        name = sequence.replace("'", "''")
        query = (
            f"SELECT setval('{name}', m.value) FROM (SELECT max({quote(column)}) AS value FROM {relation}) m,"
            f" {sequence} s WHERE m.value > s.last_value OR (m.value = s.last_value AND NOT s.is_called)"
        )
        try:
            async with connection.transaction():
                await connection.execute(query, prepare=False)
        except psycopg.errors.InsufficientPrivilege as error:
            user = connection.info.user
            self._refused[key] = (
                f'{error.diag.message_primary}; GRANT SELECT, UPDATE ON SEQUENCE {sequence} TO "{user}";'
            )
        except psycopg.DataError as error:
            self._refused[key] = f"{error.diag.message_primary}; make the sequence's type and MAXVALUE larger"
        else:
            self._refused.pop(key, None)
